"""Demonstrations as token ids: a sequence for every answer, within limits of length."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpr_core.data.encoding import TokenSequence
from dpr_core.data.rows import Demonstration
from dpr_core.data.template import Renderer
from dpr_core.errors import UsageError, naming

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedDemonstrations:
    """Demonstrations as token ids, with the counts of turns that the length limits dropped or cut."""

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
    renderer: Renderer,
    rows: Iterable[Demonstration],
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> EncodedDemonstrations:
    """Encode every turn of the assistant as a response to what was said before it, which is its prompt; `kept` holds
    the index of each sequence's row."""
    sequences: list[TokenSequence] = []
    kept: list[int] = []
    too_long = cut = 0
    for i, row in enumerate(rows):
        for history, prompt, response in row.turns():
            with naming(f"demonstration {row.id}"):
                turn = renderer.demonstration(tokenizer, prompt, response, row.system, history)
            if len(turn.prompt) > max_prompt_tokens:
                too_long += 1
                continue
            cut += len(turn.response) > max_response_tokens
            sequences.append(TokenSequence(turn.prompt, turn.response[:max_response_tokens]))
            kept.append(i)
    if not sequences:
        raise UsageError(
            f"no demonstration is left: all {too_long} prompts are longer than max_prompt_tokens={max_prompt_tokens}"
        )
    return EncodedDemonstrations(sequences, kept, too_long, cut)
