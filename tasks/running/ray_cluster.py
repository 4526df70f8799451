"""The Ray cluster that a stage is to be done by, as far as it can be told without asking it."""

import os
from importlib.util import find_spec

from dpr_core.errors import UsageError
from dpr_core.redaction import address


def check_cluster(name: str) -> None:
    """Refuse what could never begin; whether the cluster answers is seen later."""
    if find_spec("ray") is None:
        raise UsageError(f"{name}: launch.engine=ray needs Ray: pip install 'dense-path[cluster]'")
    where = os.environ.get("RAY_ADDRESS", "")
    if not where:
        raise UsageError(
            f"{name}: launch.engine=ray needs RAY_ADDRESS to name a Ray cluster, such as 10.0.0.1:6379 "
            "(docs/operations.md)"
        )
    if "://" in where:
        raise UsageError(
            f"{name}: RAY_ADDRESS={address(where)} is that of a client, and Ray Train has to be started inside the "
            "cluster: give HOST:PORT, on a machine that has joined it (ray start --address=HOST:PORT --num-cpus=0), or "
            "submit the command with `ray job submit`"
        )
