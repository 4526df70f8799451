"""Shell completion of recipes, stages, IDs and settings; each imports no more than it has to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

Offer = Iterator[tuple[str, str]]
"""What may stand there, and what it is."""

SHORT = 8
"""Digits of an ID, here and in tables."""
STAGE_OF = {"score": "reward", "run": "sft"}
"""Commands that take artifacts of one stage."""


def _silent(offered: Callable[[typer.Context, str], Offer]) -> Callable[..., list[tuple[str, str]]]:
    """Whoever presses a key is told nothing of a store that is locked, or of half a command."""

    def offer(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        try:
            return list(offered(ctx, incomplete))
        except Exception:
            return []

    return offer


@_silent
def recipes(ctx: typer.Context, incomplete: str) -> Offer:
    for file in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")):
        yield file.stem, ""


@_silent
def folders(ctx: typer.Context, incomplete: str) -> Offer:
    above, _, start = incomplete.rpartition("/")
    for path in sorted(Path(f"{above}/" if incomplete.startswith("/") else above).glob(f"{start}*")):
        if path.is_dir():
            yield f"{path}/", ""


@_silent
def stages(ctx: typer.Context, incomplete: str) -> Offer:
    from dpr_core.config.placing import STAGE_NAMES

    for name in STAGE_NAMES:
        yield name, ""


@_silent
def presets(ctx: typer.Context, incomplete: str) -> Offer:
    from dpr_core.config.presets import PRESETS

    for name in PRESETS:
        yield name, ""


@_silent
def ids(ctx: typer.Context, incomplete: str) -> Offer:
    """Of artifacts and pipelines, shortened as far as tables shorten them."""
    from tasks.artifacts.known_ids import known

    for each in known(incomplete, STAGE_OF.get(ctx.info_name or "")):
        what = each.name if each.stage in (None, each.name) else f"{each.stage}, {each.name}"
        said = f"{what}, {each.status}, {each.started:%Y-%m-%d %H:%M}"
        yield each.id[: max(SHORT, len(incomplete))] if len(incomplete) <= SHORT else each.id, said


@_silent
def pipelines(ctx: typer.Context, incomplete: str) -> Offer:
    """Those that are unfinished."""
    from tasks.artifacts.known_ids import known

    for each in known(incomplete):
        if each.stage is None and each.status != "finished":
            yield each.id[:SHORT], f"{each.name}, {each.status}, {each.started:%Y-%m-%d %H:%M}"


@_silent
def registered(ctx: typer.Context, incomplete: str) -> Offer:
    """Models with their aliases, as `dpr promote` takes them."""
    from tasks.artifacts.known_ids import known_models

    for name, alias, version in known_models():
        yield f"{name}@{alias}", f"version {version}"


@_silent
def fields(ctx: typer.Context, incomplete: str) -> Offer:
    """The settings of a recipe, or those of the stage of an artifact that is named before."""
    from dpr_core.config.base import paths

    every = paths(_settings(ctx))
    sections = {path[:-1] for path in every}
    for path in every:
        if path not in sections:
            yield f"{'.'.join(path)}=", ""


def _settings(ctx: typer.Context) -> Any:
    from dpr_core.config.evaluation import JudgeConfig, RateConfig
    from dpr_core.config.pipeline import PipelineConfig

    if ctx.info_name != "rerun":
        return {"judge": JudgeConfig, "rate": RateConfig}.get(ctx.info_name or "", PipelineConfig)
    from tasks.artifacts.known_ids import known
    from tasks.registry import stage_named

    # Where an option lacks its value, words after the command are left where they were.
    given = ctx.params["artifact"] or ctx.args[0]
    [stage] = {each.stage for each in known(given.removeprefix("runs:/"))}
    return stage_named(str(stage)).config
