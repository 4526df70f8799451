"""Commands that make artifacts: the whole pipeline, and one stage again."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from flows.console import Debug, Force, Identifier, Json, Plan, Set, emit, reported

if TYPE_CHECKING:
    from tasks.graph import Node
    from tasks.tracking import Store


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe (see `dpr recipes`) or a .yaml file.")] = "demo",
    assignments: Set = [],  # noqa: B006
    plan: Plan = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline, reusing every stage that is already there.

    Example: dpr run demo --set seed=1 --set reinforce.algorithm.gamma=0.95
    """
    with reported(debug):
        from flows import recipes, wiring
        from tasks.tracking import Store

        config = recipes.load(recipe, assignments)

        def start() -> dict[str, Any]:
            from flows.pipeline import dense_path

            return dense_path(config, force=force)

        about = Run(config.name, config.description, config.model_dump(mode="json"))
        _run_or_plan(Store.open(), wiring.nodes(config), about, start, Wish(plan, force, as_json, debug))


def rerun(
    artifact: Identifier,
    assignments: Set = [],  # noqa: B006
    downstream: Annotated[bool, typer.Option("--downstream", help="Also make all that was built on it again.")] = False,
    plan: Plan = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one artifact again from its stored inputs, with changes; with --downstream, everything built on it too.

    Fields are those of the artifact's own stage: dpr rerun 3f2a --set learning_rate=1e-4 --downstream --plan
    """
    with reported(debug):
        from tasks.graph import rerun_nodes
        from tasks.tracking import Store

        store = Store.open()
        target = store.record(artifact)

        def start() -> dict[str, Any]:
            from flows.pipeline import rerun as rerun_flow

            return rerun_flow(target.id, assignments, downstream, force)

        about = Run(f"rerun {target.stage}", f"{target.title} again.", {"artifact": target.id})
        nodes = rerun_nodes(store, target.id, assignments, downstream)
        _run_or_plan(store, nodes, about, start, Wish(plan, force, as_json, debug))


class Run(NamedTuple):
    """What a run is called in MLflow."""

    name: str
    description: str
    config: dict[str, Any]


class Wish(NamedTuple):
    """The options that `run` and `rerun` share."""

    plan: bool
    force: bool
    as_json: bool
    debug: bool


def _run_or_plan(
    store: "Store", nodes: "list[Node]", about: Run, start: Callable[[], dict[str, Any]], wish: Wish
) -> None:
    from flows import embedded, runs
    from flows import show as view
    from tasks.graph import plan

    planned = plan(nodes, store, force=[node.name for node in nodes] if wish.force else ())
    if wish.plan:
        emit(view.plan_document(planned), wish.as_json, lambda: view.plan_table(planned))
        return
    if all(step.status == "reuse" for step in planned):
        document = runs.reuse_all(store, planned, *about)
    else:
        embedded.prepare(store.home, wish.debug)
        embedded.start_server()
        document = start()
    emit(document, wish.as_json, lambda: view.run_summary(store, document))
