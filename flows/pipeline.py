"""The Prefect flows: the whole pipeline, and a rerun of any artifact. Stages exchange artifact IDs only."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from dpr_core.config.pipeline import PipelineConfig
from flows import recipes, wiring
from flows.runs import pipeline_run, stage_entry
from tasks.graph import Node, execute, plan, preflight, rerun_nodes
from tasks.prefect_task import stage_task
from tasks.stage import Outcome
from tasks.tracking import Store

DEMO = recipes.load("demo")


@flow(name="dense-path", flow_run_name="{config.name}")
def dense_path(config: PipelineConfig = DEMO, force: bool = False) -> dict[str, Any]:
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""
    return run_nodes(wiring.nodes(config), config.name, config.description, config.model_dump(mode="json"), force)


@flow(name="rerun")
def rerun(
    artifact: str, overrides: list[str] | None = None, downstream: bool = False, force: bool = False
) -> dict[str, Any]:
    """Make one artifact again from its stored inputs, with `field=value` overrides; downstream: all built on it too."""
    store = Store.open()
    target = store.record(artifact)
    changes = overrides or []
    nodes = rerun_nodes(store, target.id, changes, downstream)
    config = {"artifact": target.id, "overrides": changes, "downstream": downstream}
    description = f"{target.title} again" + (f" with {', '.join(changes)}." if changes else ".")
    return run_nodes(nodes, f"rerun {target.stage}", description, config, force)


def run_nodes(
    nodes: Sequence[Node], name: str, description: str, config: Mapping[str, Any], force: bool = False
) -> dict[str, Any]:
    """Run a graph under one parent run; returns the document that `dpr run --json` prints."""
    # A deployed flow shows on its page why each stage runs.
    logging.getLogger("dense_path").setLevel(logging.INFO)
    store = Store.open()
    preflight(nodes, plan(nodes, store))
    with pipeline_run(store, name, description, config) as document:

        def run(node: Node, inputs: dict[str, str]) -> Outcome:
            outcome: Outcome = stage_task(
                stage=node.stage,
                name=node.name,
                config=node.config,
                inputs=inputs,
                parent=document["run_id"],
                force=force,
            )
            document["stages"].append(stage_entry(outcome))
            return outcome

        execute(nodes, run)
    show_links(store, document)
    return document


def show_links(store: Store, document: Mapping[str, Any]) -> None:
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
