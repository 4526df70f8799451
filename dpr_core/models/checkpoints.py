"""Hugging Face checkpoints: saving, and safe loading: safetensors only, never a pickle, never remote code."""

import copy
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from dpr_core import distributed
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.data.encoding import end_token
from dpr_core.distributed import is_dtensor
from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import expanded
from dpr_core.hashing import hash_folder, hash_model, refuse_changed
from dpr_core.logprobs import float32_logits
from dpr_core.models.lora import merged_weights
from dpr_core.models.sharding import unsharded_in_place
from dpr_core.models.weights import (
    MANY_TIES,
    check_dimensions,
    check_finite,
    check_layers,
    check_names,
    check_shapes,
    share_of_ties,
    stored_shapes,
)

logger = logging.getLogger("dense_path")

# Without this, transformers may load a bot's safetensors conversion in place of the requested revision.
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "true"


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a self-contained checkpoint, with adapters merged. All processes must call this; rank 0 writes, and gathers
    sharded weights one by one in its CPU memory."""
    writes = distributed.rank() == 0
    sharded = any(map(is_dtensor, model.parameters()))
    weights = merged_weights(model) if writes or sharded else None
    if sharded:
        tensors = weights or model.state_dict(keep_vars=True)
        weights = unsharded_in_place(tensors, torch.device("cpu") if writes else None)
    if writes:
        with without_progress_bars():
            model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def load_model(
    source: str | Path, *, dtype: torch.dtype = torch.float32, revision: str | None = None, attention: str = "sdpa"
) -> PreTrainedModel:
    """Load from safetensors, with every weight accounted for; no code of a checkpoint is run."""
    refuse_unsafe(str(source), revision)
    config = fitting_config(source, revision)
    try:
        with without_progress_bars():
            # Given the config, or an `_attn_implementation` in its config.json would override the setting.
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
    # What transformers raises for files that do not fit each other cannot be listed.
    except Exception as error:
        reason = _reason(error, source, "config.json", revision)
        raise UsageError(f"no model could be loaded from {source}: {reason}") from error
    model: PreTrainedModel = loaded[0]
    report: dict[str, Iterable[object]] = loaded[1]
    # transformers initialises missing weights at random and leaves out surplus ones, with a warning.
    check_names([*report["missing_keys"], *report["mismatched_keys"]], report["unexpected_keys"], source)
    check_finite(model, source)
    model = text_model(model)
    model.eval()
    return model


def fitting_config(source: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The config of a model, held against the headers of its weights where these are on this machine: before anything
    is built that may be as large as config.json says."""
    check_dimensions(config_file(str(source), "config.json", revision), source)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except Exception as error:
        reason = _reason(error, source, "config.json", revision)
        # OSError: there is none, or the hub does not give it.
        what = "no config.json could be read" if isinstance(error, OSError) else "its config.json cannot be used"
        raise UsageError(f"{source}: {what}: {reason}") from error
    if not (stored := stored_shapes(_weight_files(str(source), revision))):
        return config
    check_layers(stored, getattr(config.get_text_config(), "num_hidden_layers", None), source)
    try:
        with torch.device("meta"):
            # A copy, and a kind of attention that is always there: the config's own may need a package.
            network = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation="eager", trust_remote_code=False
            )
    except Exception as error:
        reason = _reason(error, source, "config.json", revision)
        raise UsageError(f"{source}: no network can be built as its config.json says: {reason}") from error
    check_shapes(stored, network, source)
    return config


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    """The language model of a multimodal one, such as Gemma-3-4B; any other model as it is."""
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
    """Weight averaging: the mean over checkpoints, in float32, independent of their order."""
    first, *others = sorted(folders)
    mean = load_model(first, attention=attention)
    for folder in others:
        for ours, theirs in _paired(mean, load_model(folder)):
            ours.add_(theirs)
    for weight in mean.parameters():
        weight.div_(len(folders))
    return mean


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer, which must have an end-of-sequence token."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source), revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        reason = _reason(error, source, "tokenizer_config.json", revision)
        raise UsageError(f"no tokenizer could be loaded from {source}: {reason}") from error
    end_token(tokenizer)
    return tokenizer


def load_backbone(backbone: PretrainedBackboneConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load float32 master weights: steps of 5e-7 vanish in bfloat16. The config's dtype is that of activations."""
    local = expanded(backbone.name)
    source = local if local.is_dir() else backbone.name
    if backbone.gguf_file is not None:
        from dpr_core.models import gguf_files

        with without_progress_bars():
            model, tokenizer = gguf_files.read(source, backbone.gguf_file, backbone.revision, backbone.attention)
        end_token(tokenizer)
    else:
        refuse_unsafe(str(source), backbone.revision)
        refuse_missing_shards(local)
        model = load_model(source, revision=backbone.revision, attention=backbone.attention)
        tokenizer = load_tokenizer(source, revision=backbone.revision)
    check_network(model, len(tokenizer), backbone.name)
    if backbone.dtype == "bfloat16" and (share := share_of_ties(model)) > MANY_TIES:
        logger.warning(
            "%s: %.0f%% of the weights lie halfway between two bfloat16 numbers, as those of a converted GGUF or of a "
            "float16 checkpoint do; under bfloat16 the first step of training moves them all: backbone.dtype=float32 "
            "trains on what the weights are",
            backbone.name,
            100 * share,
        )
    if backbone.content is not None:
        # Weights are mapped into memory, not read from start to end, so that the folder is hashed once more.
        refuse_changed(backbone.name, backbone.content, hash_model(local, backbone.gguf_file))
    return model, tokenizer


def fetched(backbone: PretrainedBackboneConfig) -> Path:
    """The folder on this machine that holds a backbone's config and weights, fetched where they come from the hub. A
    local one must be as it was when it was pinned."""
    name, revision = backbone.name, backbone.revision
    if backbone.gguf_file is not None:
        raise UsageError(
            f"{name}: {backbone.gguf_file} is trained from, and is no reference and no teacher: those are read from "
            f"safetensors. Write it as a folder and name that: dpr backbone {name}/{backbone.gguf_file} DIR"
        )
    local = expanded(name)
    if local.is_dir():
        refuse_missing_shards(local)
        if backbone.content is not None:
            refuse_changed(name, backbone.content, hash_folder(local))
        return local
    if backbone.content is not None:
        raise UsageError(f"{name}: there is no such folder now, and the backbone that was trained came from there")
    refuse_unsafe(name, revision)
    if revision is None:
        logger.warning("%s has no pinned revision: it is taken as the hub has it now (backbone.revision)", name)
    files = ["config.json", *(sorted(_shards(config_file(name, INDEX, revision))) or [WEIGHTS])]
    try:
        found = [cached_file(name, file, revision=revision) for file in files]
    except OSError as error:
        raise UsageError(f"{name} cannot be had from the hub: {str(error).splitlines()[0]}") from error
    return Path(cast(str, found[0])).parent


def check_same_tokens(other: PretrainedBackboneConfig, ours: PreTrainedTokenizerBase, role: str = "teacher") -> None:
    """UsageError where the log-probs of another model, a `role` beside the SFT model, are of other tokens than ours."""
    local = expanded(other.name)
    theirs = load_tokenizer(local if local.is_dir() else other.name, revision=other.revision)
    if different := {token for token, _ in theirs.get_vocab().items() ^ ours.get_vocab().items()}:
        raise UsageError(
            f"the {role} {other.name} has another vocabulary than the SFT model: {len(theirs)} tokens against "
            f"{len(ours)}, of which {len(different)} differ. Their log-probs cannot be compared; take one of the same "
            "tokenizer"
        )


@torch.no_grad()
def check_network(model: PreTrainedModel, tokens: int, name: str) -> None:
    """UsageError for fewer embeddings than tokens, and for an architecture that is not causal, or that transforms its
    logits after the head."""
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if rows < tokens:
        raise UsageError(f"{name}: the tokenizer has {tokens} tokens, but the model only {rows} rows")
    prefix = [1, 2, 3]
    body: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    ids = torch.tensor([[*prefix, 4], [*prefix, 5]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    ours = float32_logits(body(input_ids=ids, use_cache=False).last_hidden_state, head.weight, head.bias)
    one, other = logits[:, : len(prefix)]
    kind = model.config.model_type
    if not logits.isfinite().all():
        raise UsageError(f"{name}: its weights are finite, but not what it computes as its config.json says")
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
    """Pairs of weights of two models of one architecture, by name."""
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    if different := sorted(ours.keys() ^ theirs.keys()):
        raise DensePathError(f"these checkpoints are of different models: {', '.join(different[:3])}")
    for name, weight in ours.items():
        yield weight, theirs[name].to(weight.device, weight.dtype)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence transformers' progress bars; stages show their own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _reason(error: Exception, source: str | Path, settings: str, revision: str | None) -> str:
    if isinstance(error, ValueError) and (reason := remote_code_reason(str(source), settings, revision)):
        return reason
    lines = str(error).strip().splitlines() or [""]
    said = lines[0] if len(lines) == 1 or not lines[0].endswith(":") else f"{lines[0]} {lines[1].strip()}"
    return (
        said if isinstance(error, (OSError, ValueError, RuntimeError)) and said else f"{type(error).__name__}: {said}"
    )


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def refuse_unsafe(source: str, revision: str | None) -> None:
    """Check a local folder or a hub repository before loading: transformers would follow names in its config files to
    pickles, to other files, and to code on the hub."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise UsageError(
                f"{source} holds no safetensors, but {', '.join(pickles[:3])}: a pickle, which can run code as it is "
                "opened, and which is never opened here; save the model as safetensors where you trust it"
            )
    config = config_file(source, "config.json", revision)
    if "transformers_weights" in config:
        raise UsageError(
            f"{source}: config.json names the weights {config['transformers_weights']!r} (transformers_weights), but "
            f"only {WEIGHTS} is read, or what {INDEX} names"
        )
    for name, value in _implementations(config):
        if "/" in value:
            raise UsageError(
                f"{source}: config.json asks for code of the hub ({name}: {value!r}), which is never run; remove {name}"
            )
    if config_file(source, "adapter_config.json", revision):
        raise UsageError(f"{source} holds an adapter (adapter_config.json); merge it into its model and name that")
    for name in sorted(_shards(config_file(source, INDEX, revision))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UsageError(f"{source}: {INDEX} names {name!r}, which is no safetensors file of its own")


def remote_code_reason(source: str, file: str, revision: str | None) -> str:
    """A sentence on the remote code that a config file requires (auto_map); empty where it requires none."""
    auto_map = config_file(source, file, revision).get("auto_map")
    if not auto_map:
        return ""
    return (
        f"{file} asks for code that comes with it (auto_map: {json.dumps(auto_map)[:200]}). Such code is never run "
        "(trust_remote_code is off), so what needs it is not supported"
    )


def config_file(source: str, file: str, revision: str | None, *, local: bool = False) -> dict[str, Any]:
    """The content of a config file; empty where it is missing or unreadable, which loading will report. A `local` one
    is not fetched."""
    try:
        path = _file(source, file, revision, local=local)
        content = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _file(source: str, file: str, revision: str | None, *, local: bool) -> str | None:
    path: str | None = cached_file(
        source,
        file,
        revision=revision,
        local_files_only=local,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _weight_files(source: str, revision: str | None) -> list[Path]:
    """The safetensors files of a checkpoint that are on this machine; none where one is missing, which loading will
    report."""
    index = config_file(source, INDEX, revision, local=True)
    found = [_file(source, name, revision, local=True) for name in sorted(_shards(index)) or [WEIGHTS]]
    return [Path(path) for path in found if path is not None] if all(found) else []


def _shards(index: dict[str, Any]) -> set[str]:
    files = index.get("weight_map", {})
    return (
        {name if isinstance(name, str) else repr(name) for name in files.values()} if isinstance(files, dict) else set()
    )


def _implementations(settings: object) -> Iterator[tuple[str, str]]:
    """All `*_implementation` settings, such as that of attention, at any depth."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from ((name, text) for text in _texts(value) if name.endswith("_implementation"))
            yield from _implementations(value)


def _texts(value: object) -> Iterator[str]:
    """The strings in a setting, which may be one for each part of the model."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def refuse_missing_shards(folder: Path) -> None:
    """UsageError for files that a local checkpoint's index names and that are missing."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} cannot be read: {type(error).__name__}; fetch the checkpoint again") from error
    if missing := sorted(str(name) for name in shards if not (folder / str(name)).is_file()):
        raise UsageError(
            f"{folder}: {len(missing)} of {len(shards)} files that {INDEX} names are not there "
            f"({', '.join(missing[:3])}); fetch the checkpoint again"
        )
