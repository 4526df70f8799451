"""Commands that make artifacts: the whole pipeline, and one stage again."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dpr_core.text import escape_control_lines
from flows.cli import completion
from flows.cli.console import (
    RESUME,
    Debug,
    Force,
    Identifier,
    Jobs,
    Json,
    Place,
    Plan,
    Preset,
    Recipe,
    Set,
    emit,
    reported,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flows.dispatch import Dispatched
    from flows.requests import Request, SweepRequest
    from tasks.artifacts.store import Store
    from tasks.graph import Planned


def run(
    recipe: Recipe = "demo",
    assignments: Set = [],  # noqa: B006
    preset: Preset = None,
    sft: Annotated[
        str | None,
        typer.Option(
            "--sft",
            metavar="ID",
            help="Go on from this SFT artifact, with its backbone and demonstrations in place of the recipe's.",
            autocompletion=completion.ids,
        ),
    ] = None,
    plan: Plan = False,
    force: Force = False,
    jobs: Jobs = None,
    places: Place = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline, reusing every stage that is already there.

    Example: dpr run demo --set seed=1 --set reinforce.algorithm.gamma=0.95
    """
    with reported(debug, RESUME):
        from dpr_core.config.placing import read_rules
        from flows import recipes
        from flows.requests import RunRequest
        from tasks.artifacts.store import Store

        source: recipes.Recipe = recipe
        if sft is not None:
            from flows.importing import on_sft

            source = on_sft(Store.open(), sft, recipe)
        config, place = recipes.load(source, assignments, preset), read_rules(places)
        request = RunRequest(config=config, force=force, place=place)
        _run_and_show(Store.open(), request, Options(plan, as_json, debug, jobs))


def rerun(
    artifact: Identifier,
    assignments: Set = [],  # noqa: B006
    downstream: Annotated[bool, typer.Option("--downstream", help="Also make all that was built on it again.")] = False,
    plan: Plan = False,
    force: Force = False,
    jobs: Jobs = None,
    places: Place = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one artifact again from its stored inputs, with changes; with --downstream, everything built on it too.

    Fields are those of the artifact's own stage: dpr rerun 3f2a --set learning_rate=1e-4 --downstream --plan
    """
    with reported(debug, RESUME):
        from dpr_core.config.placing import read_rules
        from flows.requests import RerunRequest
        from tasks.artifacts.store import Store

        place, store = read_rules(places), Store.open()
        target = store.resolve(artifact)
        request = RerunRequest(artifact=target, overrides=assignments, downstream=downstream, force=force, place=place)
        _run_and_show(store, request, Options(plan, as_json, debug, jobs))


class Options(NamedTuple):
    """The options of every command that makes artifacts."""

    plan: bool
    as_json: bool
    debug: bool
    jobs: int | None = None
    """None: 1; of a sweep, as many as can be used."""


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
    from flows.dispatch import places_of
    from flows.requests import SweepRequest
    from tasks.graph import computes, obstacles, plan
    from tasks.libraries import load_torch

    nodes, info = dispatched.nodes, dispatched.info
    planned = plan(nodes, store, store.parent_runs.since(info.request) if request.force else None, info.name)
    places = places_of(nodes, planned, request.places)
    usable = usable_jobs(request, planned, places) if isinstance(request, SweepRequest) else 1
    request = request.model_copy(update={"jobs": options.jobs or usable})
    if places:
        embedded.prepare(store.home, options.debug)
    if options.plan:
        found = obstacles(nodes, planned, places)
        if places:
            from tasks.placement import WorkPools

            found += WorkPools(store).problems(places.values())
        _show_plan(store, dispatched, planned, places, found, options.as_json)
        return None
    store.check_writable()
    if all(step.status == "reuse" for step in planned):
        return run_document.reuse_all(store, planned, info, dispatched.results_of)
    embedded.prepare(store.home, options.debug)
    with embedded.starting_server():
        from flows.pipeline import start

        if not places and request.jobs == 1 and computes(nodes, planned):
            load_torch()
    return start(request)


def _show_plan(
    store: "Store",
    dispatched: "Dispatched",
    planned: "Sequence[Planned]",
    places: "Mapping[str, str]",
    obstacles: list[str],
    as_json: bool,
) -> None:
    """What would run and where, and what would stop it at once; beside it the costs of judging, which people are shown
    where there are any."""
    from rich.console import Group

    from dpr_core.config.placing import HERE
    from flows.cli import costs_view, experiments_view, run_view
    from flows.judging_costs import judging_costs

    costs = judging_costs(dispatched.nodes, planned, store)
    studies = dispatched.studies

    def view() -> Group:
        if studies:
            table = experiments_view.sweep_plan_table(studies, planned, places)
        else:
            table = run_view.plan_table(planned, places)
        return Group(table, *costs_view.views(costs))

    document = experiments_view.sweep_plan_document(studies, planned) if studies else run_view.plan_document(planned)
    if places:
        document["plan"] = [{**step, "where": places.get(step["name"], HERE)} for step in document["plan"]]
    emit(document | {"judging": costs.as_dict(), "obstacles": obstacles}, as_json, view)
    for obstacle in obstacles:
        print(f"a run would stop: {escape_control_lines(obstacle)}", file=sys.stderr)


def usable_jobs(request: "SweepRequest", planned: "Sequence[Planned]", places: "Mapping[str, str]") -> int:
    """How many processes share a sweep by default: one a core on the lab, whose stages have one thread each."""
    from dpr_core.config.model import LabBackboneConfig
    from dpr_core.cores import MOST_PROCESSES, usable_cores

    on_lab = all(isinstance(study.config.backbone, LabBackboneConfig) for study in request.studies)
    if not on_lab:
        return 1
    to_run = sum(step.status == "run" and step.name not in places for step in planned)
    return max(1, min(usable_cores(), to_run, MOST_PROCESSES))
