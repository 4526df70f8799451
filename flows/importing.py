"""Import of checkpoints that were trained elsewhere, as an SFT artifact; recipes on an SFT artifact that there is."""

import logging
from collections.abc import Sequence
from typing import Any

from dpr_core.config.base import parse
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.reward import RewardConfig
from dpr_core.config.training import CheckpointConfig, ImportedConfig, SFTConfig
from dpr_core.errors import UsageError
from dpr_core.files import data_file, expanded
from dpr_core.hashing import CHECKPOINT_FILES
from flows import recipes
from flows.requests import ImportRequest
from tasks.artifacts.run_records import wrong_stage
from tasks.artifacts.store import Store

logger = logging.getLogger("dense_path")

SECTIONS = ("seed", "backbone", "subsample", "sft")
"""What an import has of a recipe."""

UNKNOWN_FRACTION = 0.5
"""The paper's reference, where no trainer says which share of the run it has seen."""


def import_request(
    final: str,
    reference: str,
    *,
    data: str | None = None,
    recipe: str | None = None,
    backbone: str | None = None,
    fraction: float | None = None,
    name: str = "import",
    assignments: Sequence[str] = (),
) -> ImportRequest:
    """Both checkpoints examined, and what could not be verified of them logged."""
    from dpr_core.models.imported import base_of, examine, folder_of

    if data is None and recipe is None:
        raise UsageError(
            "say what these checkpoints were trained on, whose prompts REINFORCE samples for: --data FILE (or a hub "
            "dataset), or --recipe RECIPE, whose demonstrations and template are taken"
        )
    for change in assignments:
        if change.partition("=")[0].partition(".")[0] not in SECTIONS:
            raise UsageError(f"--set {change.partition('=')[0]}: an import has settings of {', '.join(SECTIONS)} alone")
    imported = ImportedConfig(final=_checkpoint(final), reference=_checkpoint(reference))
    base = None
    if backbone is not None:
        base = _checkpoint(backbone, ["config.json"])
    elif (found := base_of(folder_of(imported.final))) is not None:
        base = _checkpoint("@".join(filter(None, found)), ["config.json"])
        logger.info("adapters of %s, as they say themselves; --backbone names another", base.name)
    values: dict[str, Any] = {} if recipe is None else recipes.values(recipe)
    values = {section: values[section] for section in SECTIONS if section in values}
    values["backbone"] = _backbone(values.get("backbone"), base or imported.final)
    if data is not None:
        kind = {"type": "file", "path": data} if data_file(data).is_file() else {"type": "hub", "name": data}
        values["subsample"] = {**values.get("subsample", {}), "source": kind}
    lengths = ("seed", "max_prompt_tokens", "max_response_tokens")
    values["sft"] = {key: value for key, value in values.get("sft", {}).items() if key in lengths}
    config = recipes.load({**values, "name": name}, assignments)
    if not isinstance(config.backbone, PretrainedBackboneConfig):
        raise UsageError("--set backbone.type: checkpoints from elsewhere are no networks of the lab's")
    pair = examine(imported, config.backbone)
    for doubt in pair.doubts:
        logger.warning("%s", doubt)
    share = _fraction(pair.fraction, fraction)
    settings = {**config.sft.model_dump(mode="json"), "checkpoints": [share, 1.0]}
    given = {"backbone": config.backbone.model_dump(mode="json"), "imported": imported.model_dump(mode="json")}
    return ImportRequest(name=config.name, subsample=config.subsample, sft=parse(SFTConfig, settings | given, "sft"))


def on_sft(store: Store, artifact: str, recipe: recipes.Recipe) -> dict[str, Any]:
    """A recipe's settings with backbone, demonstrations and SFT those of an artifact, which is then reused."""
    record = store.record(artifact)
    if problem := wrong_stage(record.title, record.stage, ("sft",)):
        raise UsageError(f"--sft: {problem}")
    values, sft = recipes.values(recipe), parse(SFTConfig, record.config, record.title)
    values["sft"] = {**record.config, "backbone": None}
    values["backbone"] = record.config["backbone"] or store.record(record.inputs["backbone"]).config
    values["subsample"] = store.record(record.inputs["data"]).config
    logger.info("backbone, demonstrations and SFT are those of %s; all else is the recipe's", record.title)
    if sft.imported is not None:
        reward, kept = values.get("reward") or {}, sft.checkpoints[0]
        asked = reward.get("reference", RewardConfig().reference)
        if isinstance(asked, float) and asked not in (0.0, kept):
            logger.info("reward.reference is %g, the one checkpoint that was imported beside the end", kept)
            values["reward"] = {**reward, "reference": kept}
    return values


def _checkpoint(given: str, patterns: Sequence[str] = CHECKPOINT_FILES) -> CheckpointConfig:
    """A folder by its absolute path; a model of the hub, given as ID or ID@REVISION, by the commit that is fetched."""
    from dpr_core.models.imported import folder_of

    if (folder := expanded(given)).is_dir():
        return CheckpointConfig(name=str(folder.resolve()))
    name, _, revision = given.partition("@")
    checkpoint = parse(CheckpointConfig, {"name": name, "revision": revision or None}, given)
    return checkpoint.model_copy(update={"revision": folder_of(checkpoint, patterns).name})


def _backbone(section: Any, base: CheckpointConfig) -> dict[str, Any]:
    """The model that was trained, computed as the recipe says where it has a pretrained one."""
    own = section if isinstance(section, dict) and section.get("type", "pretrained") == "pretrained" else {}
    how = {key: own[key] for key in ("dtype", "attention") if key in own}
    return {"type": "pretrained", "name": base.name, "revision": base.revision, **how}


def _fraction(known: float | None, said: float | None) -> float:
    if known is None:
        if said is None:
            logger.warning("the reference is taken for %g of the run; --fraction says another share", UNKNOWN_FRACTION)
        return said or UNKNOWN_FRACTION
    if said is not None and said != known:
        raise UsageError(f"--fraction {said:g}: by what its trainer wrote the reference is at {known:g} of the run")
    if abs(known - UNKNOWN_FRACTION) > 0.1:
        logger.warning("the reference is at %g of the run; the paper's is at half of it", known)
    return known
