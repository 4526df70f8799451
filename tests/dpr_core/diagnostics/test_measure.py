"""The measurements put together, on a reward whose every number is made up here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics.measure import Probes, measure
from dpr_core.masking import response_mask
from dpr_core.models.dense_reward import ScoredTokens
from dpr_core.rollouts.engine import Completion, Sampling

END = 0
ANSWERS = [(1, 2, END), (3, END), (3, 3, 3), (1, END)]
"""To the prompt (5,) the first two, to (6,) the others; the third was cut."""


class Engine:
    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, on_progress: Any = None
    ) -> list[Completion]:
        assert list(prompts) == [(5,), (5,), (6,), (6,)]
        on_progress(4, 4)
        return [Completion(p, r, (-1.0,) * len(r)) for p, r in zip(prompts, ANSWERS, strict=True)]


@dataclass
class TokenIdsAreRewards:
    """r = token id, log pi_SFT = -r. Alone in its batch, every log pi_SFT is 0.25 and every reward 0.5 larger."""

    tokens_per_micro_batch: int = 1000

    def __call__(self, sequences: Sequence[TokenSequence], on_progress: Any = None) -> ScoredTokens:
        mask = response_mask([len(s.response) for s in sequences])
        ids = torch.zeros(mask.shape)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence.response)] = torch.tensor(sequence.response, dtype=torch.float)
        alone = self.tokens_per_micro_batch == 1
        rewards = torch.where(mask, ids + 0.5 * alone, 0)
        log_sft = torch.where(mask, 0.25 * alone - ids, 0)
        if on_progress is not None:
            on_progress(len(sequences), len(sequences))
        return ScoredTokens(rewards, log_sft, log_sft, torch.zeros_like(ids), mask)


def run(is_right: Callable[[int, tuple[int, ...]], bool | None], notes: list[str] | None = None) -> Any:
    demonstrations = [TokenSequence((7,), (4, 9, 4, END)), TokenSequence((7,), (4, 8, 4, END))] * 5
    reward: Any = TokenIdsAreRewards()
    notes = [] if notes is None else notes
    probes = Probes([(5,), (6,)], 2, is_right, demonstrations)
    return measure(reward, Engine(), probes, Sampling(1.0, 3, END), 0, lambda step, total, note: notes.append(note))


def right(prompt: int, response: tuple[int, ...]) -> bool:
    """Three tokens are right after the first prompt, two after the second."""
    return len(response) == 3 - prompt


def test_answers_are_measured_as_they_were_drawn() -> None:
    notes: list[str] = []
    found = run(right, notes)
    assert (found.answers, found.cut_share) == (4, 0.25)
    assert found.noise_log_sft == pytest.approx(0.25)
    assert found.noise_reward == pytest.approx(0.5)
    rewards = torch.tensor([1.0, 2, 0, 3, 0, 3, 3, 3, 1, 0])
    assert found.token_deviation == pytest.approx(float(rewards.std(correction=0)))
    assert found.noise_share == pytest.approx(0.5 / float(rewards.std(correction=0)))
    # Returns 3, 3, 9, 1 of 3, 2, 3, 2 tokens.
    assert found.length_correlation == pytest.approx(0.5 * 8 / (1 * (1 + 1 + 25 + 9) ** 0.5))
    assert found.by_position[0] == (0.0, 2.0)
    assert len(set(notes)) == 3


def test_correctness_is_within_a_prompt() -> None:
    found = run(right).correctness
    # First prompt: returns 3 (right) and 3. Second: 9 (wrong) and 1 (right).
    assert found.of_return.value == (0.5 + 0) / 2
    # Means of log pi_SFT: -1 (right) and -1.5; -3 and -0.5 (right).
    assert found.of_log_sft.value == 1
    assert found.of_length.value == 0.5
    assert (found.counted, found.accuracy) == (2, 0.5)


def test_answers_that_cannot_be_checked_leave_correctness_out() -> None:
    found = run(lambda prompt, response: None)
    assert found.correctness is None
    assert not any("auroc_return" in name for name in found.metrics())
    assert found.metrics()["diagnose/answers"] == 4


def test_credit_is_measured_on_slips() -> None:
    found = run(right)
    # 9 and 8 stand for each other, above the 4, 4 and 0 beside them: log pi_SFT always finds them, the reward never.
    assert found.corrupted == 10
    assert found.credit == (0, 0)
    assert found.credit_log_sft == (1, 1)
    assert found.metrics()["diagnose/credit_log_sft_top1"] == 1


def test_of_some_prompts_whose_answers_can_be_checked_these_alone_count() -> None:
    found = run(lambda prompt, response: right(prompt, response) if prompt == 1 else None).correctness
    # Returns 9 (wrong) and 1 (right).
    assert (found.prompts, found.of_return.value, found.accuracy) == (1, 0, 0.5)
