"""Commands that make artifacts: the whole pipeline, and one stage again."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from flows.cli.console import RESUME, Debug, Force, Identifier, Json, Plan, Set, emit, reported

if TYPE_CHECKING:
    from flows.requests import Asked
    from tasks.artifacts.store import Store


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
    with reported(debug, RESUME):
        from flows import recipes
        from flows.requests import Whole
        from tasks.artifacts.store import Store

        config = recipes.load(recipe, assignments)
        _run_or_plan(Store.open(), Whole(config=config, force=force), Wish(plan, as_json, debug))


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
    with reported(debug, RESUME):
        from flows.requests import Rerun
        from tasks.artifacts.store import Store

        store = Store.open()
        target = store.resolve(artifact)
        asked = Rerun(artifact=target, overrides=assignments, downstream=downstream, force=force)
        _run_or_plan(store, asked, Wish(plan, as_json, debug))


class Wish(NamedTuple):
    """The options that `run` and `rerun` share."""

    plan: bool
    as_json: bool
    debug: bool


def _run_or_plan(store: "Store", asked: "Asked", wish: Wish) -> None:
    from flows import embedded, run_document
    from flows.cli import inspect_view as view
    from tasks.graph import plan

    about = asked.about(store)
    nodes = asked.nodes(store)
    planned = plan(nodes, store, store.pipelines.since(about.request) if asked.force else None)
    if wish.plan:
        from flows.cli.costs_view import emit_plan

        document = view.plan_document(planned)
        emit_plan(store, nodes, planned, document, wish.as_json, lambda: view.plan_table(planned))
        return
    if all(step.status == "reuse" for step in planned):
        document = run_document.reuse_all(store, planned, about)
    else:
        embedded.prepare(store.home, wish.debug)
        embedded.start_server()
        document = asked.start()
    emit(document, wish.as_json, lambda: view.run_summary(store, document))
