"""Dimensions of a transformer decoder, from its config.json alone, and the parameter counts that follow from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpr_core.config.model import Backbone, Family, PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.files import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MODEL_TYPES: dict[str, Family] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "mistral": "mistral",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
"""The four families by the `model_type` of config.json; of a multimodal Gemma-3 the text part is trained."""


@dataclass(frozen=True)
class Architecture:
    """A decoder of one of the four families."""

    family: Family
    vocabulary: int
    """Rows of the embedding, which may be more than the tokenizer has tokens."""
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    positions: int
    tied: bool
    """The output head shares the embedding's weights."""
    window: int | None = None
    """Width of the sliding window, in tokens."""
    windowed_layers: int = 0

    @property
    def queries(self) -> int:
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        return self.key_value_heads * self.head_width

    @property
    def norms(self) -> int:
        """RMS norms of hidden size in a layer."""
        return 4 if self.family == "gemma3" else 2

    @property
    def normalises_heads(self) -> bool:
        """Queries and keys are normalised (QK-norm)."""
        return self.family == "gemma3"

    @property
    def layer_matrices(self) -> int:
        """Weights of all matrices of a layer."""
        return self.width * (2 * self.queries + 2 * self.keys) + 3 * self.width * self.feed_forward

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.width

    @property
    def body(self) -> int:
        """All weights below the head, the embedding included."""
        biases = self.queries + 2 * self.keys if self.family == "qwen2" else 0
        norms = self.norms * self.width + (2 * self.head_width if self.normalises_heads else 0)
        return self.head + self.layers * (self.layer_matrices + biases + norms) + self.width

    @property
    def parameters(self) -> int:
        return self.body + (0 if self.tied else self.head)

    def cached_numbers(self, tokens: int) -> int:
        """Numbers in the key (or value) cache of a sequence: all layers, at full length even under sliding windows."""
        return self.layers * self.keys * tokens


def architecture_from_config(config: Any) -> Architecture:
    """Dimensions from the config of a transformers model of one of the four families."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    windowed = layer_types.count("sliding_attention") if layer_types else text.num_hidden_layers if window else 0
    return Architecture(
        family=MODEL_TYPES[text.model_type],
        vocabulary=text.vocab_size,
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_value_heads=text.num_key_value_heads or text.num_attention_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        feed_forward=text.intermediate_size,
        positions=text.max_position_embeddings,
        tied=bool(text.tie_word_embeddings),
        window=window if windowed else None,
        windowed_layers=windowed,
    )


PUBLISHED: dict[str, Architecture] = {
    "meta-llama/Llama-3.1-8B": Architecture("llama", 128_256, 4096, 32, 32, 8, 128, 14_336, 131_072, False),
    "Qwen/Qwen2.5-7B": Architecture("qwen2", 152_064, 3584, 28, 28, 4, 128, 18_944, 131_072, False),
    "mistralai/Mistral-7B-v0.1": Architecture("mistral", 32_000, 4096, 32, 32, 8, 128, 14_336, 32_768, False, 4096, 32),
    "google/gemma-3-4b-pt": Architecture("gemma3", 262_208, 2560, 34, 8, 4, 256, 10_240, 131_072, True, 1024, 29),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Architecture("llama", 49_152, 576, 30, 9, 3, 64, 1536, 8192, True),
    "google/gemma-3-270m": Architecture("gemma3", 262_144, 640, 18, 4, 1, 256, 2048, 32_768, True, 512, 15),
}
"""The recipes' backbones, as their config.json says, so that they can be planned for before they are downloaded."""


def backbone_architecture(backbone: Backbone) -> Architecture:
    """Dimensions of a configured backbone; no weights are loaded, but missing shards of a local folder are reported."""
    if not isinstance(backbone, PretrainedBackboneConfig):
        from dpr_core.lab.backbone import untrained

        return architecture_from_config(untrained(backbone)[0].config)
    from dpr_core.models.checkpoints import refuse_missing_shards

    folder = expanded(backbone.name)
    if backbone.gguf_file is not None:
        from dpr_core.models import gguf_files

        source = folder if folder.is_dir() else backbone.name
        return architecture_from_config(gguf_files.config_of(source, backbone.gguf_file, backbone.revision))
    if folder.is_dir():
        refuse_missing_shards(folder)
        return architecture_from_config(config_of(folder))
    if backbone.name in PUBLISHED:
        return PUBLISHED[backbone.name]
    try:
        return architecture_from_config(config_of(backbone.name, backbone.revision))
    except UsageError as error:
        raise UsageError(f"{error}; known without a look at it: {', '.join(PUBLISHED)}") from error


def known_positions(backbone: PretrainedBackboneConfig) -> int | None:
    """The context length of a backbone, where it is known without a look at the hub."""
    file = expanded(backbone.name) / "config.json"
    if not file.is_file():
        published = PUBLISHED.get(backbone.name)
        return published.positions if published else None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        positions = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):  # told when it is loaded
        return None
    return positions if isinstance(positions, int) else None


def config_of(source: str | Path, revision: str | None = None) -> "PreTrainedConfig":
    """The config of a model of one of the four families; UsageError for any other."""
    from dpr_core.models.checkpoints import fitting_config

    config = fitting_config(source, revision)
    if config.model_type not in MODEL_TYPES:
        raise UsageError(
            f"{source} is a model of type {config.model_type!r}; what the shapes of {', '.join(MODEL_TYPES)} take is "
            "known, and of no other"
        )
    return config
