"""The SFT loop, with checkpoints at fractions of the run and an exponential moving average (EMA) of the weights."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.training import SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.sharding import shard_like
from dpr_core.recorder import Recorder
from dpr_core.state import State
from dpr_core.training.trainer import Trainer


class MovingAverage:
    """EMA of the weights: average <- decay average + (1 - decay) weights, from the first on."""

    def __init__(self, weights: Iterable[nn.Parameter], decay: float) -> None:
        self.weights = list(weights)
        self.decay = decay
        self.average = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step."""
        for mean, weight in zip(self.average, self.weights, strict=True):
            mean.lerp_(weight, 1 - self.decay)

    @torch.no_grad()
    def load_state(self, average: Iterable[Tensor]) -> None:
        """Go on from `average` as it was kept; it stays on the weights' device."""
        for mean, kept in zip(self.average, average, strict=True):
            mean.copy_(shard_like(kept, mean))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average for as long as this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, weight in zip(self.average, self.weights, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)


def total_steps(demonstrations: int, config: SFTConfig) -> int:
    """Optimizer steps N of the run."""
    return config.epochs * math.ceil(demonstrations / config.batch_size)


def checkpoint_steps(steps: int, fractions: Sequence[float]) -> dict[float, int]:
    """The step floor(alpha N) at which each fraction's weights are kept."""
    # 0.29 x 100 is 28.999... in binary: rounding first keeps floor() to what was meant.
    at = {fraction: math.floor(round(fraction * steps, 9)) for fraction in fractions}
    for fraction, step in at.items():
        if step < 1:
            raise UsageError(
                f"a checkpoint at {fraction:g} of the run would be before its first step (the run has {steps}); "
                "use more demonstrations, a smaller batch_size or a later checkpoint"
            )
    return at


def batches(count: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Row numbers of each step: every epoch a fresh shuffle."""
    steps = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"sft {seed} {epoch}").shuffle(order)
        steps += [order[i : i + batch_size] for i in range(0, count, batch_size)]
    return steps


def fine_tune(
    trainer: Trainer,
    sequences: Sequence[TokenSequence],
    config: SFTConfig,
    keep: Callable[[float | Literal["ema"]], None],
    recorder: Recorder,
) -> dict[str, float]:
    """Train through `config.epochs`, calling `keep(fraction)` when that share of the steps is done.

    With `config.ema_decay`, `keep("ema")` is called at the end, while the model holds its moving average.
    """
    steps = batches(len(sequences), config.batch_size, config.epochs, config.seed)
    keep_at = checkpoint_steps(len(steps), config.checkpoints)
    objective = SupervisedFineTuning(config.loss)
    average = MovingAverage(trainer.module.parameters(), config.ema_decay) if config.ema_decay else None
    metrics: dict[str, float] = {}

    def state() -> State:
        return {"trainer": trainer.state(), "metrics": metrics, "average": average.average if average else []}

    if (resumed := recorder.restore()) is not None:
        trainer.load_state(resumed["trainer"])
        metrics = resumed["metrics"]
        if average is not None:
            average.load_state(resumed["average"])
        resumed = None  # else the whole of it stays in memory
    for step, rows in list(enumerate(steps, start=1))[trainer.steps_done :]:
        metrics = trainer.step([sequences[row] for row in rows], objective)
        if average is not None:
            average.update()
        recorder.metrics(metrics, step)
        recorder.advance(step, len(steps), f"loss {metrics['train/loss']:.3f}")
        for fraction, at in keep_at.items():
            if at == step:
                keep(fraction)
        recorder.checkpoint(step, state)
    if average is not None:
        with average.in_place():
            keep("ema")
    return metrics
