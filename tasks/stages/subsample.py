"""Draw the demonstrations that everything else learns from, and freeze the prompt template with them."""

import logging
from collections.abc import Sequence
from typing import TypeVar, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.data import HubSourceConfig, LabSourceConfig, PromptsConfig, SubsampleConfig
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace

logger = logging.getLogger("dense_path")

Draw = TypeVar("Draw", SubsampleConfig, PromptsConfig)


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core.data.subsample import subsample, write

    # A failed draw leaves its quarantine where the user can read it; a finished one publishes it.
    quarantine = work.store.home / "quarantine" / f"{work.run.id}.jsonl"
    sample = subsample(cast(SubsampleConfig, config), work.advance, quarantine)
    write(sample, work.output)
    logger.info("subsample: %d rows with the hash %s", sample.counts.kept, sample.content_hash)
    work.run.text("content_hash.txt", f"{sample.content_hash}\n")
    work.table("samples/demonstrations.json", [row.as_dict() for row in sample.demonstrations[:16]])
    return {
        "data/rows_read": float(sample.counts.read),
        "data/rows_kept": float(sample.counts.kept),
        "data/rows_bad": float(sample.counts.bad_rows),
    }


def pin(config: Draw) -> Draw:
    from dpr_core.data.sources import fingerprint

    if config.source is None or isinstance(config.source, LabSourceConfig):
        return config
    source = config.source.model_copy(update={"content": fingerprint(config.source)})
    return config.model_copy(update={"source": source})


def preflight(configs: Sequence[SubsampleConfig | PromptsConfig], planning: bool = False) -> None:
    """A dataset of the hub that cannot be read is better known within seconds."""
    from dpr_core import hub
    from dpr_core.files import expanded

    sources = [config.source for config in configs if isinstance(config.source, HubSourceConfig)]
    for name, revision in dict.fromkeys((source.name, source.revision) for source in sources):
        if not expanded(name).exists():
            hub.check("dataset", name, revision, "subsample.source.name")


def describe(config: StageConfig) -> str:
    data = cast(SubsampleConfig, config)
    return f"Up to {data.size:,} demonstrations from {data.source.type} (seed {data.seed})."


STAGE = Stage(
    name="subsample", version=1, config=SubsampleConfig, body=body, describe=describe, pin=pin, preflight=preflight
)
