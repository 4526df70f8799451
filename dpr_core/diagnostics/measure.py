"""Measure a reward with its two models: answers of pi_SFT to training prompts, and corrupted demonstrations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics import shape
from dpr_core.diagnostics.correctness import Correctness, correctness
from dpr_core.diagnostics.corruption import Detection, corrupt, detection
from dpr_core.diagnostics.diagnosis import Diagnosis
from dpr_core.masking import masked_sum
from dpr_core.models.dense_reward import DenseReward, ScoredTokens
from dpr_core.rollouts.engine import Completion, Engine, Sampling

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Probes:
    """What a reward is tried on."""

    prompts: Sequence[tuple[int, ...]]
    samples: int
    """Answers to each prompt."""
    is_right: Callable[[int, tuple[int, ...]], bool | None]
    """Whether a response answers the prompt of a given index; None where that cannot be known."""
    demonstrations: Sequence[TokenSequence]


def measure(
    reward: DenseReward, engine: Engine, probes: Probes, sampling: Sampling, seed: int, on_progress: OnProgress
) -> Diagnosis:
    """`engine` samples from pi_SFT."""

    def noted(note: str) -> Callable[[int, int], None]:
        return lambda step, total: on_progress(step, total, note)

    prompts = [prompt for prompt in probes.prompts for _ in range(probes.samples)]
    answers = engine.generate(prompts, sampling, seed, noted("answers of SFT"))
    sequences = [TokenSequence(answer.prompt, answer.response) for answer in answers]
    scored = reward(sequences, noted("reward of the answers"))
    mask = scored.mask
    noise_log_sft, noise_reward = _noise(reward, sequences[:: probes.samples], scored, probes.samples)
    ended = torch.tensor([answer.ended(sampling.end_token) for answer in answers])
    corrupted = corrupt(probes.demonstrations, seed)
    credit: tuple[Detection, Detection] | None = None
    if corrupted:
        spoilt = reward([c.sequence for c in corrupted], noted("reward of corrupted demonstrations"))
        places = [c.position for c in corrupted]
        credit = detection(spoilt.rewards, spoilt.mask, places), detection(spoilt.log_sft, spoilt.mask, places)
    return Diagnosis(
        answers=len(answers),
        cut_share=1 - float(ended.double().mean()),
        token_deviation=shape.deviation(scored.rewards, mask),
        noise_log_sft=noise_log_sft,
        noise_reward=noise_reward,
        length_correlation=shape.correlation(masked_sum(scored.rewards, mask), mask.sum(dim=1)),
        end_advantage=shape.end_advantage(scored.rewards, mask, ended),
        top_share=shape.top_share(scored.rewards, mask),
        corrupted=len(corrupted),
        credit=credit[0] if credit else None,
        credit_log_sft=credit[1] if credit else None,
        correctness=_correctness(probes, answers, scored, seed),
        by_position=shape.by_position(scored.rewards, mask),
        by_length=shape.by_length(scored.rewards, mask),
    )


def _noise(
    reward: DenseReward, sequences: Sequence[TokenSequence], scored: ScoredTokens, every: int
) -> tuple[float, float]:
    """Of log pi_SFT and of the reward: `sequences`, every so many of those scored, again one at a time."""
    alone = replace(reward, tokens_per_micro_batch=1)(sequences)
    log_sft, rewards = (values[::every, : alone.mask.shape[1]] for values in (scored.log_sft, scored.rewards))
    return (
        shape.root_mean_square(log_sft - alone.log_sft, alone.mask),
        shape.root_mean_square(rewards - alone.rewards, alone.mask),
    )


def _correctness(probes: Probes, answers: Sequence[Completion], scored: ScoredTokens, seed: int) -> Correctness | None:
    """None unless every answer can be checked."""
    right = [probes.is_right(i // probes.samples, answer.response) for i, answer in enumerate(answers)]
    if any(verdict is None for verdict in right):
        return None

    def by_prompt(values: Tensor) -> Tensor:
        return values.reshape(-1, probes.samples)

    lengths = scored.mask.sum(dim=1)
    return correctness(
        returns=by_prompt(masked_sum(scored.rewards, scored.mask)),
        mean_log_sft=by_prompt(masked_sum(scored.log_sft, scored.mask) / lengths),
        lengths=by_prompt(lengths),
        right=by_prompt(torch.tensor(right, dtype=torch.bool)),
        seed=seed,
    )
