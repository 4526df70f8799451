"""Asynchronous rollouts, one step off-policy: the next batch is sampled while the policy trains on this one."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dpr_core.rollouts.engine import Completion, OnProgress, Sampling, UpdatableEngine


class OverlappedEngine:
    """`begin` starts sampling in a thread, from the current weights; `generate` waits for the result."""

    def __init__(self, engine: UpdatableEngine) -> None:
        self.engine = engine
        self.version = 0
        self._thread = ThreadPoolExecutor(1)
        self._pending: tuple[int, int, Future[list[Completion]]] | None = None
        """Seed, version of the weights, and future of the batch in flight."""

    def update_weights(self, step: int) -> None:
        """Update the weights after the batch in flight is done."""
        if self._pending is not None:
            self._pending[2].exception()
        self.engine.update_weights(step)

    def begin(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int) -> None:
        """Start to sample the batch of this seed, which the next `generate` returns."""
        future = self._thread.submit(self.engine.generate, prompts, sampling, seed)
        self._pending = seed, self.engine.version, future

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: OnProgress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        pending, self._pending = self._pending, None
        if pending is not None and pending[0] == seed:
            self.version = pending[1]
            return pending[2].result()
        completions = self.engine.generate(prompts, sampling, seed, on_progress, drawn)
        self.version = self.engine.version
        return completions

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
