"""Tokenization. From here on token ids are kept end to end: decoding and encoding again is not the identity."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpr_core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and a response to it. `response` ends with the end token unless it was cut."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def end_token(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends a response: trained, sampled, scored and rewarded like any other."""
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; "
            "set `eos_token` in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", rendered: str) -> tuple[int, ...]:
    """The ids of a prompt, with BOS where the tokenizer adds it; special tokens spelled out in the text stay text."""
    return tuple(_plain_ids(tokenizer, rendered, with_prefix=True))


def encode_later_turn(tokenizer: "PreTrainedTokenizerBase", rendered: str) -> tuple[int, ...]:
    """The ids of a later turn of a conversation, without BOS."""
    return tuple(_plain_ids(tokenizer, rendered, with_prefix=False))


def encode_response(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[int, ...]:
    """The response and exactly one end token."""
    return (*_plain_ids(tokenizer, text, with_prefix=False), end_token(tokenizer))


def decode_response(tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int]) -> str:
    """Text without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str, with_prefix: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not with_prefix:
        return ids
    bos: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    return [token for token in bos if token != tokenizer.eos_token_id or token == tokenizer.bos_token_id] + ids


@dataclass(frozen=True)
class EncodedDemonstrations:
    """Demonstrations as token ids, with the counts of rows that the length limits dropped or cut."""

    sequences: list[TokenSequence]
    kept: list[int]
    prompts_too_long: int
    responses_cut: int

    def counts(self) -> dict[str, float]:
        """The counts as metrics of a stage."""
        return {
            "data/demonstrations": float(len(self.sequences)),
            "data/prompts_too_long": float(self.prompts_too_long),
            "data/responses_cut": float(self.responses_cut),
        }


def encode_demonstrations(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[tuple[str, str]],
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> EncodedDemonstrations:
    """Encode (rendered prompt, response) pairs; `kept` holds the index of each sequence's pair."""
    sequences: list[TokenSequence] = []
    kept: list[int] = []
    too_long = cut = 0
    for i, (prompt, response) in enumerate(texts):
        prompt_ids = encode_prompt(tokenizer, prompt)
        response_ids = encode_response(tokenizer, response)
        if len(prompt_ids) > max_prompt_tokens:
            too_long += 1
            continue
        cut += len(response_ids) > max_response_tokens
        sequences.append(TokenSequence(prompt_ids, response_ids[:max_response_tokens]))
        kept.append(i)
    if not sequences:
        raise UsageError(
            f"no demonstration is left: all {too_long} prompts are longer than max_prompt_tokens={max_prompt_tokens}"
        )
    return EncodedDemonstrations(sequences, kept, too_long, cut)
