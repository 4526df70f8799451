"""GGUF files: quantised weights and their tokenizer as a float32 model, and as a plain Hugging Face folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dpr_core.errors import UsageError
from dpr_core.models.weights import check_finite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def require_reader() -> None:
    """UsageError where the package that reads GGUF files is missing."""
    from transformers.utils.import_utils import GGUF_MIN_VERSION, is_gguf_available

    if not is_gguf_available():
        raise UsageError(
            f"GGUF files are read with the `gguf` package, of which there is none here that is at least "
            f"{GGUF_MIN_VERSION}; pip install 'dense-path[gguf]'"
        )


def read(
    source: str | Path, file: str, revision: str | None = None, attention: str = "sdpa"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model and the tokenizer of a GGUF file in a folder or in a repository of the hub; `load_backbone` checks
    them too."""
    model = _read(AutoModelForCausalLM, source, file, revision, dtype=torch.float32, attn_implementation=attention)
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, source, file, revision)
    check_finite(model, f"{source}/{file}")
    # transformers refuses to save what it has read of a GGUF file. The weights are plain by now.
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)
    model.eval()
    return model, tokenizer


def config_of(source: str | Path, file: str, revision: str | None = None) -> "PreTrainedConfig":
    """What a GGUF file says of its network."""
    config: PreTrainedConfig = _read(AutoConfig, source, file, revision)
    return config


def write(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Config, tokenizer and float32 safetensors, each weight under one name."""
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def _read(kind: Any, source: str | Path, file: str, revision: str | None, **how: Any) -> Any:
    require_reader()
    try:
        return kind.from_pretrained(str(source), gguf_file=file, revision=revision, trust_remote_code=False, **how)
    # What is raised for a file that is damaged, or of a network that is not known, cannot be listed.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"{source}: {file} cannot be read as GGUF: {reason}") from error
