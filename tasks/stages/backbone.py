"""Build the lab's tiny backbone. Pretrained backbones need no such stage."""

from typing import cast

from dpr_core.config.base import StageConfig
from dpr_core.config.model import LabBackboneConfig
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core.models.checkpoints import save
    from dpr_core.training.lab_backbone import train

    model, tokenizer, metrics = train(cast(LabBackboneConfig, config), work)
    save(model, tokenizer, work.output / "model")
    return metrics


def describe(config: StageConfig) -> str:
    lab = cast(LabBackboneConfig, config)
    return (
        f"A {lab.family} network of {lab.layers} layers, width {lab.width}, taught {lab.task.summary}, "
        f"then blended with careless answers (seed {lab.seed})."
    )


STAGE = Stage(name="backbone", version=1, config=LabBackboneConfig, body=body, describe=describe)
