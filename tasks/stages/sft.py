"""Supervised fine-tuning, keeping the weights at the configured fractions of the run."""

import json
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.training import CheckpointConfig, ImportedConfig, SFTConfig
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import Lineage


def body(config: StageConfig, work: Work) -> dict[str, float]:
    import torch

    from dpr_core.data.demonstrations import encode_demonstrations
    from dpr_core.errors import UsageError
    from dpr_core.models.checkpoints import load_backbone, load_model, load_tokenizer, save
    from dpr_core.models.lora import add_adapters
    from dpr_core.models.policy import Policy
    from dpr_core.training.sft_loop import fine_tune, total_steps
    from dpr_core.training.trainer import Trainer

    sft = cast(SFTConfig, config)
    data = work.input("data")
    lineage = Lineage(work.store)
    if sft.imported is not None:
        return _take(sft, sft.imported, work)
    if sft.backbone is not None and "backbone" in work.inputs:
        raise UsageError("sft has two backbones: leave `backbone` of its settings empty, or give no backbone artifact")
    if sft.backbone is not None:
        model, tokenizer = load_backbone(sft.backbone)
    elif "backbone" in work.inputs:
        folder = work.input("backbone").path / "model"
        model, tokenizer = load_model(folder), load_tokenizer(folder)
    else:
        raise UsageError(
            "sft has no backbone: set `backbone` to a pretrained one, or give a backbone artifact as input"
        )
    renderer = lineage.renderer(data)
    renderer.end_turns(model, tokenizer)
    if sft.lora is not None:
        add_adapters(model, sft.lora, sft.seed)
    rows = lineage.demonstrations(data)
    encoded = encode_demonstrations(tokenizer, renderer, rows, sft.max_prompt_tokens, sft.max_response_tokens)
    activations = getattr(torch, sft.backbone.dtype) if sft.backbone else torch.float32
    execution = sft.execution
    policy = Policy(
        model, execution.logits_per_chunk, activations, execution.packing, tf32_head=execution.tf32_head
    ).round_frozen()
    policy.check_length(max(len(sequence) for sequence in encoded.sequences))
    trainer = Trainer(policy, sft, total_steps(len(encoded.sequences), sft), sft.execution, recorder=work)

    def keep(part: float | Literal["ema"]) -> None:
        save(model, tokenizer, work.output / "checkpoints" / str(part))

    return fine_tune(trainer, encoded.sequences, sft, keep, work) | encoded.counts()


def _take(sft: SFTConfig, imported: ImportedConfig, work: Work) -> dict[str, float]:
    """Two checkpoints of a run that was done elsewhere, examined and kept as those of a run here are."""
    from dpr_core.data.demonstrations import encode_demonstrations
    from dpr_core.errors import UsageError
    from dpr_core.models.checkpoints import save
    from dpr_core.models.imported import examine, load, tokenizer_of

    if sft.backbone is None or "backbone" in work.inputs:
        raise UsageError("sft.imported needs `backbone` in its settings: how the networks are computed; see dpr import")
    fraction, data = sft.checkpoints[0], work.input("data")
    pair = examine(imported, sft.backbone)
    if pair.fraction is not None and pair.fraction != fraction:
        raise UsageError(
            f"sft.checkpoints says that the reference is at {fraction:g} of the run, and its trainer that it is at "
            f"{pair.fraction:g}: set 'checkpoints=[{pair.fraction:g}, 1.0]'"
        )
    told = {"fraction": pair.fraction, "unverified": pair.doubts}
    (work.output / "imported.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    tokenizer = tokenizer_of(imported, sft.backbone)
    lineage = Lineage(work.store)
    renderer = lineage.renderer(data)
    for part, checkpoint in ((1.0, imported.final), (fraction, imported.reference)):
        model, dtype = load(checkpoint, sft.backbone, len(tokenizer))
        renderer.end_turns(model, tokenizer)
        save(model.to(dtype), tokenizer, work.output / "checkpoints" / str(part))
    rows = lineage.demonstrations(data)
    return encode_demonstrations(tokenizer, renderer, rows, sft.max_prompt_tokens, sft.max_response_tokens).counts()


def pinned(backbone: PretrainedBackboneConfig | None) -> PretrainedBackboneConfig | None:
    """A backbone from a local folder is pinned by its content, as one from the hub is by its revision."""
    from dpr_core.files import expanded
    from dpr_core.hashing import hash_model

    if backbone is None or not (folder := expanded(backbone.name)).is_dir():
        return backbone
    return backbone.model_copy(update={"content": hash_model(folder, backbone.gguf_file)})


def pin(config: SFTConfig) -> SFTConfig:
    if config.imported is None:
        return config.model_copy(update={"backbone": pinned(config.backbone)})
    final, reference = map(_pinned_checkpoint, (config.imported.final, config.imported.reference))
    backbone = config.backbone if config.imported.hides(config.backbone) else pinned(config.backbone)
    return config.model_copy(
        update={"backbone": backbone, "imported": ImportedConfig(final=final, reference=reference)}
    )


def _pinned_checkpoint(checkpoint: CheckpointConfig) -> CheckpointConfig:
    from dpr_core.files import expanded
    from dpr_core.hashing import CHECKPOINT_FILES, hash_folder

    if not (folder := expanded(checkpoint.name)).is_dir():
        return checkpoint
    return checkpoint.model_copy(update={"content": hash_folder(folder, CHECKPOINT_FILES)})


def check_backbones(backbones: Iterable[PretrainedBackboneConfig | None], setting: str) -> None:
    """Refuse what the hub would not give, of those that are no local folders."""
    from dpr_core import hub
    from dpr_core.files import expanded

    named = dict.fromkeys((each.name, each.revision, each.gguf_file) for each in backbones if each is not None)
    if any(gguf_file for _, _, gguf_file in named):
        from dpr_core.models.gguf_files import require_reader

        require_reader()
    for name, revision, gguf_file in named:
        if not expanded(name).is_dir():
            hub.check("model", name, revision, setting, gguf_file or "config.json")


def preflight(configs: Sequence[SFTConfig], planning: bool = False) -> None:
    """A backbone that cannot be had is better known before the data is read."""
    check_backbones([config.backbone for config in configs], "backbone.name")


def describe(config: StageConfig) -> str:
    sft = cast(SFTConfig, config)
    if sft.imported is not None:
        return (
            f"Imported: {sft.imported.final.name}, the end of a run that was done elsewhere, and "
            f"{sft.imported.reference.name} at {sft.checkpoints[0]:g} of it."
        )
    kept = ", ".join(f"{fraction:g}" for fraction in sft.checkpoints) + (", ema" if sft.ema_decay else "")
    return (
        f"Supervised fine-tuning: {sft.epochs} pass(es), learning rate {sft.learning_rate:g}, batches of "
        f"{sft.batch_size}; weights kept at {kept} of the run (seed {sft.seed})."
    )


STAGE = Stage(
    name="sft",
    version=1,
    config=SFTConfig,
    inputs={"data": ("subsample",), "backbone": ("backbone",)},
    optional=frozenset({"backbone"}),
    body=body,
    shared=True,
    describe=describe,
    pin=pin,
    preflight=preflight,
)
