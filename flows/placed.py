"""The Prefect flow of one stage of a pipeline whose controller runs elsewhere, and has placed it on this work pool."""

import logging
import socket
from datetime import datetime
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

import dpr_core
from dpr_core.config.base import parse
from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import redact, redact_logs
from flows.keys import fetch_keys
from flows.orchestration import body, flow
from tasks.artifacts.store import Store
from tasks.graph import Node, plan, preflight
from tasks.placement import FLOW, REFUSED
from tasks.prefect_task import RAN, REUSED, stage_task
from tasks.registry import stage_named
from tasks.run_stage import Outcome, StageJob

logger = logging.getLogger("dense_path")


@flow(
    name=FLOW,
    flow_run_name="{name}",
    description="A stage of a pipeline on this work pool. Its controller starts it; people start `stage/...`.",
)
def placed(
    stage: str,
    name: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    parent: str | None = None,
    not_before: datetime | None = None,
    origin: str | None = None,
    version: str | None = None,
    stage_version: int | None = None,
) -> State[Any]:
    """One stage, as the controller of a pipeline starts it: its artifact's ID is in the message of the last state.

    Args:
        stage: The stage.
        name: What the pipeline calls it.
        config: All of its settings.
        inputs: The IDs of the artifacts that it is built on, by their roles.
        parent: The MLflow run of the pipeline.
        not_before: What was begun earlier is not reused.
        origin: The artifact that is made again, with which the reasons compare.
        version: The version of dense-path that the controller has, and that this worker must have.
        stage_version: Likewise of the stage, which tells two checkouts of one release apart.
    """
    try:
        node = Node(name, stage, parse(stage_named(stage).config, config, stage), inputs, origin)
        outcome = _do(node, parent, not_before, version, stage_version)
    except UsageError as error:
        words = f"{error} (on {socket.gethostname()}; if the machine is the reason, place {stage} on another pool)"
        return _failed(words, REFUSED)
    except DensePathError as error:
        return _failed(str(error))
    how = RAN if outcome.status == "ran" else REUSED
    return Completed(name=how, message=f"{outcome.id} on {socket.gethostname()} in {outcome.seconds:.0f} s")


@body
def _do(
    node: Node, parent: str | None, not_before: datetime | None, version: str | None, stage_version: int | None
) -> Outcome:
    logger.setLevel(logging.INFO)
    redact_logs()
    if version not in (None, dpr_core.__version__):
        raise UsageError(f"this worker has dense-path {dpr_core.__version__}, and the pipeline {version}: install that")
    own = stage_named(node.stage).version_of(node.config)
    if stage_version not in (None, own):
        raise UsageError(
            f"this worker has version {own} of the stage {node.stage}, and the pipeline {stage_version}, both of "
            f"dense-path {dpr_core.__version__}: install the same checkout"
        )
    store = Store.open(retry=True)
    fetch_keys([node.config])
    preflight([node], plan([node], store, not_before))
    return stage_task(StageJob(node.stage, node.name, node.config, node.inputs, parent, not_before, node.origin))


def _failed(words: str, name: str = "Failed") -> State[Any]:
    logger.error(words)
    return Failed(name=name, message=redact(words))
