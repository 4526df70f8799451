"""Commands about artifacts that are there: list, show, check, write out, score."""

from pathlib import Path
from typing import Annotated

import typer

from dpr_core.errors import UsageError
from flows.console import Debug, Identifier, Json, emit, reported


def artifacts(
    stage: Annotated[str | None, typer.Option(help="Only those of one stage.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what has been made, newest first."""
    with reported(debug):
        from flows import show
        from tasks.table import stage_named
        from tasks.tracking import Store

        records = Store.open().records(stage_named(stage).name if stage else None)
        emit([show.record_document(record) for record in records], as_json, lambda: show.record_table(records))


def show(artifact: Identifier, as_json: Json = False, debug: Debug = False) -> None:
    """Show one artifact: settings, what it was made from, what it was used for, metrics and files."""
    with reported(debug):
        from flows import show as view
        from tasks.tracking import Store

        store = Store.open()
        record = store.record(artifact)
        document = view.artifact_document(store, record)
        emit(document, as_json, lambda: view.artifact_view(store, record, document))


def verify(
    artifact: Annotated[str | None, typer.Argument(metavar="[ID]", help="One artifact.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every finished artifact.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hash every file of an artifact again and compare. Exit status 1 if anything is wrong."""
    with reported(debug):
        from flows import show as view
        from tasks.tracking import Store

        if (artifact is None) == (not everything):
            raise UsageError("give one artifact ID, or --all")
        store = Store.open()
        records = [r for r in store.records() if r.finished] if artifact is None else [store.record(artifact)]
        checked = [(record, store.verify(record.id)) for record in records]
        emit(view.verification_document(checked), as_json, lambda: view.verification_table(checked))
        if any(problems for _, problems in checked):
            raise SystemExit(1)


def export(
    artifact: Identifier,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    part: Annotated[
        str | None, typer.Option(help="sft or ref for a reward; a kept fraction such as 0.50 for an SFT run.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model as a plain Hugging Face checkpoint, which from_pretrained loads."""
    with reported(debug):
        from tasks.export import export_checkpoint
        from tasks.tracking import Store

        written = export_checkpoint(Store.open(), artifact, folder, part)
        emit(written, as_json, lambda: f"{written['checkpoint']} -> {written['folder']}")


def score(
    reward: Identifier,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.jsonl]", help="Rows with prompt and response.")] = None,
    text: Annotated[
        tuple[str, str] | None, typer.Option(metavar="PROMPT RESPONSE", help="One prompt and one response.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="OUT", help="Also write a self-contained page.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the reward of every token of given text (the paper's Figure 1): red is high, blue is low.

    With --json: one document for --text; one line a row for a file. Positions count from the start of the response.
    """
    with reported(debug):
        from flows.score import given_texts, score_texts
        from tasks.tracking import Store

        texts = given_texts(file, text)
        score_texts(Store.open(), reward, texts, html, as_json)
