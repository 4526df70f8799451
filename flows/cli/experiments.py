"""Commands that run many pipelines: sweeps over settings, and the paper's exhibits."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import check_output
from flows.cli import completion
from flows.cli.console import RESUME, Debug, Jobs, Json, Place, Plan, Recipe, Set, emit, reported
from flows.cli.run import Options, run_or_plan

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
    recipe: Recipe,
    over: Over = [],  # noqa: B006
    assignments: Set = [],  # noqa: B006
    plan: Plan = False,
    jobs: Jobs = None,
    places: Place = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a recipe for every combination of values, each stage that is the same once, and tabulate what came out.

    Example: dpr sweep demo --over reinforce.algorithm.gamma=0.93,0.95,1 --over seed=1,2,3

    A sweep that was stopped goes on where it was when it is started again.
    """
    with reported(debug, RESUME):
        from dpr_core.config.base import parse
        from dpr_core.experiments.points import Study, missing_references, read_over
        from flows import recipes
        from flows.cli import experiments_view
        from tasks.artifacts.store import Store

        values = read_over(over)
        if not values:
            raise UsageError("say what to vary: --over field=value,value, such as --over seed=1,2,3")
        config = recipes.load(recipe, assignments)
        if missing := missing_references(config.model_dump(mode="json"), values):
            kept = ", ".join(f"{fraction:g}" for fraction in missing)
            print(f"sft.checkpoints keeps {kept} too, so that one SFT run serves every reference", file=sys.stderr)
        title = f"{config.name}: {' x '.join(values)}"
        studies = [parse(Study, {"title": title, "config": config, "over": values}, "--over")]
        document, failure = _run_or_plan(studies, f"sweep {config.name}", places, Options(plan, as_json, debug, jobs))
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
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe or a .yaml file; lab if left out.", autocompletion=completion.recipes),
    ] = None,
    assignments: Set = [],  # noqa: B006
    jobs: Jobs = None,
    places: Place = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Where to write the results; plots go into a folder beside it."),
    ] = None,
    plan: Plan = False,
    instances: Annotated[int, typer.Option(min=1, max=10_000, help="Theory: random instances of each claim.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Theory: seed of the instances.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Reproduce a table or figure of the paper in miniature, or check its theory, with a verdict on every claim.

    The exit status is 0 also where a claim does not reproduce. Example: dpr reproduce table2 --quick --seeds 2
    """
    with reported(debug, RESUME):
        if what is Reproduced.theory:
            from dpr_core.theory.checks import table

            if recipe or assignments or jobs or places or out or plan:
                raise UsageError("theory trains nothing: it takes --instances, --seed and --json alone")
            identities = _theory(seed, instances)
            emit({"identities": _rows(identities)}, as_json, lambda: table(identities))
            return
        from flows import reproduction

        if out is not None:
            _check_out(out)
        names = [each.value for each in Reproduced] if what is Reproduced.all else [what.value]
        base = recipe or ("lab-quick" if quick else "lab")
        studies = reproduction.studies(base, assignments, names, seeds, quick)
        document, failure = _run_or_plan(
            studies, f"reproduce {what.value}", places, Options(plan, as_json, debug, jobs)
        )
        if document is not None:
            identities = _theory(seed, instances) if what is Reproduced.all else []
            _conclude(document, identities, out, as_json)
        if failure is not None:
            raise failure


def _run_or_plan(
    studies: "list[Study]", name: str, places: Sequence[str], options: Options
) -> "tuple[dict[str, Any] | None, DensePathError | None]":
    """The document of the run, none if it was only planned; and the error that names what failed, if anything did."""
    from dpr_core.config.placing import read_rules
    from flows.dispatch import dispatch_sweep
    from flows.merging import MergedStudies
    from flows.requests import SweepRequest
    from flows.run_document import IncompleteError
    from tasks.artifacts.store import Store

    request = SweepRequest(studies=studies, name=name, place=read_rules(places))
    dispatched = dispatch_sweep(request, MergedStudies.of(studies))
    try:
        return run_or_plan(Store.open(), request, dispatched, options), None
    except IncompleteError as incomplete:
        return incomplete.document, incomplete


def _check_out(file: Path) -> None:
    """Before hours of work, not after them."""
    if not file.suffix or file.is_dir():
        raise UsageError(f"--out {file}: give the name of a file, such as results.md")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {file}: {file.parent} cannot be made: {error.strerror}") from None
    check_output(file)


def _conclude(document: dict[str, Any], identities: "Sequence[Identity]", out: Path | None, as_json: bool) -> None:
    """Write the results, upload them to the parent run, and show the verdicts."""
    from dpr_core.theory.checks import table
    from flows import reproduction
    from flows.cli import experiments_view
    from tasks.artifacts.store import Store

    store = Store.open()
    file = out or store.home / "results" / document["run_id"] / "results.md"
    theory = table(list(identities)) if identities else None
    command = shlex.join(["dpr", *sys.argv[1:]])
    claims = {
        "claims": reproduction.claims_in(document),
        **({"identities": _rows(identities)} if identities else {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        for target in (Path(folder, file.name), file):
            reproduction.write(store, document, command, claims, theory, target)
        store.parent_runs.keep(document["run_id"], Path(folder), "results")
    summary = {
        **claims,
        "run_id": document["run_id"],
        "document": str(file),
        **({"failed": document["failed"]} if "failed" in document else {}),
    }
    emit(summary, as_json, lambda: experiments_view.verdicts(summary))


def _theory(seed: int, instances: int) -> "list[Identity]":
    from dpr_core.theory import checks
    from tasks.running.progress import StageProgress

    with StageProgress("theory") as progress:
        return checks.run(seed, instances, progress.advance)


def _rows(identities: "Sequence[Identity]") -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(identity) for identity in identities]
