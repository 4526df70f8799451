"""Plain Hugging Face checkpoints: safetensors weights, config and tokenizer, as `from_pretrained` loads them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dpr_core import distributed
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.data.encoding import end_token
from dpr_core.errors import DensePathError, UsageError
from dpr_core.logprobs import float32_logits
from dpr_core.models.lora import merged
from dpr_core.models.sharding import is_slice, unsharded_in_place
from dpr_core.models.trust import own_code, refuse_missing_shards, refuse_unsafe

# Else transformers takes weights that a bot of the hub has converted for those of the revision that was asked for.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a checkpoint that needs nothing else to be loaded; adapters are merged into it. Of several processes, which
    all have to call this, the first writes: it gathers weight after weight in its CPU's memory."""
    writes = distributed.rank() == 0
    sharded = any(map(is_slice, model.parameters()))
    weights = merged(model) if writes or sharded else None
    if sharded:
        held = weights or model.state_dict(keep_vars=True)
        weights = unsharded_in_place(held, torch.device("cpu") if writes else None)
    if writes:
        with _without_progress_bars():
            model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def load_model(
    source: str | Path, *, dtype: torch.dtype = torch.float32, revision: str | None = None, attention: str = "sdpa"
) -> PreTrainedModel:
    """From safetensors only, every weight accounted for; code that comes with a checkpoint is never run."""
    refuse_unsafe(str(source), revision)
    try:
        with _without_progress_bars():
            # Its own `_attn_implementation` would beat the setting if the config was not read before.
            config = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(source),
                config=config,
                revision=revision,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = _why(error, source, "config.json", revision)
        raise UsageError(f"no model could be loaded from {source}: {reason}") from error
    model: PreTrainedModel = loaded[0]
    report: dict[str, Iterable[object]] = loaded[1]
    # transformers fills a gap with random numbers and a warning.
    if gaps := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise DensePathError(f"{source}: weights are missing or of the wrong shape: {', '.join(gaps[:3])}")
    model = text_model(model)
    model.eval()
    return model


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The language model within one that also reads images, as Gemma-3-4B does; any other model as it is."""
    config = model.config.get_text_config()
    if config is model.config:
        return model
    with torch.device("meta"):
        text: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    setattr(text, text.base_model_prefix, model.get_decoder())
    text.set_output_embeddings(model.get_output_embeddings())
    text.generation_config = model.generation_config
    return text


@torch.no_grad()
def load_mean(folders: Sequence[Path], *, attention: str = "sdpa") -> PreTrainedModel:
    """The model whose weights are the mean over checkpoints, in float32; their order makes no difference."""
    first, *others = sorted(folders)
    mean = load_model(first, attention=attention)
    for folder in others:
        for ours, theirs in _paired(mean, load_model(folder)):
            ours.add_(theirs)
    for weight in mean.parameters():
        weight.div_(len(folders))
    return mean


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer that has an end token."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        reason = _why(error, source, "tokenizer_config.json", revision)
        raise UsageError(f"no tokenizer could be loaded from {source}: {reason}") from error
    end_token(tokenizer)
    return tokenizer


def load_backbone(backbone: PretrainedBackboneConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights to train, in float32: steps of 5e-7 vanish in bfloat16. The type in the config is that of activations."""
    local = Path(backbone.name).expanduser()
    source = local if local.is_dir() else backbone.name
    refuse_unsafe(str(source), backbone.revision)
    refuse_missing_shards(local)
    model = load_model(source, revision=backbone.revision, attention=backbone.attention)
    tokenizer = load_tokenizer(source, revision=backbone.revision)
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if rows < len(tokenizer):
        raise UsageError(f"{backbone.name}: the tokenizer has {len(tokenizer)} tokens, but the model only {rows} rows")
    _try_out(model, backbone.name)
    return model, tokenizer


@torch.no_grad()
def _try_out(model: PreTrainedModel, name: str) -> None:
    """Refuse an architecture that other code here would read wrongly: one that looks ahead, or that does more to its
    logits than its head."""
    shared = [1, 2, 3]
    body: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    ids = torch.tensor([[*shared, 4], [*shared, 5]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    ours = float32_logits(body(input_ids=ids, use_cache=False).last_hidden_state, head.weight, head.bias)
    one, other = logits[:, : len(shared)]
    kind = model.config.model_type
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-3):
        raise UsageError(f"{name}: a {kind} model, whose tokens see those after them, is no causal language model")
    if not torch.allclose(logits, ours, rtol=1e-3, atol=1e-3):
        raise UsageError(f"{name}: a {kind} model does more to its logits than its head, which is not supported here")


@torch.no_grad()
def extrapolate(model: PreTrainedModel, reference: PreTrainedModel, k: float) -> None:
    """theta <- theta + k (theta - theta_ref), in place."""
    for weight, theirs in _paired(model, reference):
        weight.add_(weight - theirs, alpha=k)


def _paired(model: PreTrainedModel, other: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights of two models of one kind, name by name."""
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    if different := sorted(ours.keys() ^ theirs.keys()):
        raise DensePathError(f"these checkpoints are of different models: {', '.join(different[:3])}")
    for name, weight in ours.items():
        yield weight, theirs[name].to(weight.device, weight.dtype)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The stage shows its own progress."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _why(error: Exception, source: str | Path, settings: str, revision: str | None) -> str:
    if isinstance(error, ValueError) and (reason := own_code(str(source), settings, revision)):
        return reason
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
