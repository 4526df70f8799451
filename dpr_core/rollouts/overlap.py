"""One step off-policy: the next batch is drawn while the policy learns from this one."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dpr_core.rollouts.engine import Completion, FollowingEngine, Progress, Sampling


class Overlapping:
    """What `begin` was told of is drawn in a thread, with the policy as it is then; `generate` waits for it."""

    def __init__(self, engine: FollowingEngine) -> None:
        self.engine = engine
        self.version = 0
        self._thread = ThreadPoolExecutor(1)
        self._begun: tuple[int, int, Future[list[Completion]]] | None = None
        """The seed of the batch, the version that draws it, and what comes of it."""

    def refresh(self, version: int) -> None:
        """The old weights stay until the batch that they draw is there."""
        if self._begun is not None:
            self._begun[2].exception()
        self.engine.refresh(version)

    def begin(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int) -> None:
        coming = self._thread.submit(self.engine.generate, prompts, sampling, seed)
        self._begun = seed, self.engine.version, coming

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: Progress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == seed:
            self.version = begun[1]
            return begun[2].result()
        completions = self.engine.generate(prompts, sampling, seed, on_progress, drawn)
        self.version = self.engine.version
        return completions

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
