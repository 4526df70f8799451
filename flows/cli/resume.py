"""Commands about interrupted work: `dpr resume`, and garbage collection by `dpr gc`."""

import re
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpr_core.errors import DensePathError, UsageError
from dpr_core.text import escape_control_lines
from flows.cli import completion
from flows.cli.console import RESUME, Debug, Json, Place, Plan, emit, reported

if TYPE_CHECKING:
    from flows.resume import Unfinished
    from tasks.artifacts.store import Store

HOURS = {"h": 1, "d": 24, "w": 7 * 24}


def resume(
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...", help="Only these, by the IDs that --plan lists.", autocompletion=completion.pipelines
        ),
    ] = None,
    plan: Plan = False,
    places: Place = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Go on with whatever was interrupted: pipelines, sweeps and single stages, the newest first.

    Each goes on in its own MLflow run. Finished stages are reused, and the stage that was cut off goes on from the
    newest state that it kept. Stages are done where they were to be, unless --place says otherwise. What failed by
    itself is gone on with only if its ID is given. Where machines share a store, what one of them left without a word
    is taken over; what was stopped there goes on by its ID. `dpr resume --plan` lists everything that is unfinished,
    and where, and runs nothing. To give the first command again does the same for that one.
    """
    with reported(debug, RESUME):
        from dpr_core.config.placing import read_rules
        from flows.cli import resume_view as view
        from flows.resume import chosen, unfinished
        from tasks.artifacts.store import Store

        place, store = read_rules(places), Store.open()
        every, elsewhere = unfinished(store)
        selected = chosen(every, ids or [])
        if plan:
            document = {
                "unfinished": [{**each.document, "goes_on": each in selected} for each in every],
                "elsewhere": [each.document for each in elsewhere],
            }
            emit(document, as_json, lambda: view.unfinished_table(every, selected, elsewhere))
            return
        if not selected:
            emit({"resumed": []}, as_json, lambda: view.unfinished_table(every, selected, elsewhere))
            return
        store.check_writable()
        _resume_all(store, selected, place, as_json, debug)


def _resume_all(
    store: "Store", selected: "list[Unfinished]", place: dict[str, str], as_json: bool, debug: bool
) -> None:
    """One after the other; the failure of one does not stop the rest."""
    from flows import embedded
    from tasks.libraries import load_torch

    requests = [each.request and each.request.placed(place) for each in selected]
    embedded.prepare(store.home, debug)
    with embedded.starting_server():
        from flows.pipeline import start

        if any(request and request.jobs == 1 and not request.places for request in requests):
            load_torch()
    documents: list[dict[str, Any]] = []
    failures: list[str] = []
    for each, request in zip(selected, requests, strict=True):
        try:
            if request is None:
                raise DensePathError(each.note)
            document = _started(each, partial(start, request))
        except DensePathError as error:
            print(escape_control_lines(f"{each.run.title}: {error}"), file=sys.stderr)
            failures.append(each.run.title)
            documents.append({"id": each.run.id, "name": each.run.name, "error": str(error)})
            continue
        documents.append({"id": each.run.id, "name": each.run.name, "document": document})
        if not as_json:
            _show(store, each, document)
    if as_json:
        emit({"resumed": documents}, True, lambda: "")
    if failures:
        raise DensePathError(f"{len(failures)} of {len(selected)} failed: {', '.join(failures)}")


def _started(each: "Unfinished", start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A pipeline goes on in its own run, unless another process has taken it meanwhile."""
    from tasks.artifacts.parent_runs import RESUMED, ParentRun

    before = RESUMED.set(each.run.id if isinstance(each.run, ParentRun) else None)
    try:
        return start()
    finally:
        RESUMED.reset(before)


def _show(store: "Store", each: "Unfinished", document: dict[str, Any]) -> None:
    from flows.cli import experiments_view, run_view
    from flows.requests import SweepRequest

    if isinstance(each.request, SweepRequest):
        emit(document, False, lambda: experiments_view.sweep_summary(store, document))
        if each.request.name.startswith("reproduce"):
            print("The verdicts and their document: give the same `dpr reproduce` again; everything is there.")
        return
    emit(document, False, lambda: run_view.run_summary(store, document))


def gc(
    plan: Annotated[bool, typer.Option("--plan", help="List what can be removed, with sizes; remove nothing.")] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also work that `dpr resume` could go on from.")
    ] = False,
    unregistered: Annotated[
        bool,
        typer.Option(
            "--unregistered",
            help="Also whole artifacts that the database does not know, as after an older mlflow.db was restored.",
        ),
    ] = False,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what has not changed for so long: 12h, 7d, 2w.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove what nobody needs: payloads of failed attempts, work left behind, stale locks, files of deleted runs.

    Never removed: finished artifacts and all that they were made from, what `dpr promote` registered, work of a
    process that lives; without --unfinished, work that `dpr resume` could go on from; without --unregistered, whole
    artifacts that the database does not know, which `dpr verify --all --register` takes back into it. Start with:
    dpr gc --plan --older-than 7d
    """
    with reported(debug):
        from flows.cli import resume_view as view
        from tasks.artifacts.store import Store
        from tasks.artifacts.unregistered import UNKNOWN_TO_MLFLOW
        from tasks.cleanup import GarbageCollector

        age = _age(older_than)
        store = Store.open()
        store.check_writable()
        collector = GarbageCollector(store, unfinished=unfinished, unregistered=unregistered, older_than=age)
        found = collector.find()
        if collector.unregistered and not unregistered:
            told = "artifact is" if len(collector.unregistered) == 1 else "artifacts are"
            print(f"{len(collector.unregistered)} {told} {UNKNOWN_TO_MLFLOW}", file=sys.stderr)
        for version in collector.promoted.values():
            print(f"artifact {version.artifact[:8]} stays: it is {version.title} in MLflow", file=sys.stderr)
        if plan or not found:
            outcome = " can be removed; nothing was."
            emit(view.pieces_document(found, False), as_json, lambda: view.pieces_table(found, store.home, outcome))
            return
        if not yes:
            if as_json or not sys.stdin.isatty():
                raise UsageError("dpr gc removes files: look at them with --plan, then say --yes")
            emit({}, False, lambda: view.pieces_table(found, store.home, "."))
            if not typer.confirm("Remove them?"):
                print("nothing was removed", file=sys.stderr)
                return
        store.parent_runs.end_dead()
        removed = collector.remove(found)
        outcome = " were removed."
        emit(view.pieces_document(removed, True), as_json, lambda: view.pieces_table(removed, store.home, outcome))


def _age(text: str | None) -> timedelta:
    if text is None:
        return timedelta(0)
    found = re.fullmatch(r"(\d{1,4})([hdw])", text.strip())
    if not found:
        raise UsageError(f"--older-than {text!r}: give a number and h, d or w, such as 12h, 7d or 2w")
    return timedelta(hours=int(found[1]) * HOURS[found[2]])
