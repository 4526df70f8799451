"""The Prefect task that every stage runs as. MLflow decides what is reused; Prefect keeps no results."""

from collections.abc import Callable, Mapping
from datetime import datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from dpr_core.config.base import StageConfig
from tasks.run_stage import Outcome
from tasks.subprocess_pool import Job, make


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage_task(
    stage: str,
    name: str,
    config: StageConfig,
    inputs: Mapping[str, str],
    parent: str | None,
    not_before: datetime | None = None,
    by: Callable[[Job], Outcome] = make,
) -> Outcome:
    """Make or reuse one artifact, here or `by` another process: config and artifact IDs in, artifact ID out."""
    return by(Job(stage, name, config, inputs, parent, not_before))
