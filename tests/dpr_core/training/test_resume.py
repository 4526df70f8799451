"""Every training loop, interrupted after any of its steps and taken up again, ends with the same bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.training import ExecutionConfig, SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.training.sft_loop import fine_tune, total_steps
from dpr_core.training.trainer import Trainer
from tests.interruption import Interruptible, Killed

ROWS = [TokenSequence((1, 30 + i), (40 + i, 50 + i, 2)) for i in range(6)]

Tensors = dict[str, torch.Tensor]


def weights(model: Any) -> Tensors:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(ours: Tensors, theirs: Tensors) -> bool:
    return ours.keys() == theirs.keys() and all(p.equal(theirs[name]) for name, p in ours.items())


def sft(model: Any, recorder: Interruptible, kept: dict[Any, Tensors], **fields: Any) -> dict[str, float]:
    settings = {"learning_rate": 1e-2, "batch_size": 2, "epochs": 2, "checkpoints": (0.5, 1.0), "ema_decay": 0.9}
    config = SFTConfig.model_validate({**settings, **fields})
    trainer = Trainer(Policy(model), config, total_steps(len(ROWS), config), ExecutionConfig())

    def keep(part: Any) -> None:
        kept[part] = weights(model)

    return fine_tune(trainer, ROWS, config, keep, recorder)


@pytest.mark.parametrize("last", [1, 2, 3, 5, 6])
def test_supervised_fine_tuning(tiny: Callable[..., Any], tmp_path: Path, last: int) -> None:
    whole = Interruptible(tmp_path / "whole")
    expected: dict[Any, Tensors] = {}
    model = tiny("llama")[0]
    metrics = sft(model, whole, expected)
    assert set(expected) == {0.5, 1.0, "ema"}

    found: dict[Any, Tensors] = {}
    first = Interruptible(tmp_path / "parts", last)
    with pytest.raises(Killed):
        sft(tiny("llama")[0], first, found)
    second = Interruptible(tmp_path / "parts")
    torch.manual_seed(1)
    again = tiny("llama")[0]
    measured = sft(again, second, found)
    assert {part: same(found[part], expected[part]) for part in expected} == {0.5: True, 1.0: True, "ema": True}
    assert same(weights(again), weights(model))
    assert first.by_step() | second.by_step() == whole.by_step()
    timed = {name for name in metrics if "per_second" in name}
    assert {n: v for n, v in measured.items() if n not in timed} == {n: v for n, v in metrics.items() if n not in timed}
    assert len(second.history) == 6 - last


def test_dropout_draws_the_same_numbers_after_an_interruption(tiny: Callable[..., Any], tmp_path: Path) -> None:
    def model() -> Any:
        network = tiny("llama")[0]
        network.config.attention_dropout = 0.5
        for layer in network.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return network

    expected, found = model(), model()
    torch.manual_seed(5)
    sft(expected, Interruptible(tmp_path / "whole"), {})
    torch.manual_seed(5)
    with pytest.raises(Killed):
        sft(found, Interruptible(tmp_path / "parts", 3), {})
    again = model()
    torch.manual_seed(7)
    sft(again, Interruptible(tmp_path / "parts"), {})
    assert same(weights(again), weights(expected))
    without = tiny("llama")[0]
    sft(without, Interruptible(tmp_path / "without"), {})
    assert not same(weights(without), weights(expected))
