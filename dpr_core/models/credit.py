"""Token rewards of given text: the paper's Figure 1 for any prompt and response."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dpr_core.data.encoding import TokenSequence, encode_prompt, encode_response
from dpr_core.data.rendering import Renderer
from dpr_core.errors import UsageError
from dpr_core.models.dense_reward import DenseReward
from dpr_core.reporting.credit import ScoredText, TokenCredit
from dpr_core.returns import reward_to_go


@dataclass(frozen=True)
class GivenText:
    prompt: str
    response: str
    system: str = ""


def assign_credit(
    reward: DenseReward,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    texts: Sequence[GivenText],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[ScoredText]:
    """Score each response, end token included; returns are undiscounted."""
    sequences = []
    limit = reward.sft.model.config.get_text_config().max_position_embeddings
    for i, text in enumerate(texts, start=1):
        if not text.prompt.strip() or not text.response.strip():
            raise UsageError(f"text {i}: prompt and response must not be empty")
        rendered = renderer.render(text.prompt, text.system)
        sequence = TokenSequence(encode_prompt(tokenizer, rendered), encode_response(tokenizer, text.response))
        if len(sequence) > limit:
            raise UsageError(f"text {i}: {len(sequence)} tokens are more than the model's {limit} positions")
        sequences.append(sequence)
    scored = reward(sequences, on_progress)
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
                    token=str(tokenizer.decode([token])),
                    log_pi_sft=float(scored.log_sft[i, t]),
                    log_pi_ref=float(scored.log_ref[i, t]),
                    reward=float(scored.rewards[i, t]),
                    return_=float(returns[i, t]),
                )
                for t, token in enumerate(sequence.response)
            ],
        )
        for i, (text, sequence) in enumerate(zip(texts, sequences, strict=True))
    ]
