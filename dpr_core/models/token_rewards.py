"""Token rewards of given text: the paper's Figure 1 for any prompt and response."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpr_core.credit import ScoredText, TokenCredit
from dpr_core.data.encoding import TokenSequence, encode_prompt, encode_response
from dpr_core.data.template import Renderer
from dpr_core.errors import UsageError
from dpr_core.models.dense_reward import DenseReward, ScoredTokens
from dpr_core.returns import reward_to_go

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class GivenText:
    prompt: str
    response: str
    system: str = ""


def assign_credit(
    reward: DenseReward,
    tokenizer: "PreTrainedTokenizerBase",
    renderer: Renderer,
    texts: Sequence[GivenText],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[ScoredText]:
    """Score each response, end token included; returns are undiscounted."""
    sequences = encode_texts(tokenizer, renderer, texts)
    limit = reward.sft.model.config.get_text_config().max_position_embeddings
    for i, sequence in enumerate(sequences, start=1):
        if len(sequence) > limit:
            raise UsageError(f"text {i}: {len(sequence)} tokens are more than the model's {limit} positions")
    return credit_of(tokenizer, texts, sequences, reward(sequences, on_progress))


def encode_texts(
    tokenizer: "PreTrainedTokenizerBase", renderer: Renderer, texts: Sequence[GivenText]
) -> list[TokenSequence]:
    """Each prompt rendered as in training, each response with its end token."""
    sequences = []
    for i, text in enumerate(texts, start=1):
        if not text.prompt.strip() or not text.response.strip():
            raise UsageError(f"text {i}: prompt and response must not be empty")
        rendered = renderer.render(text.prompt, text.system)
        sequences.append(TokenSequence(encode_prompt(tokenizer, rendered), encode_response(tokenizer, text.response)))
    return sequences


def credit_of(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[GivenText],
    sequences: Sequence[TokenSequence],
    scored: ScoredTokens,
) -> list[ScoredText]:
    """What was scored, as plain values beside the tokens' texts."""
    returns = reward_to_go(scored.rewards, scored.mask)
    return [
        ScoredText(
            prompt=text.prompt,
            response=text.response,
            input_ids=[*sequence.prompt, *sequence.response],
            tokens=[
                TokenCredit(
                    position=t,
                    token_id=token,
                    token=piece,
                    log_pi_sft=float(scored.log_sft[i, t]),
                    log_pi_ref=float(scored.log_ref[i, t]),
                    reward=float(scored.rewards[i, t]),
                    return_=float(returns[i, t]),
                )
                for t, (token, piece) in enumerate(
                    zip(sequence.response, token_texts(tokenizer, sequence.response), strict=True)
                )
            ],
        )
        for i, (text, sequence) in enumerate(zip(texts, sequences, strict=True))
    ]


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """What each token adds to the decoded text: together exactly that text, special tokens as they are spelled.

    A character of several tokens is shown at its last one. Tokens are decoded with those just before them, since
    some decoders treat the start of a text in a way of its own.
    """
    whole = _decode(tokenizer, ids)
    spelled = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    pieces: list[str] = []
    shown = context = settled = 0
    for end, token in enumerate(ids, start=1):
        before = _decode(tokenizer, ids[context:settled])
        piece = whole[shown:] if end == len(ids) else _decode(tokenizer, ids[context:end])[len(before) :]
        if (piece.endswith(UNFINISHED) and end < len(ids)) or not whole.startswith(piece, shown):
            pieces.append("")
            continue
        shown += len(piece)
        context, settled = settled, end
        if pieces and piece != (own := spelled.get(token, piece)) and piece.endswith(own):
            pieces[-1] += piece.removesuffix(own)
            piece = own
        pieces.append(piece)
    return pieces


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
