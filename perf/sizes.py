"""Random networks and ragged sequences that the benchmarks run on."""

import math
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from dpr_core.data.encoding import TokenSequence
from dpr_core.planning.architecture import PUBLISHED, Architecture
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine

SIZES = {
    "toy": {"vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 1, "intermediate_size": 64},
    "tiny": {"vocab_size": 512, "hidden_size": 96, "layers": 3, "heads": 4, "intermediate_size": 256},
    "small": {"vocab_size": 512, "hidden_size": 384, "layers": 6, "heads": 6, "intermediate_size": 1024},
    "v32k": {"vocab_size": 32768, "hidden_size": 384, "layers": 6, "heads": 6, "intermediate_size": 1024},
    "v128k": {"vocab_size": 131072, "hidden_size": 384, "layers": 6, "heads": 6, "intermediate_size": 1024},
    "smollm2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "layers": 30,
        "heads": 9,
        "key_value_heads": 3,
        "intermediate_size": 1536,
    },
}
"""`smollm2` is the shape of SmolLM2-135M; the others are of no published model."""
LARGE = {
    "1b": Architecture("llama", 128_256, 2048, 16, 32, 8, 64, 8192, 131_072, True),
    "8b": PUBLISHED["meta-llama/Llama-3.1-8B"],
}
"""Shapes of Llama-3.2-1B and Llama-3.1-8B, for a GPU."""
PROMPTS = (8, 40)
RESPONSES = (10, 120)
END = 2
"""The end token. Tokens 0 to 2 stand in no prompt and, the end apart, in no response."""


def configuration(size: str) -> LlamaConfig:
    shape = SIZES[size]
    return LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape.get("key_value_heads", shape["heads"]),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )


def network(size: str, seed: int = 0) -> PreTrainedModel:
    """A Llama whose head is its embedding."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(configuration(size))


def large_network(size: str, device: torch.device) -> PreTrainedModel:
    """A Llama whose weights are drawn where they are to be."""
    a = LARGE[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=a.vocabulary,
        hidden_size=a.width,
        intermediate_size=a.feed_forward,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        num_key_value_heads=a.key_value_heads,
        head_dim=a.head_width,
        max_position_embeddings=a.positions,
        tie_word_embeddings=a.tied,
    )
    with device:
        return LlamaForCausalLM(config)


def word_tokenizer(size: str) -> PreTrainedTokenizerFast:
    """A token's text is its number."""
    words = {str(token): token for token in range(SIZES[size]["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="0", unk_token="1", eos_token=str(END))


class ScriptedLengths(InProcessEngine):
    """Ends each response where it is told to: a uniform number of 0 draws token 0, and no other number does."""

    lengths: Sequence[int]

    def uniforms(self, rows: int, sampling: Sampling, seed: int) -> Tensor:
        # No policy of these networks gives a token more than a tenth of its probability.
        table = 0.1 + 0.9 * super().uniforms(rows, sampling, seed)
        table[range(rows), [length - 1 for length in self.lengths]] = 0
        return table


def response_lengths(sequences: Sequence[TokenSequence]) -> list[int]:
    return [len(s.response) for s in sequences]


def prompt_length(rng: random.Random, between: tuple[int, int] = PROMPTS) -> int:
    return rng.randint(*between)


def response_length(rng: random.Random, between: tuple[int, int] = RESPONSES) -> int:
    """Log-uniform: as in demonstrations, most are short and some are long."""
    shortest, longest = between
    return round(math.exp(rng.uniform(math.log(shortest), math.log(longest))))


def ragged(
    count: int,
    size: str,
    seed: int = 0,
    responses: tuple[int, int] = RESPONSES,
    prompts: tuple[int, int] = PROMPTS,
) -> list[TokenSequence]:
    """Random tokens."""
    rng = random.Random(seed)
    last = SIZES[size]["vocab_size"] - 1

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.randint(END + 1, last) for _ in range(length))

    lengths = [(prompt_length(rng, prompts), response_length(rng, responses)) for _ in range(count)]
    return [TokenSequence(tokens(prompt), (*tokens(response - 1), END)) for prompt, response in lengths]


def share_of_tokens(sequences: Sequence[TokenSequence], batch: int) -> float:
    """How much of their batches, padded to the longest of each, is no padding."""
    batches = [sequences[start : start + batch] for start in range(0, len(sequences), batch)]
    return sum(map(len, sequences)) / sum(len(each) * max(map(len, each)) for each in batches)
