"""Steps whose numbers go wrong, and steps for which the memory is too small."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from dpr_core.algorithms.base import LossInputs
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.training import ExecutionConfig, OptimizerConfig
from dpr_core.data.batching import Batch
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.logprobs import TokenScores
from dpr_core.models.oom import BatchLimits
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training.trainer import Trainer

ROWS = [
    TokenSequence((1, 30, 31), (40, 41, 42, 2)),
    TokenSequence((1, 33), (0, 0, 45, 46, 47, 48, 49, 50)),
    TokenSequence((1, 60, 61, 62, 63, 64), (2,)),
]
LENGTHS = [4, 8, 1]
LONGEST = 10
WEIGHTS = torch.arange(24.0).reshape(3, 8)


def _parameters(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(p, theirs[name], rtol=0, atol=tolerance) for name, p in ours.items())


class Broken:
    loss_reduction: Literal["token", "sequence"] = "token"

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        if self.how == "infinite loss":
            return {"loss": scores.log_probs * math.inf}
        if self.how == "undefined loss":
            return {"loss": scores.log_probs * math.nan}
        return {"loss": (scores.log_probs - scores.log_probs.detach()).abs().sqrt()}  # 0, with an infinite slope


class Tables(InMemoryRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.tables[path] = rows


@pytest.mark.parametrize("how", ["infinite loss", "undefined loss", "infinite gradient"])
def test_a_step_that_is_not_finite_is_not_applied(tiny: Callable[..., Any], how: str) -> None:
    model, expected_model = tiny("llama")[0], tiny("llama")[0]
    before = _parameters(model)
    recorder = Tables()
    trainer = Trainer(
        Policy(model), OptimizerConfig(learning_rate=1e-2, batch_size=3), 10, ExecutionConfig(), recorder=recorder
    )
    metrics = trainer.step(ROWS, Broken(how), LossInputs(advantages=WEIGHTS))
    assert metrics["train/skipped"] == 1.0
    assert not (math.isfinite(metrics["train/loss"]) and math.isfinite(metrics["train/gradient_norm"]))
    assert _same(_parameters(model), before)

    # The batch can be looked at and tried again.
    rows = recorder.tables["not_finite/train-000001.json"]
    assert [(row["prompt"], row["response"]) for row in rows] == [(list(s.prompt), list(s.response)) for s in ROWS]
    assert [row["advantages"] for row in rows] == [WEIGHTS[i, :n].tolist() for i, n in enumerate(LENGTHS)]

    # Nothing of it is left behind, but that the schedule is a step further.
    after = trainer.step(ROWS, SupervisedFineTuning())
    other = Trainer(Policy(expected_model), OptimizerConfig(learning_rate=1e-2, batch_size=3), 10, ExecutionConfig())
    other.optimizer.step()
    other.schedule.step()
    expected = other.step(ROWS, SupervisedFineTuning())
    assert "train/skipped" not in after
    assert (trainer.steps_done, after["train/learning_rate"]) == (2, expected["train/learning_rate"])
    assert _same(_parameters(model), _parameters(expected_model))


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")[0]
    before = _parameters(model)
    trainer = Trainer(
        Policy(model), OptimizerConfig(learning_rate=1e-2, batch_size=3), 10, ExecutionConfig(skipped_steps=2)
    )
    broken = Broken("infinite loss")
    for objective in (broken, broken, SupervisedFineTuning(), broken, broken):
        trainer.step(ROWS, objective)
    applied = _parameters(model)
    assert not _same(applied, before)
    with pytest.raises(DensePathError, match=r"optimizer step 6: .* 2 others .* not_finite/train-000006\.json"):
        trainer.step(ROWS, broken)
    assert _same(_parameters(model), applied)


class Crowded(Policy):
    """Out of memory wherever more than `room` tokens come at once; `failures` counts how often."""

    room = 0
    failures = 0

    def forward(self, batch: Batch, **options: Any) -> Any:
        if batch.input_ids.numel() > self.room:
            self.failures += 1
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TB")
        return super().forward(batch, **options)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, expected_model = tiny("llama")[0], tiny("llama")[0]
    policy = Crowded(model)
    policy.room = 2 * LONGEST
    settings, execution = (
        OptimizerConfig(learning_rate=1e-2, batch_size=3),
        ExecutionConfig(tokens_per_micro_batch=1024),
    )
    trainer = Trainer(policy, settings, 10, execution)
    expected = Trainer(Policy(expected_model), settings, 10, ExecutionConfig(tokens_per_micro_batch=1))
    for _ in range(2):
        ours, theirs = trainer.step(ROWS, SupervisedFineTuning()), expected.step(ROWS, SupervisedFineTuning())
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-6)
        assert ours["train/gradient_norm"] == pytest.approx(theirs["train/gradient_norm"], rel=1e-5)
    assert _same(_parameters(model), _parameters(expected_model), 2e-4)
    assert "out of memory: going on with micro-batches of 512 tokens in place of 1024" in caplog.text
    found = policy.failures
    scores = score(policy, ROWS, 1024)
    assert policy.failures == found
    assert torch.allclose(scores.log_probs, score(Policy(model), ROWS, 1).log_probs, atol=1e-5)


def test_a_sequence_that_does_not_fit_is_named(tiny: Callable[..., Any]) -> None:
    policy = Crowded(tiny("llama")[0])
    policy.room = LONGEST - 1
    with pytest.raises(DensePathError, match=f"does not hold one sequence of {LONGEST} tokens"):
        score(policy, ROWS, 64)


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    def fail(batches: object) -> None:
        raise RuntimeError("size mismatch")

    limits = BatchLimits()
    with pytest.raises(RuntimeError, match="size mismatch"):
        limits.in_micro_batches("a step", [3], 64, torch.device("cpu"), fail)
    assert limits._found == {}
