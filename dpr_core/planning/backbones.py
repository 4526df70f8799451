"""The architecture of a backbone, from its config.json alone: a local folder's, the hub's, or one known beforehand."""

from pathlib import Path

from dpr_core.config.model import Backbone, PretrainedBackbone
from dpr_core.errors import UsageError
from dpr_core.planning.architecture import PUBLISHED, Architecture, architecture_of


def architecture(backbone: Backbone) -> Architecture:
    """No weights are loaded. A local folder is looked through for what would keep it from loading."""
    if not isinstance(backbone, PretrainedBackbone):
        from dpr_core.lab.backbone import untrained

        return architecture_of(untrained(backbone)[0].config)
    from dpr_core.models.families import config_of, refuse_missing_shards

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
