"""Commands that run many pipelines: sweeps over settings, and the paper's exhibits."""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dpr_core.errors import DensePathError, UsageError
from flows.cli.console import RESUME, Debug, Json, Plan, Set, emit, reported

if TYPE_CHECKING:
    from dpr_core.experiments.points import Study
    from dpr_core.theory.checks import Identity

Over = Annotated[
    list[str],
    typer.Option(
        "--over",
        metavar="FIELD=V,V,...",
        help="Values of a setting, or first:last:step; given several times, all combinations.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,
        help="Processes on this machine that share the work; if left out, as many as cores can be used "
        "for recipes on the lab, and 1 for others.",
    ),
]
Pool = Annotated[str | None, typer.Option(metavar="NAME", help="Have the points made over a Prefect work pool.")]


class Reproduced(StrEnum):
    theory = "theory"
    table1 = "table1"
    table2 = "table2"
    figure1 = "figure1"
    figure2 = "figure2"
    figure3 = "figure3"
    figure4a = "figure4a"
    figure4b = "figure4b"
    all = "all"


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe (see `dpr recipes`) or a .yaml file.")],
    over: Over = [],  # noqa: B006
    assignments: Set = [],  # noqa: B006
    plan: Plan = False,
    jobs: Jobs = None,
    pool: Pool = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe for every combination of values, each stage that is the same once, and tabulate what came out.

    Example: dpr sweep demo --over reinforce.algorithm.gamma=0.93,0.95,1 --over seed=1,2,3

    A sweep that was stopped goes on where it was when it is started again.
    """
    with reported(debug, RESUME):
        from dpr_core.experiments.points import Study, missing_references, read_over
        from flows import recipes
        from flows.cli import experiments_view
        from tasks.artifacts.store import Store

        values = read_over(over)
        if not values:
            raise UsageError("say what to vary: --over field=value,value, such as --over seed=1,2,3")
        config = recipes.load(recipe, assignments)
        if added := missing_references(config.model_dump(mode="json"), values):
            kept = ", ".join(f"{fraction:g}" for fraction in added)
            print(f"sft.checkpoints keeps {kept} too, so that one SFT run serves every reference", file=sys.stderr)
        title = f"{config.name}: {' x '.join(values)}"
        studies = [Study(title=title, config=config, over=values)]
        document, failure = _run_or_plan(studies, f"sweep {config.name}", Wish(plan, jobs, pool, as_json, debug))
        if document is not None:
            emit(document, as_json, lambda: experiments_view.sweep_summary(Store.open(), document))
        if failure is not None:
            raise failure


def reproduce(
    what: Annotated[Reproduced, typer.Argument(help="What to reproduce.")],
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds 1 to this, for tables and figures.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller, in minutes: fewer values, the recipe lab-quick.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="A recipe or a .yaml file; lab if left out.")] = None,
    assignments: Set = [],  # noqa: B006
    jobs: Jobs = None,
    pool: Pool = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Where to write the results; plots go into a folder beside it."),
    ] = None,
    plan: Plan = False,
    instances: Annotated[int, typer.Option(min=1, help="Theory: random instances of each claim.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Theory: seed of the instances.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Reproduce a table or figure of the paper in miniature, or check its theory, with a verdict on every claim.

    The exit status is 0 also where a claim does not reproduce. Example: dpr reproduce table2 --quick --seeds 2
    """
    with reported(debug, RESUME):
        if what is Reproduced.theory:
            from dpr_core.theory.checks import table

            if recipe or assignments or jobs or pool or out or plan:
                raise UsageError("theory trains nothing: it takes --instances, --seed and --json alone")
            identities = _theory(seed, instances)
            emit({"identities": _rows(identities)}, as_json, lambda: table(identities))
            return
        from flows import reproduction

        if out is not None:
            _check_out(out)
        names = [each.value for each in Reproduced] if what is Reproduced.all else [what.value]
        asked = recipe or ("lab-quick" if quick else "lab")
        studies = reproduction.studies(asked, assignments, names, seeds, quick)
        document, failure = _run_or_plan(studies, f"reproduce {what.value}", Wish(plan, jobs, pool, as_json, debug))
        if document is not None:
            identities = _theory(seed, instances) if what is Reproduced.all else []
            _conclude(document, identities, out, as_json)
        if failure is not None:
            raise failure


class Wish(NamedTuple):
    """The options that `sweep` and `reproduce` share."""

    plan: bool
    jobs: int | None
    pool: str | None
    as_json: bool
    debug: bool


def _run_or_plan(studies: "list[Study]", name: str, wish: Wish) -> tuple[dict[str, Any] | None, DensePathError | None]:
    """The document of the run, none if it was only planned; and the error that names what failed, if anything did."""
    from flows import embedded, run_document
    from flows.cli import experiments_view
    from flows.merging import Experiment
    from flows.requests import Sweep
    from tasks.artifacts.store import Store
    from tasks.graph import on_machines, plan

    if wish.pool and wish.jobs:
        raise UsageError("--jobs is for this machine, --pool for the workers of a pool; give one of them")
    asked = Experiment.of(studies)
    store = Store.open()
    nodes = [*asked.merged.nodes, *asked.tables()]
    planned = plan(nodes, store)
    if wish.plan:
        from flows.cli.costs_view import emit_plan

        document = experiments_view.experiment_plan_document(asked, planned)
        table = experiments_view.experiment_plan_table
        emit_plan(store, nodes, planned, document, wish.as_json, lambda: table(asked, planned))
        return None, None
    if all(step.status == "reuse" for step in planned):
        about = Sweep(studies=studies, name=name).about(store)
        return run_document.reuse_all(store, planned, about, run_document.tables_of), None
    embedded.prepare(store.home, wish.debug)
    embedded.start_server()
    one_at_a_time = wish.pool or on_machines(nodes, planned)
    to_run = sum(step.status == "run" for step in planned)
    jobs = wish.jobs or (1 if one_at_a_time else processes(studies, to_run))
    from flows.sweep import Incomplete
    from flows.sweep import sweep as sweep_flow

    try:
        return sweep_flow(studies, name, jobs, wish.pool), None
    except Incomplete as incomplete:
        return incomplete.document, incomplete


def processes(studies: "Sequence[Study]", to_run: int) -> int:
    """How many share the work where nothing is said: every core for the lab, whose stages have one thread each."""
    from dpr_core.config.model import LabBackboneConfig
    from tasks.launch.child_processes import usable_cores
    from tasks.subprocess_pool import MOST

    on_lab = all(isinstance(study.config.backbone, LabBackboneConfig) for study in studies)
    return max(1, min(usable_cores(), to_run, MOST)) if on_lab else 1


def _check_out(file: Path) -> None:
    """Before hours of work, not after them."""
    if not file.suffix or file.is_dir():
        raise UsageError(f"--out {file}: give the name of a file, such as results.md")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {file}: {file.parent} cannot be made: {error.strerror}") from None
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"--out {file}: it cannot be written there")


def _conclude(document: dict[str, Any], identities: "Sequence[Identity]", out: Path | None, as_json: bool) -> None:
    """Write the results down, keep them with the run, and show the verdicts."""
    from dpr_core.theory.checks import table
    from flows import reproduction
    from flows.cli import experiments_view
    from tasks.artifacts.store import Store

    store = Store.open()
    file = out or store.home / "results" / document["run_id"] / "results.md"
    theory = table(list(identities)) if identities else None
    command = shlex.join(["dpr", *sys.argv[1:]])
    judged = {
        "claims": reproduction.claims_in(document),
        **({"identities": _rows(identities)} if identities else {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for place in (Path(folder, file.name), file):
            reproduction.write(store, document, command, judged, theory, place)
        store.pipelines.keep(document["run_id"], Path(folder), "results")
    told = {
        **judged,
        "run_id": document["run_id"],
        "document": str(file),
        **({"failed": document["failed"]} if "failed" in document else {}),
    }
    emit(told, as_json, lambda: experiments_view.verdicts(told))


def _theory(seed: int, instances: int) -> "list[Identity]":
    from dpr_core.theory import checks
    from tasks.running.progress import StageProgress

    with StageProgress("theory") as progress:
        return checks.run(seed, instances, progress.advance)


def _rows(identities: "Sequence[Identity]") -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(identity) for identity in identities]
