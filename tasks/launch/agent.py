"""torch's elastic agent: it starts the ranks of a stage on this machine and writes down how each of them failed."""

import json
import signal
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dpr_core.errors import DensePathError, UsageError
from tasks.launch.child_processes import die_with

FAILURES = "failures.json"

EXIT_SECONDS = 10
"""How long the others have to end once a rank has failed."""


def main() -> None:
    parent, folder, processes = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        # A shutdown is for rank 0 to decide on, and takes as long as keeping the state does.
        signal.signal(number, lambda number, frame: None)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=EXIT_SECONDS,
        logs_specs=DefaultLogsSpecs(str(folder / "logs"), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "tasks.launch.worker", *sys.argv[4:])
    except ChildFailedError as error:
        (folder / FAILURES).write_text(json.dumps({rank: asdict(each) for rank, each in error.failures.items()}))
        raise SystemExit(1) from None


def failure(kind: str | None, text: str, status: int = 1) -> dict[str, Any]:
    """How a rank ended, as this agent writes it down, by another one; what made the others fail comes first."""
    order = 0 if status < 0 else 1 if kind in (UsageError.__name__, DensePathError.__name__) else 2
    own = {"text": text, "time": order} | ({"kind": kind} if kind else {})
    return {"exitcode": status, "timestamp": order, "error_file_data": own}


if __name__ == "__main__":
    main()
