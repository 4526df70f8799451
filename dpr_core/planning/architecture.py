"""The numbers of a network that its memory and its operations follow from."""

from dataclasses import dataclass
from typing import Any

from dpr_core.config.model import Family

MODEL_TYPES: dict[str, Family] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "mistral": "mistral",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
"""What a config.json calls the four families; the text part of a multimodal Gemma-3 is what is trained."""


@dataclass(frozen=True)
class Architecture:
    """A decoder of one of the four families."""

    family: Family
    vocabulary: int
    """Rows of the embedding, of which there may be more than tokens."""
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    positions: int
    tied: bool
    """The head is the embedding."""
    window: int | None = None
    """Tokens that the layers with sliding attention look back at."""
    windowed_layers: int = 0

    @property
    def queries(self) -> int:
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        return self.key_value_heads * self.head_width

    @property
    def norms(self) -> int:
        """RMS norms as wide as the network, of a layer."""
        return 4 if self.family == "gemma3" else 2

    @property
    def normalises_heads(self) -> bool:
        """Queries and keys have norms of their own."""
        return self.family == "gemma3"

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer's matrices, each of which multiplies every token."""
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

    def remembered(self, tokens: int) -> int:
        """Keys, or values, that are kept of a sequence in all layers, in numbers; sliding windows do not shorten it."""
        return self.layers * self.keys * tokens


def architecture_of(config: Any) -> Architecture:
    """From the config of a transformers model of one of the four families."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    windowed = kinds.count("sliding_attention") if kinds else text.num_hidden_layers if window else 0
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
}
"""The paper's backbones, as their config.json says, so that they can be planned for before they are fetched."""
