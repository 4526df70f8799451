"""What a checkpoint says of itself before its weights are read."""

import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from dpr_core.errors import UsageError
from dpr_core.models.trust import INDEX
from dpr_core.planning.architecture import MODEL_TYPES


def config_of(source: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The settings of a model of one of the four families; any other is refused."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{source}: its config.json cannot be used: {reason}") from error
    if config.model_type not in MODEL_TYPES:
        raise UsageError(
            f"{source} is a model of type {config.model_type!r}; what the shapes of {', '.join(MODEL_TYPES)} take is "
            "known, and of no other"
        )
    return config


def refuse_missing_shards(folder: Path) -> None:
    """Tell of all files that a local checkpoint's index names and that are not there."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} cannot be read: {type(error).__name__}; fetch the checkpoint again") from error
    if missing := sorted(str(name) for name in named if not (folder / str(name)).is_file()):
        raise UsageError(
            f"{folder}: {len(missing)} of {len(named)} files that {INDEX} names are not there "
            f"({', '.join(missing[:3])}); fetch the checkpoint again"
        )
