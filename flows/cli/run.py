"""Commands that make artifacts: the whole pipeline, and one stage again."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dpr_core.text import escape_control_lines
from flows.cli.console import RESUME, Debug, Force, Identifier, Json, Plan, Preset, Set, emit, reported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.dispatch import Dispatched
    from flows.requests import Request, SweepRequest
    from tasks.artifacts.store import Store
    from tasks.graph import Node, Planned


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe (see `dpr recipes`) or a .yaml file.")] = "demo",
    assignments: Set = [],  # noqa: B006
    preset: Preset = None,
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
        from flows.requests import RunRequest
        from tasks.artifacts.store import Store

        request = RunRequest(config=recipes.load(recipe, assignments, preset), force=force)
        _run_and_show(Store.open(), request, Options(plan, as_json, debug))


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
        from flows.requests import RerunRequest
        from tasks.artifacts.store import Store

        store = Store.open()
        target = store.resolve(artifact)
        request = RerunRequest(artifact=target, overrides=assignments, downstream=downstream, force=force)
        _run_and_show(store, request, Options(plan, as_json, debug))


class Options(NamedTuple):
    """The options of every command that makes artifacts."""

    plan: bool
    as_json: bool
    debug: bool
    jobs: int | None = None
    """Of a sweep; None: as many as can be used."""


def _run_and_show(store: "Store", request: "Request", options: Options) -> None:
    from flows.cli.run_view import run_summary
    from flows.dispatch import dispatch

    document = run_or_plan(store, request, dispatch(request, store), options)
    if document is not None:
        emit(document, options.as_json, lambda: run_summary(store, document))


def run_or_plan(
    store: "Store", request: "Request", dispatched: "Dispatched", options: Options
) -> dict[str, Any] | None:
    """The document of the run; none if it was only planned. No flow is started where there is nothing to run."""
    from flows import embedded, run_document
    from flows.requests import SweepRequest
    from tasks.graph import computes, obstacles, plan
    from tasks.libraries import load_torch

    nodes, info = dispatched.nodes, dispatched.info
    planned = plan(nodes, store, store.parent_runs.since(info.request) if request.force else None, info.name)
    here, jobs = True, 1
    if isinstance(request, SweepRequest):
        here, jobs = request.pool is None, options.jobs or usable_jobs(request, nodes, planned)
        request = request.model_copy(update={"jobs": jobs})
    if options.plan:
        found = obstacles(nodes, planned, here=here, jobs=jobs)
        _show_plan(store, dispatched, planned, found, options.as_json)
        return None
    store.check_writable()
    if all(step.status == "reuse" for step in planned):
        return run_document.reuse_all(store, planned, info, dispatched.results_of)
    embedded.prepare(store.home, options.debug)
    with embedded.starting_server():
        from flows.pipeline import start

        if here and jobs == 1 and computes(nodes, planned):
            load_torch()
    return start(request)


def _show_plan(
    store: "Store", dispatched: "Dispatched", planned: "Sequence[Planned]", obstacles: list[str], as_json: bool
) -> None:
    """What would run, and what would stop it at once; beside it the costs of judging, which people are shown where
    there are any."""
    from rich.console import Group

    from flows.cli import costs_view, experiments_view, run_view
    from flows.judging_costs import judging_costs

    costs = judging_costs(dispatched.nodes, planned, store)
    studies = dispatched.studies

    def view() -> Group:
        table = experiments_view.sweep_plan_table(studies, planned) if studies else run_view.plan_table(planned)
        return Group(table, *costs_view.views(costs))

    document = experiments_view.sweep_plan_document(studies, planned) if studies else run_view.plan_document(planned)
    emit(document | {"judging": costs.as_dict(), "obstacles": obstacles}, as_json, view)
    for obstacle in obstacles:
        print(f"a run would stop: {escape_control_lines(obstacle)}", file=sys.stderr)


def usable_jobs(request: "SweepRequest", nodes: "Sequence[Node]", planned: "Sequence[Planned]") -> int:
    """How many processes share a sweep by default: one a core on the lab, whose stages have one thread each."""
    from dpr_core.config.model import LabBackboneConfig
    from dpr_core.cores import MOST_PROCESSES, usable_cores
    from tasks.graph import on_machines

    on_lab = all(isinstance(study.config.backbone, LabBackboneConfig) for study in request.studies)
    if request.pool or not on_lab or on_machines(nodes, planned):
        return 1
    to_run = sum(step.status == "run" for step in planned)
    return max(1, min(usable_cores(), to_run, MOST_PROCESSES))
