import copy
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpr_core.algorithms.base import LossInputs, required
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.training import ExecutionConfig, OptimizerConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import TokenScores
from dpr_core.masking import response_mask
from dpr_core.models.policy import Policy
from dpr_core.training.trainer import Trainer, learning_rate_share

ROWS = [
    TokenSequence((1, 30, 31), (40, 41, 42, 2)),
    TokenSequence((1, 33), (0, 0, 45, 46, 47, 48, 49, 50)),
    TokenSequence((1, 60, 61, 62, 63, 64), (2,)),
    TokenSequence((1,), (70, 71, 72)),
]
LENGTHS = [len(row.response) for row in ROWS]


class Weighted:
    """Minus a weighted log-prob: what REINFORCE does once the advantages are there."""

    def __init__(self, reduction: Literal["token", "sequence"]) -> None:
        self.loss_reduction = reduction

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        weights = required(inputs.advantages)
        return {"loss": -scores.log_probs * weights, "weight": weights}


def _weights() -> Tensor:
    """Garbage outside the mask must not matter."""
    weights = torch.randn(len(ROWS), max(LENGTHS), generator=torch.Generator().manual_seed(5))
    return torch.where(response_mask(LENGTHS), weights, 1e9)


def _trainer(model: PreTrainedModel, budget: int = 8192, steps: int = 10, **settings: Any) -> Trainer:
    checkpointing = settings.pop("gradient_checkpointing", False)
    optimizer = OptimizerConfig(**{"learning_rate": 1e-2, "batch_size": 4, "warmup_ratio": 0.0, **settings})
    execution = ExecutionConfig(tokens_per_micro_batch=budget, gradient_checkpointing=checkpointing)
    return Trainer(Policy(model, logits_per_chunk=1000), optimizer, steps, execution)


def _parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        # Adam's first steps divide by the gradient's own size, which blows up rounding where it is next to nothing.
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def _take(
    model: PreTrainedModel, reduction: Literal["token", "sequence"], order: list[int], budget: int, **settings: Any
) -> Any:
    trainer = _trainer(model, budget, **settings)
    metrics = [
        trainer.step([ROWS[i] for i in order], Weighted(reduction), LossInputs(advantages=_weights()[order]))
        for _ in range(2)
    ]
    return metrics, _parameters(model)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize(
    ("order", "budget"), [([0, 1, 2, 3], 1), ([0, 1, 2, 3], 16), ([3, 1, 0, 2], 8192), ([2, 3, 1, 0], 8)]
)
def test_a_step_depends_neither_on_micro_batches_nor_on_order_nor_on_padding(
    tiny: Callable[..., Any], reduction: Literal["token", "sequence"], order: list[int], budget: int
) -> None:
    before = _parameters(tiny("llama")[0])
    expected, weights = _take(tiny("llama")[0], reduction, [0, 1, 2, 3], 8192)
    found, other_weights = _take(tiny("llama")[0], reduction, order, budget)
    for a, b in zip(found, expected, strict=True):
        for name in ("train/loss", "train/gradient_norm", "train/weight", "train/learning_rate"):
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    _assert_same_weights(other_weights, weights)
    assert max((weights[n] - before[n]).abs().max() for n in weights) > 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma3"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_a_step_is_that_of_plain_transformers_and_torch(
    tiny: Callable[..., Any], family: str, reduction: Literal["token", "sequence"]
) -> None:
    """Full logits of one padded batch with an attention mask, AdamW, clipping: three steps each way."""
    ours, plain = tiny(family)[0], tiny(family)[0]
    trainer = _trainer(ours, budget=16, max_gradient_norm=0.5, weight_decay=0.1, learning_rate=1e-3)
    width = max(len(row) for row in ROWS)
    ids, attention = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    label_weights = torch.zeros(4, width)
    for i, row in enumerate(ROWS):
        ids[i, : len(row)] = torch.tensor(row.prompt + row.response)
        attention[i, : len(row)] = 1
        label_weights[i, len(row.prompt) : len(row)] = _weights()[i, : len(row.response)]
    count = sum(LENGTHS) if reduction == "token" else len(ROWS)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(3):
        metrics = trainer.step(ROWS, Weighted(reduction), LossInputs(advantages=_weights()))
        plain.train()
        log_policy = torch.log_softmax(plain(input_ids=ids, attention_mask=attention).logits.float(), -1)
        chosen = log_policy[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        loss = -(chosen * label_weights[:, 1:]).sum() / count
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 10)))
        optimizer.step()
        assert norm > 0.5, "clipping should be at work"
        assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert metrics["train/learning_rate"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    _assert_same_weights(_parameters(ours), _parameters(plain))
    changed = [(_parameters(ours)[n] - p).abs().max().item() for n, p in _parameters(tiny(family)[0]).items()]
    assert max(changed) > 1e-3


def test_supervised_fine_tuning_is_the_mean_loss_that_transformers_reports(tiny: Callable[..., Any]) -> None:
    model, other = tiny("qwen2")[0], tiny("qwen2")[0]
    ids, labels = torch.zeros(4, 10, dtype=torch.long), torch.full((4, 10), -100)
    attention = torch.zeros(4, 10, dtype=torch.long)
    for i, row in enumerate(ROWS):
        ids[i, : len(row)] = torch.tensor(row.prompt + row.response)
        labels[i, len(row.prompt) : len(row)] = torch.tensor(row.response)
        attention[i, : len(row)] = 1
    expected = other(input_ids=ids, attention_mask=attention, labels=labels).loss.item()
    assert _trainer(model, budget=1).step(ROWS, SupervisedFineTuning())["train/loss"] == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("budget", [1, 16, 8192])
def test_dynamic_fine_tuning_is_plain_torchs_in_any_micro_batches(tiny: Callable[..., Any], budget: int) -> None:
    model, plain = tiny("llama")[0], tiny("llama")[0].double()
    told = _trainer(model, budget, max_gradient_norm=0.0).step(ROWS, SupervisedFineTuning("dft"))
    loss = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        at = slice(len(row.prompt) - 1, -1)
        policy = torch.softmax(plain(torch.tensor([row.prompt + row.response])).logits[0, at], -1)
        chosen = policy[range(len(row.response)), list(row.response)]
        loss = loss - (chosen.detach() * chosen.log()).sum() / sum(LENGTHS)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in plain.parameters()]).norm()
    assert told["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert told["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_the_gradient_norm_is_reported_before_clipping_and_clipping_slows_the_step(tiny: Callable[..., Any]) -> None:
    """Adam's second step shows it: its moments remember how large the first gradient was."""
    weights = []
    for bound in (1e9, 1e-3):
        model = tiny("llama")[0]
        trainer = _trainer(model, max_gradient_norm=bound)
        norms = []
        for rows in (ROWS[:1], ROWS[1:2]):
            norms.append(trainer.step(rows, SupervisedFineTuning())["train/gradient_norm"])
        assert norms[0] > 1
        weights.append(_parameters(model)["model.norm.weight"])
    assert not torch.allclose(*weights, atol=1e-4)


def test_a_bound_of_0_leaves_the_gradient_as_it_is(tiny: Callable[..., Any]) -> None:
    weights = []
    for bound in (1e9, 0):
        model = tiny("llama")[0]
        trainer = _trainer(model, max_gradient_norm=bound)
        for rows in (ROWS[:1], ROWS[1:2]):
            assert trainer.step(rows, SupervisedFineTuning())["train/gradient_norm"] > 0
        weights.append(_parameters(model))
    assert all(found.equal(weights[0][name]) for name, found in weights[1].items())


def test_gradient_checkpointing_takes_the_same_step(tiny: Callable[..., Any]) -> None:
    plain, weights = _take(tiny("llama")[0], "token", [0, 1, 2, 3], 16)
    model = tiny("llama")[0]
    saved, other_weights = _take(model, "token", [0, 1, 2, 3], 16, gradient_checkpointing=True)
    assert model.is_gradient_checkpointing
    assert saved[1]["train/loss"] == pytest.approx(plain[1]["train/loss"], rel=1e-5)
    assert saved[1]["train/gradient_norm"] == pytest.approx(plain[1]["train/gradient_norm"], rel=1e-5)
    _assert_same_weights(other_weights, weights)


def test_other_terms_are_reported_as_means_over_tokens(tiny: Callable[..., Any]) -> None:
    for reduction in ("token", "sequence"):
        metrics = _trainer(tiny("llama")[0], budget=1).step(
            ROWS, Weighted(reduction), LossInputs(advantages=_weights())
        )
        mask = response_mask(LENGTHS)
        assert metrics["train/weight"] == pytest.approx(_weights()[mask].mean().item(), rel=1e-5)


WORKER = """
import json
import torch
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.model import LabBackboneConfig
from dpr_core.config.training import ExecutionConfig, OptimizerConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.lab.backbone import untrained
from dpr_core.models.policy import Policy
from dpr_core.training.trainer import Trainer

torch.set_num_threads(1)
model, _ = untrained(LabBackboneConfig(width=16, layers=1, heads=2, feed_forward=16))
rows = [TokenSequence((1, 30 + i), tuple(range(40, 41 + i))) for i in range(5)]
settings = OptimizerConfig(learning_rate=1e-2, batch_size=5, warmup_ratio=0)
trainer = Trainer(Policy(model), settings, 4, ExecutionConfig(tokens_per_micro_batch=12))
metrics = [trainer.step(rows, SupervisedFineTuning()) for _ in range(3)]
weights = [float(p.detach().double().square().sum()) for p in model.parameters()]
measured = [trainer.accelerator.num_processes, metrics, weights]
print(json.dumps(measured))
"""


@pytest.mark.slow
@pytest.mark.integration
def test_a_step_does_not_depend_on_the_number_of_processes() -> None:
    """Three micro-batches, which two processes cannot share evenly."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    alone: dict[str, Any] = {}
    exec(WORKER, alone)
    _, metrics, weights = alone["measured"]
    for worker in workers:
        output, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
        processes, other_metrics, other_weights = json.loads(output.strip().splitlines()[-1])
        assert processes == 2
        for a, b in zip(metrics, other_metrics, strict=True):
            for name in ("train/loss", "train/gradient_norm", "train/learning_rate"):
                assert a[name] == pytest.approx(b[name], rel=1e-5), name
        assert weights == pytest.approx(other_weights, rel=1e-5)


def test_metrics_can_stand_under_another_name(tiny: Callable[..., Any]) -> None:
    trainer = Trainer(
        Policy(tiny("llama")[0]), OptimizerConfig(learning_rate=1, batch_size=4), 1, ExecutionConfig(), name="other"
    )
    metrics = trainer.step(ROWS, SupervisedFineTuning())
    assert {name.split("/")[0] for name in metrics} == {"other"}


def test_metrics_are_named(tiny: Callable[..., Any]) -> None:
    trainer = _trainer(tiny("llama")[0])
    metrics = trainer.step(ROWS, SupervisedFineTuning())
    assert sorted(metrics) == ["train/gradient_norm", "train/learning_rate", "train/loss", "train/tokens_per_second"]
    assert trainer.steps_done == 1


def test_frozen_parameters_stay(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")[0]
    model.model.embed_tokens.requires_grad_(False)
    before = _parameters(model)
    _trainer(model).step(ROWS, SupervisedFineTuning())
    after = _parameters(model)
    assert after["model.embed_tokens.weight"].equal(before["model.embed_tokens.weight"])
    assert not after["lm_head.weight"].equal(before["lm_head.weight"])


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 1 / 3), (1, 2 / 3), (2, 1.0),  # two steps of warm-up out of ten
        (4, 0.1 + 0.9 * (0.5 + math.sqrt(0.125))), (6, 0.55), (8, 0.1 + 0.9 * (0.5 - math.sqrt(0.125))),
        (10, 0.1), (11, 0.1),
    ],
)  # fmt: skip
def test_warm_up_and_cosine_by_hand(step: int, share: float) -> None:
    settings = OptimizerConfig(learning_rate=1, batch_size=1, warmup_ratio=0.2)
    assert learning_rate_share(step, 10, settings) == pytest.approx(share)


@pytest.mark.parametrize(("step", "share"), [(0, 1 / 3), (2, 1.0), (4, 0.775), (6, 0.55), (10, 0.1), (11, 0.1)])
def test_warm_up_and_linear_decay_by_hand(step: int, share: float) -> None:
    settings = OptimizerConfig(learning_rate=1, batch_size=1, warmup_ratio=0.2, decay="linear")
    assert learning_rate_share(step, 10, settings) == pytest.approx(share)


def test_the_schedule_without_warm_up_or_decay() -> None:
    settings = OptimizerConfig(learning_rate=1, batch_size=1, warmup_ratio=0, final_learning_rate_share=1)
    assert [learning_rate_share(step, 4, settings) for step in range(5)] == [1.0] * 5
    settings = OptimizerConfig(learning_rate=1, batch_size=1, warmup_ratio=0, final_learning_rate_share=0)
    assert [learning_rate_share(s, 2, settings) for s in range(3)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_linear_decay_by_hand() -> None:
    linear = {"learning_rate": 1, "batch_size": 1, "decay": "linear"}
    settings = OptimizerConfig.model_validate({**linear, "warmup_ratio": 0.2, "final_learning_rate_share": 0})
    shares = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0]
    assert [learning_rate_share(step, 10, settings) for step in range(12)] == pytest.approx(shares)
    settings = OptimizerConfig.model_validate({**linear, "warmup_ratio": 0, "final_learning_rate_share": 0.2})
    assert [learning_rate_share(step, 2, settings) for step in range(3)] == pytest.approx([1.0, 0.6, 0.2])


def test_the_papers_warm_up_of_a_hundred_steps() -> None:
    settings = OptimizerConfig(learning_rate=1, batch_size=1)
    assert [learning_rate_share(step, 100, settings) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_every_step_has_a_learning_rate_above_zero() -> None:
    for total in (1, 2, 3, 50):
        for ratio in (0.0, 0.03, 1.0):
            settings = OptimizerConfig(learning_rate=1, batch_size=1, warmup_ratio=ratio)
            assert all(0 < learning_rate_share(step, total, settings) <= 1 for step in range(total))


def test_rmsprop_against_its_equations(tiny: Callable[..., Any]) -> None:
    """v <- 0.99 v + 0.01 g^2, theta <- theta - lr g / (sqrt(v) + 1e-8), on the gradients that were taken."""
    model = tiny("llama")[0]
    trainer = _trainer(model, optimizer="rmsprop", max_gradient_norm=0.0, final_learning_rate_share=1.0)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.__setitem__(name, p.grad.detach().double())
        )
    for _ in range(3):
        trainer.step(ROWS, Weighted("token"), LossInputs(advantages=_weights()))
        for name, gradient in gradients.items():
            squares[name] = 0.99 * squares[name] + 0.01 * gradient**2
            weights[name] = weights[name] - 1e-2 * gradient / (squares[name].sqrt() + 1e-8)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), weights[name], atol=1e-4, rtol=0)


def test_rmsprop_goes_on_where_its_state_was_taken(tiny: Callable[..., Any]) -> None:
    def take(trainer: Trainer) -> None:
        trainer.step(ROWS, Weighted("token"), LossInputs(advantages=_weights()))

    whole = _trainer(tiny("llama")[0], optimizer="rmsprop")
    take(whole)
    other = _trainer(tiny("llama", seed=1)[0], optimizer="rmsprop")
    other.load_state(copy.deepcopy(whole.state()))
    for trainer in (whole, other):
        take(trainer)
    for ours, theirs in zip(whole.module.parameters(), other.module.parameters(), strict=True):
        assert ours.equal(theirs)


def test_rmsprop_has_no_decoupled_weight_decay() -> None:
    with pytest.raises(ValueError, match="weight_decay is decoupled"):
        OptimizerConfig(learning_rate=1, batch_size=1, optimizer="rmsprop", weight_decay=0.1)
