"""The reward of given text, token by token, as plain values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenCredit:
    """One response token, its log-probabilities, its reward, and the return from it on."""

    position: int
    token_id: int
    token: str
    log_pi_sft: float
    log_pi_ref: float
    reward: float
    return_: float


@dataclass(frozen=True)
class ScoredText:
    """A response with the credit of each of its tokens; `input_ids` are those of prompt and response together."""

    prompt: str
    response: str
    input_ids: list[int]
    tokens: list[TokenCredit]
