"""The command that makes an SFT artifact of checkpoints that were trained elsewhere."""

from typing import Annotated

import typer

from flows.cli import completion
from flows.cli.console import RESUME, Debug, Force, Json, Plan, Set, emit, reported


def import_checkpoints(
    final: Annotated[
        str,
        typer.Argument(
            metavar="FINAL",
            help="The end of the SFT run: a folder, or a hub id (ID@REVISION).",
            autocompletion=completion.folders,
        ),
    ],
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="An earlier checkpoint of the same run, best about half-way.",
            autocompletion=completion.folders,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The demonstrations it learned from: a JSONL, CSV or Parquet file, or a hub dataset."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Take demonstrations, template, lengths and number type of this recipe.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What the run started from; of LoRA adapters, what they name themselves.",
            autocompletion=completion.folders,
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            min=1e-6, max=1 - 1e-6, help="The share of the run that REFERENCE has seen, where nothing says it."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="What the run is called in MLflow.")] = "import",
    assignments: Set = [],  # noqa: B006
    plan: Plan = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an SFT artifact of two checkpoints that HF's Trainer, TRL, axolotl or LLaMA-Factory left you.

    Whole models or LoRA adapters, safetensors only, of one tokenizer, one architecture and one run, as far as
    trainer_state.json says. Go on with: dpr run RECIPE --sft ID

    Example: dpr import out/checkpoint-200 out/checkpoint-100 --data demonstrations.jsonl
    """
    with reported(debug, RESUME):
        from flows.cli.run import Options, run_or_plan
        from flows.cli.run_view import run_summary
        from flows.dispatch import dispatch
        from flows.importing import import_request
        from tasks.artifacts.store import Store

        request = import_request(
            final,
            reference,
            data=data,
            recipe=recipe,
            backbone=backbone,
            fraction=fraction,
            name=name,
            assignments=assignments,
        ).model_copy(update={"force": force})
        store = Store.open()
        document = run_or_plan(store, request, dispatch(request, store), Options(plan, as_json, debug))
        if document is not None:
            emit(document, as_json, lambda: run_summary(store, document))
