from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.training import ExecutionConfig, SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training.sft_loop import MovingAverage, batches, checkpoint_steps, fine_tune, total_steps
from dpr_core.training.trainer import Trainer


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_holds_every_row_once(count: int, batch_size: int, epochs: int, seed: int) -> None:
    steps = batches(count, batch_size, epochs, seed)
    assert len(steps) == total_steps(count, SFTConfig(batch_size=batch_size, epochs=epochs))
    per_epoch = len(steps) // epochs
    for epoch in range(epochs):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(row for rows in part for row in rows) == Counter(range(count))
        assert [len(rows) for rows in part[:-1]] == [batch_size] * (per_epoch - 1)


def test_epochs_and_seeds_are_shuffled_differently_and_repeatably() -> None:
    first, second = batches(50, 50, 2, seed=0)
    assert first != second
    assert first != list(range(50))
    assert batches(50, 50, 2, seed=0) == [first, second]
    assert batches(50, 50, 1, seed=1) != [first]


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "steps"), [(100_000, 256, 1, 391), (8, 4, 3, 6), (1, 256, 1, 1)]
)
def test_the_number_of_steps_by_hand(rows: int, batch_size: int, epochs: int, steps: int) -> None:
    assert total_steps(rows, SFTConfig(batch_size=batch_size, epochs=epochs)) == steps


@pytest.mark.parametrize(
    ("steps", "fraction", "expected"),
    [
        (391, 0.5, 195),
        (7, 0.5, 3),
        (100, 0.29, 29),
        (100, 0.58, 58),
        (100, 0.57, 57),
        (10, 0.99, 9),
        (1, 1.0, 1),
        (3, 1 / 3, 1),
    ],
)
def test_a_checkpoint_is_kept_at_the_floor_of_alpha_n(steps: int, fraction: float, expected: int) -> None:
    assert checkpoint_steps(steps, [fraction]) == {fraction: expected}


@given(st.integers(1, 100), st.integers(100, 100_000))
def test_percentages_are_exact(percent: int, steps: int) -> None:
    exact = Fraction(percent, 100) * steps
    assert checkpoint_steps(steps, [percent / 100]) == {percent / 100: exact.numerator // exact.denominator}


def test_a_checkpoint_before_the_first_step_is_refused() -> None:
    with pytest.raises(UsageError, match=r"0\.5 .*the run has 1\b"):
        checkpoint_steps(1, [0.5, 1.0])


ROWS = [TokenSequence((1, 30 + i), (40 + i, 50 + i, 2)) for i in range(6)]


def _fine_tune(
    model: Any, config: SFTConfig, keep: Callable[[Any], None], recorder: InMemoryRecorder
) -> dict[str, float]:
    trainer = Trainer(Policy(model), config, total_steps(len(ROWS), config), ExecutionConfig())
    return fine_tune(trainer, ROWS, config, keep, recorder)


def test_fine_tuning_keeps_its_checkpoints_at_their_steps_in_order(tiny: Callable[..., Any]) -> None:
    config = SFTConfig(learning_rate=1e-2, batch_size=2, epochs=2, checkpoints=(0.17, 0.5, 0.5001, 1.0))
    recorder = InMemoryRecorder()
    kept: list[tuple[float, int]] = []
    metrics = _fine_tune(tiny("llama")[0], config, lambda f: kept.append((f, len(recorder.history))), recorder)
    assert kept == [(0.17, 1), (0.5, 3), (0.5001, 3), (1.0, 6)]
    assert [step for step, _ in recorder.history] == [1, 2, 3, 4, 5, 6]
    assert recorder.history[-1][1] == metrics


def test_the_reference_is_a_moment_of_the_same_run(tiny: Callable[..., Any]) -> None:
    """The half-way weights are those after 3 of 6 steps of the full schedule, not of a run of 3 steps."""
    config = SFTConfig(learning_rate=1e-2, batch_size=2, epochs=2, checkpoints=(0.5, 1.0))
    model, by_hand = tiny("llama")[0], tiny("llama")[0]
    kept: dict[float, dict[str, torch.Tensor]] = {}

    def keep(fraction: float) -> None:
        kept[fraction] = {name: p.detach().clone() for name, p in model.named_parameters()}

    _fine_tune(model, config, keep, InMemoryRecorder())
    trainer = Trainer(Policy(by_hand), config, 6, ExecutionConfig())
    for rows in batches(6, 2, 2, config.seed)[:3]:
        trainer.step([ROWS[row] for row in rows], SupervisedFineTuning())
    assert all(p.equal(kept[0.5][name]) for name, p in by_hand.named_parameters())
    assert not all(p.equal(kept[1.0][name]) for name, p in by_hand.named_parameters())


def test_the_loss_is_the_one_that_is_asked_for(tiny: Callable[..., Any]) -> None:
    for loss in ("nll", "dft"):
        config = SFTConfig(learning_rate=1e-2, batch_size=6, loss=loss, checkpoints=(1.0,))
        told = _fine_tune(tiny("llama")[0], config, lambda fraction: None, InMemoryRecorder())
        trainer = Trainer(Policy(tiny("llama")[0]), config, 1, ExecutionConfig())
        expected = trainer.step(ROWS, SupervisedFineTuning(loss))["train/loss"]
        assert told["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_fine_tuning_learns_its_demonstrations_end_token_included(tiny: Callable[..., Any]) -> None:
    config = SFTConfig(learning_rate=3e-2, batch_size=6, epochs=30, checkpoints=(1.0,))
    model = tiny("llama")[0]
    recorder = InMemoryRecorder()
    _fine_tune(model, config, lambda fraction: None, recorder)
    assert recorder.history[0][1]["train/loss"] > 3
    assert recorder.history[-1][1]["train/loss"] < 0.3
    logits = model(torch.tensor([[*ROWS[3].prompt, *ROWS[3].response[:2]]])).logits[0, -1]
    assert logits.argmax().item() == 2


def test_a_reference_that_cannot_be_kept_stops_the_run_before_it_starts(tiny: Callable[..., Any]) -> None:
    config = SFTConfig(learning_rate=1e-2, batch_size=6, checkpoints=(0.5, 1.0))
    recorder = InMemoryRecorder()
    with pytest.raises(UsageError):
        _fine_tune(tiny("llama")[0], config, lambda fraction: None, recorder)
    assert recorder.history == []


def test_a_moving_average_by_hand() -> None:
    """From 8 on, with decay 3/4: 8, then 3/4 8 + 1/4 4 = 7, then 3/4 7 + 1/4 1 = 5.5."""
    weight = torch.nn.Parameter(torch.tensor([8.0]))
    average = MovingAverage([weight], 0.75)
    for value in (4.0, 1.0):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
    with average.in_place():
        assert weight.item() == 5.5
    assert weight.item() == 1.0
    with average.in_place():
        assert weight.item() == 5.5


def test_the_moving_average_is_kept_last_and_the_training_is_the_same_with_it(tiny: Callable[..., Any]) -> None:
    kept: dict[bool, dict[Any, dict[str, torch.Tensor]]] = {}
    start = {name: p.detach().clone() for name, p in tiny("llama")[0].named_parameters()}
    for decay in (None, 0.5):
        model = tiny("llama")[0]
        mine = kept[decay is not None] = {}
        config = SFTConfig(learning_rate=1e-2, batch_size=2, epochs=1, checkpoints=(1 / 3, 2 / 3, 1.0), ema_decay=decay)

        def keep(part: Any, model: Any = model, mine: Any = mine) -> None:
            mine[part] = {name: p.detach().clone() for name, p in model.named_parameters()}

        _fine_tune(model, config, keep, InMemoryRecorder())
        mine["after"] = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert list(kept[False]) == [1 / 3, 2 / 3, 1.0, "after"]
    assert list(kept[True]) == [1 / 3, 2 / 3, 1.0, "ema", "after"]
    for name, first in start.items():
        one, two, three = (kept[True][fraction][name] for fraction in (1 / 3, 2 / 3, 1.0))
        expected = first / 8 + one / 8 + two / 4 + three / 2
        torch.testing.assert_close(kept[True]["ema"][name], expected, atol=1e-6, rtol=0)
        assert kept[False][1.0][name].equal(three)
        assert kept[True]["after"][name].equal(three)


def test_a_moving_average_that_was_kept_goes_back_to_the_device_of_the_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
    average = MovingAverage([weight], 0.75)
    average.load_state([torch.ones(3)])
    average.update()
    assert [mean.device.type for mean in average.average] == ["meta"]
