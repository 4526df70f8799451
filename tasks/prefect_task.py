"""The Prefect task that every stage runs as. MLflow decides what is reused; Prefect keeps no results."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from dpr_core.config.base import StageConfig
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome, StageJob, run_job


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage_task(
    stage: str,
    name: str,
    config: StageConfig,
    inputs: Mapping[str, str],
    parent: str | None,
    not_before: datetime | None = None,
    run: Callable[[StageJob], Outcome] = run_job,
) -> Outcome:
    """Run a stage or reuse its artifact, here or in a process that `run` sends it to."""
    return run(StageJob(stage, name, config, inputs, parent, not_before))


def link_runs(store: Store, document: Mapping[str, Any]) -> None:
    """Links to the MLflow runs on the flow run's page."""
    rows = [
        {
            "stage": entry["name"],
            "status": entry["status"],
            "seconds": entry["seconds"],
            "artifact": f"[{entry['id']}]({store.run_url(entry['id'])})",
        }
        for entry in document["stages"]
    ]
    create_table_artifact(rows, key="mlflow-runs", description=f"[Pipeline run]({store.run_url(document['run_id'])})")
