"""Checkpoints of other trainers (HF Trainer, TRL, axolotl, LLaMA-Factory): whether two are of one run; their weights.

Two full models or two LoRA adapters of one base. Read are safetensors, config, tokenizer, and `trainer_state.json`.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from dpr_core import hub
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.training import CheckpointConfig, ImportedConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import expanded
from dpr_core.hashing import CHECKPOINT_FILES, hash_folder, refuse_changed
from dpr_core.models.checkpoints import (
    INDEX,
    PICKLES,
    WEIGHTS,
    check_network,
    load_backbone,
    load_model,
    load_tokenizer,
    refuse_missing_shards,
    refuse_unsafe,
)
from dpr_core.models.lora import merged_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER, ADAPTER_WEIGHTS, STATE = "adapter_config.json", "adapter_model.safetensors", "trainer_state.json"

NO_DIFFERENCE = {"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"}
"""Fields of config.json that do not say what is computed. The type of the weights is read off the weights."""

DIGITS = 6
"""Of the share of a run."""


@dataclass(frozen=True)
class Pair:
    """What is known of two checkpoints that fit each other."""

    fraction: float | None
    """The share of the run that the reference has seen; None where no trainer's state says."""
    doubts: tuple[str, ...]
    """What could not be verified, in sentences."""


def folder_of(checkpoint: CheckpointConfig, patterns: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """The folder on this machine that holds a checkpoint, of which files of these patterns are fetched where it comes
    from the hub: a folder that is named by the commit."""
    name, revision = checkpoint.name, checkpoint.revision
    folder = expanded(name)
    if folder.is_dir():
        return folder
    if checkpoint.content is not None or name.startswith(("/", ".", "~")):
        raise UsageError(f"there is no folder {name}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:
        refusal = hub.refusal(error, "model", name, revision, None, "or name a folder that is there")
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise refusal or DensePathError(f"{name} is no folder here, and the hub does not give it: {reason}") from None


def base_of(folder: Path) -> tuple[str, str | None] | None:
    """Name and revision of the model that adapters were trained on; None where the folder holds a full model."""
    if not (folder / ADAPTER).is_file():
        return None
    adapter = _json(folder / ADAPTER)
    if not isinstance(base := adapter.get("base_model_name_or_path"), str) or not base:
        raise UsageError(f"{folder / ADAPTER} does not name its base_model_name_or_path; give --backbone")
    revision = adapter.get("revision")
    return base, revision if isinstance(revision, str) else None


def examine(imported: ImportedConfig, backbone: PretrainedBackboneConfig) -> Pair:
    """UsageError unless two checkpoints have one tokenizer, one architecture and one type of numbers, are of one run as
    far as that can be told, and differ."""
    final, reference = folder_of(imported.final), folder_of(imported.reference)
    adapted = [base_of(folder) is not None for folder in (final, reference)]
    for folder in (final, reference):
        _check_kind(folder)
    if adapted[0] != adapted[1]:
        raise UsageError(
            f"{(final, reference)[adapted[1]]} holds adapters and {(final, reference)[adapted[0]]} a whole model; give "
            "two of a kind"
        )
    file = ADAPTER if adapted[0] else "config.json"
    _check_same_settings(_json(final / file), _json(reference / file), final, reference, file)
    _check_same_shapes(final, reference)
    _check_same_tokenizer(final, reference, imported, backbone)
    if _same_weights(final, reference):
        raise UsageError(
            f"{final} and {reference} hold the same weights, so that the reward would be 0 everywhere; give the end of "
            "the run and an earlier checkpoint of it"
        )
    return _of_one_run(final, reference)


def load(
    checkpoint: CheckpointConfig, backbone: PretrainedBackboneConfig, tokens: int
) -> "tuple[PreTrainedModel, torch.dtype]":
    """The weights of a checkpoint, with adapters merged into its backbone, and the type to keep them in: that which
    holds them all without loss."""
    folder = folder_of(checkpoint)
    if base_of(folder) is None:
        model, kept = load_model(folder, attention=backbone.attention), torch.float32
        # float32 is what trainers compute updates in, and what is kept of anything else than one narrower type.
        if len(types := {dtype for dtype, _ in _tensors(folder).values()}) == 1:
            kept = {"BF16": torch.bfloat16, "F16": torch.float16}.get(types.pop(), torch.float32)
    else:
        model, kept = load_backbone(backbone)[0], torch.float32
        model = merged_adapters(model, folder, load_file(folder / ADAPTER_WEIGHTS))
    check_network(model, tokens, checkpoint.name)
    if checkpoint.content is not None:
        refuse_changed(checkpoint.name, checkpoint.content, hash_folder(folder, CHECKPOINT_FILES))
    return model, kept


def tokenizer_of(imported: ImportedConfig, backbone: PretrainedBackboneConfig) -> "PreTrainedTokenizerBase":
    """That of the end of the run, or of the backbone where trainers saved none beside their adapters."""
    folder = folder_of(imported.final)
    if _has_tokenizer(folder):
        return load_tokenizer(folder)
    if imported.hides(backbone):
        raise UsageError(
            f"{folder} holds no tokenizer; give the model that the run started from, whose tokenizer it has: --backbone"
        )
    local = expanded(backbone.name)
    return load_tokenizer(local if local.is_dir() else backbone.name, revision=backbone.revision)


def _check_kind(folder: Path) -> None:
    """UsageError, with what to do, for a folder that holds no weights that are read here."""
    names = {path.name for path in folder.iterdir()}
    if ADAPTER_WEIGHTS in names if ADAPTER in names else names & {WEIGHTS, INDEX}:
        if ADAPTER not in names:
            refuse_unsafe(str(folder), None)
            refuse_missing_shards(folder)
        return
    shards = sorted(name for name in names if name.startswith("pytorch_model_fsdp_"))
    quoted = shlex.quote(str(folder))
    if shards:
        raise UsageError(
            f"{folder} holds shards of FSDP ({shards[0]}), which other numbers of processes cannot read; put them "
            f"together first: accelerate merge-weights {shlex.quote(str(folder / shards[0]))} {quoted}"
        )
    if "zero_to_fp32.py" in names:
        raise UsageError(
            f"{folder} holds shards of DeepSpeed (zero_to_fp32.py is there); put them together first, where you trust "
            f"them: cd {quoted} && python zero_to_fp32.py . . --safe_serialization"
        )
    if pickles := sorted(name for name in names if Path(name).suffix in PICKLES and "model" in name):
        auto = "peft.AutoPeftModelForCausalLM" if ADAPTER in names else "transformers.AutoModelForCausalLM"
        package = auto.partition(".")[0]
        raise UsageError(
            f"{folder} holds no safetensors, but {', '.join(pickles[:3])}: a pickle, which can run code as it is "
            "opened, and which is never opened here. Convert it where you trust it: python -c "
            f"\"import {package}; {auto}.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    if inside := sorted(name for name in names if name.startswith("checkpoint-")):
        raise UsageError(f"{folder} holds no model itself; name one of its checkpoints: {', '.join(inside[:5])}")
    raise UsageError(f"{folder} holds no model: neither {WEIGHTS} nor {INDEX} nor {ADAPTER_WEIGHTS} is there")


def _check_same_settings(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], final: Path, reference: Path, file: str
) -> None:
    different = sorted(
        name for name in (ours.keys() | theirs.keys()) - NO_DIFFERENCE if ours.get(name) != theirs.get(name)
    )
    if different:
        name = different[0]
        more = f" (and so do {', '.join(different[1:4])})" if different[1:] else ""
        raise UsageError(
            f"{final} and {reference} are of two models: {name} of {file} is {_short(ours.get(name))} in the first and "
            f"{_short(theirs.get(name))} in the second{more}; give two checkpoints of one run"
        )


def _check_same_shapes(final: Path, reference: Path) -> None:
    ours, theirs = _tensors(final), _tensors(reference)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if not different:
        return
    name = different[0]
    found = [f"{each[name][0]} of {list(each[name][1])}" if name in each else "missing" for each in (ours, theirs)]
    of_types = all(name in ours and name in theirs and ours[name][1] == theirs[name][1] for name in different)
    raise UsageError(
        f"{final} and {reference} do not fit each other in {len(different)} of {len(ours)} weights: {name} is "
        f"{found[0]} in the first and {found[1]} in the second; "
        + (
            "what one of them lost by rounding would be taken for what was learned: save both in one type"
            if of_types
            else "give two checkpoints of one run"
        )
    )


def _check_same_tokenizer(
    final: Path, reference: Path, imported: ImportedConfig, backbone: PretrainedBackboneConfig
) -> None:
    ours = tokenizer_of(imported, backbone)
    if not _has_tokenizer(reference):
        return
    theirs = load_tokenizer(reference)
    if different := {token for token, _ in theirs.get_vocab().items() ^ ours.get_vocab().items()}:
        what = f"vocabularies of {len(ours)} and {len(theirs)} tokens, of which {len(different)} differ"
    elif ours.special_tokens_map != theirs.special_tokens_map:
        what = f"special tokens: {_short(ours.special_tokens_map)} and {_short(theirs.special_tokens_map)}"
    elif ours.chat_template != theirs.chat_template:
        what = "chat templates"
    elif _rules(ours) != _rules(theirs):
        what = "rules by which text becomes tokens (tokenizer.json)"
    else:
        return
    raise UsageError(f"{final} and {reference} have two tokenizers, with other {what}; give two checkpoints of one run")


def _rules(tokenizer: "PreTrainedTokenizerBase") -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # What a trainer last cut and padded texts to is no part of what the tokens are.
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}


def _same_weights(final: Path, reference: Path) -> bool:
    ours, theirs = _files_of(final), _files_of(reference)
    for name in sorted(ours):
        with safe_open(ours[name], framework="pt") as one, safe_open(theirs[name], framework="pt") as other:
            if not torch.equal(one.get_tensor(name), other.get_tensor(name)):
                return False
    return True


def _of_one_run(final: Path, reference: Path) -> Pair:
    ours, theirs = _state(final), _state(reference)
    if theirs is None or ours is None:
        missing = " and ".join(str(folder) for folder, state in ((final, ours), (reference, theirs)) if state is None)
        doubt = f"{missing} has no {STATE}: that both are of one run cannot be verified"
        if theirs is None or theirs.step >= theirs.steps:
            return Pair(None, (doubt,))
        doubt += f"; {reference} is at step {theirs.step}, and {final} is taken for the end, step {theirs.steps}"
        return Pair(round(theirs.step / theirs.steps, DIGITS), (doubt,))
    two_runs = f"{final} and {reference} are of two runs"
    if ours.steps != theirs.steps:
        raise UsageError(f"{two_runs}: one was to take {ours.steps} steps, the other {theirs.steps} ({STATE})")
    for mine, its in zip(ours.log, theirs.log, strict=False):
        # As texts: a loss that is NaN equals itself.
        if different := sorted(
            name for name in mine.keys() | its.keys() if repr(mine.get(name)) != repr(its.get(name))
        ):
            name = different[0]
            raise UsageError(
                f"{two_runs}: at step {_short(its.get('step'))} the log of the first has {name}="
                f"{_short(mine.get(name))} and that of the second {_short(its.get(name))} ({STATE})"
            )
    if theirs.step >= ours.step or len(theirs.log) > len(ours.log):
        raise UsageError(
            f"the reference {reference} is at step {theirs.step}, and {final} at step {ours.step}: it has to be an "
            "earlier checkpoint; is the order FINAL REFERENCE?"
        )
    doubts = []
    if not theirs.log:
        doubts.append(f"nothing was logged by step {theirs.step}: that both are of one run cannot be verified")
    if ours.step < ours.steps:
        doubts.append(f"{final} is at step {ours.step} of {ours.steps}, and is taken for the end of the run")
    return Pair(round(theirs.step / ours.step, DIGITS), tuple(doubts))


@dataclass(frozen=True)
class _State:
    step: int
    steps: int
    log: list[dict[str, Any]]


def _state(folder: Path) -> _State | None:
    """What HF's Trainer, and all that are built on it, wrote of the run by then."""
    if not (folder / STATE).is_file():
        return None
    values = _json(folder / STATE)
    step, steps, log = values.get("global_step"), values.get("max_steps"), values.get("log_history")
    if not isinstance(step, int) or not isinstance(steps, int) or not isinstance(log, list) or step < 1:
        raise UsageError(f"{folder / STATE} is not what a trainer writes after a step; take another checkpoint")
    return _State(step, steps, [entry for entry in log if isinstance(entry, dict)])


def _files_of(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    files = [folder / ADAPTER_WEIGHTS] if (folder / ADAPTER).is_file() else [folder / WEIGHTS]
    if not files[0].is_file() and (folder / INDEX).is_file():
        files = sorted({folder / str(name) for name in _json(folder / INDEX).get("weight_map", {}).values()})
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                found |= dict.fromkeys(stored.keys(), file)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"no weights could be read from {file}: {error}; fetch the checkpoint again") from error
    return found


def _tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor, from the headers of files alone."""
    found = {}
    for name, file in _files_of(folder).items():
        with safe_open(file, framework="pt") as stored:
            part = stored.get_slice(name)
            found[name] = part.get_dtype(), tuple(part.get_shape())
    return found


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model"))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {type(error).__name__}; fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file} is no JSON object; fetch the checkpoint again")
    return content


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
