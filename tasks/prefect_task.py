"""The Prefect task that every stage runs as. MLflow decides what is reused; Prefect keeps no results."""

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from dpr_core.config.base import StageConfig
from tasks.progress import StageProgress
from tasks.stage import Outcome, run_stage
from tasks.table import stage_named
from tasks.tracking import Store


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage_task(
    stage: str, name: str, config: StageConfig, inputs: Mapping[str, str], parent: str | None, force: bool
) -> Outcome:
    """Make or reuse one artifact: config and artifact IDs in, artifact ID out."""
    with StageProgress(name) as progress:
        return run_stage(
            stage_named(stage),
            config,
            inputs,
            store=Store.open(),
            parent=parent,
            name=name,
            force=force,
            progress=progress,
        )
