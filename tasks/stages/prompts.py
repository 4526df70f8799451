"""Draw prompts for REINFORCE that are an input of their own, and count how many of them SFT has seen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.data import PromptsConfig, SubsampleConfig
from dpr_core.errors import DensePathError
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace
from tasks.stages import subsample as demonstrations

logger = logging.getLogger("dense_path")

ANOTHER_DRAW = 2**30
"""Added to the seed: from the source of SFT's rows prompts are another sample, and the lab writes other ones."""


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core.data.subsample import read, subsample, write

    settings = cast(PromptsConfig, config)
    learned = read(work.input("data").path)
    draw = settings.model_copy(update={"seed": (settings.seed + ANOTHER_DRAW) % 2**31})
    with _named():
        sample = subsample(draw, work.advance, work.store.home / "quarantine" / f"{work.run.id}.jsonl", learned)
    write(sample, work.output)
    overlap = sample.overlap(learned)
    logger.info("prompts: %d rows, %.1f%% of them seen by SFT", sample.counts.kept, 100 * overlap)
    work.table("samples/prompts.json", [row.as_dict() for row in sample.demonstrations[:16]])
    return {
        "data/rows_read": float(sample.counts.read),
        "data/rows_kept": float(sample.counts.kept),
        "data/rows_bad": float(sample.counts.bad_rows),
        "data/prompt_overlap": overlap,
    }


@contextmanager
def _named() -> Iterator[None]:
    """What an error advises names this section, and not that of the demonstrations."""
    try:
        yield
    except DensePathError as error:
        raise type(error)(str(error).replace("--set subsample.", "--set prompts.")) from error


def pin(config: PromptsConfig) -> PromptsConfig:
    with _named():
        return demonstrations.pin(config)


def preflight(configs: Sequence[PromptsConfig], planning: bool = False) -> None:
    with _named():
        demonstrations.preflight(configs, planning)


def settle(config: PromptsConfig, inputs: Mapping[str, Mapping[str, Any]]) -> PromptsConfig:
    """Without a source, that of the demonstrations."""
    if config.source is not None:
        return config
    return config.model_copy(update={"source": SubsampleConfig.model_validate(inputs["data"]).source})


def describe(config: StageConfig) -> str:
    prompts = cast(PromptsConfig, config)
    source = "the source of SFT's rows" if prompts.source is None else prompts.source.type
    share = "" if prompts.overlap is None else f", {prompts.overlap:.0%} of them seen by SFT"
    return f"Up to {prompts.size:,} prompts for REINFORCE from {source}{share} (seed {prompts.seed})."


STAGE = Stage(
    name="prompts",
    version=1,
    config=PromptsConfig,
    inputs={"data": ("subsample",)},
    body=body,
    describe=describe,
    pin=pin,
    settle=settle,
    preflight=preflight,
)
