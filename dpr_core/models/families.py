"""What may be loaded: whole checkpoints of the four families."""

import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from dpr_core.errors import UsageError
from dpr_core.models.trust import INDEX, settings
from dpr_core.planning.architecture import MODEL_TYPES


def config_of(source: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The settings of a model of one of the four families; any other is refused."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{source}: its config.json cannot be used: {reason}") from error
    refuse_another(config.model_type, source)
    return config


def refuse_another(kind: str | None, source: str | Path) -> None:
    if kind not in MODEL_TYPES:
        raise UsageError(
            f"{source} is a model of type {kind!r}; only {', '.join(MODEL_TYPES)} are loaded, on which the method is "
            "tested: what others do differently, such as capping their logits, would make log-probs wrong in silence"
        )


def refuse_other_families(source: str | Path, revision: str | None) -> None:
    """Before any weights are read. What cannot be read at all, the loading tells of."""
    if kind := settings(str(source), "config.json", revision).get("model_type"):
        refuse_another(kind, source)


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
