"""The command that estimates the memory, time and cost of a run."""

from typing import Annotated

import typer

from flows.cli.console import Debug, Json, Preset, Recipe, Set, emit, reported


def plan(
    recipe: Recipe,
    gpu: Annotated[str, typer.Option(help="h200, h100, h100-pcie, a100, a100-40, l40s, a10, l4 or 4090.")] = "h100",
    gpus: Annotated[
        int | None, typer.Option(min=1, max=4096, help="How many of them; as many as the recipe has processes.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, max=10_000, help="GiB of one, where it is not the table's.")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of the peak speed that is reached, where it is known.")
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, max=2**20, help="Mean length of prompts.")] = None,
    response_tokens: Annotated[float | None, typer.Option(min=1, max=2**20, help="Mean length of responses.")] = None,
    assignments: Set = [],  # noqa: B006
    preset: Preset = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a run from scratch would need: memory by part, whether it fits, tokens, hours, judge dollars.

    Nothing is run or asked. Where a stage does not fit, the nearest settings with which it does are named, and where
    others that fit are faster, the nearest of these. Exit status 1 if a stage does not fit.

    Example: dpr plan llama-3.1-8b --gpu h200 --prompt-tokens 200 --response-tokens 250
    """
    with reported(debug):
        from dataclasses import replace

        from dpr_core.planning.hours import UTILISATION, gpu_named
        from flows import planning, recipes
        from flows.cli.plan_view import plan_view

        card = gpu_named(gpu)
        if gpu_memory is not None:
            card = replace(card, gigabytes=gpu_memory)
        config = recipes.load(recipe, assignments, preset)
        reached = planning.reached() if utilisation is None else None
        target = planning.PlanTarget(card, gpus, utilisation or UTILISATION, prompt_tokens, response_tokens, reached)
        plan = planning.plan(recipe, config, target)
        emit(plan.as_dict(), as_json, lambda: plan_view(plan))
        if not plan.fits:
            raise SystemExit(1)
