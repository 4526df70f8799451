"""Tokenization. From here on token ids are kept end to end: decoding and encoding again is not the identity."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
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


@lru_cache(maxsize=8)
def control_tokens(tokenizer: "PreTrainedTokenizerBase", template: str = "") -> re.Pattern[str]:
    """A pattern of the special tokens, and of the other added ones that a template writes."""
    added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
    written = {text for text, special in added if special or (text in template and not text.isspace())}
    # Without any the pattern matches nothing.
    return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True))) or "(?!)")


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str, with_prefix: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not with_prefix:
        return ids
    bos: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    return [token for token in bos if token != tokenizer.eos_token_id or token == tokenizer.bos_token_id] + ids
