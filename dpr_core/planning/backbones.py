"""The architecture of a backbone, from its config.json alone: a local folder's, the hub's, or one known beforehand."""

from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.config.model import Backbone, PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.planning.architecture import MODEL_TYPES, PUBLISHED, Architecture, architecture_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def architecture(backbone: Backbone) -> Architecture:
    """No weights are loaded. A local folder is looked through for what would keep it from loading."""
    if not isinstance(backbone, PretrainedBackboneConfig):
        from dpr_core.lab.backbone import untrained

        return architecture_of(untrained(backbone)[0].config)
    from dpr_core.models.trust import refuse_missing_shards

    folder = Path(backbone.name).expanduser()
    if folder.is_dir():
        refuse_missing_shards(folder)
        return architecture_of(config_of(folder))
    if backbone.name in PUBLISHED:
        return PUBLISHED[backbone.name]
    try:
        return architecture_of(config_of(backbone.name, backbone.revision))
    except UsageError as error:
        raise UsageError(f"{error}; known without a look at it: {', '.join(PUBLISHED)}") from error


def config_of(source: str | Path, revision: str | None = None) -> "PreTrainedConfig":
    """The settings of a model of one of the four families; any other is refused."""
    from transformers import AutoConfig

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
