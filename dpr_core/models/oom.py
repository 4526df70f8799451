"""Back-off on out-of-memory: halve the micro-batch and try again, which does not change the mathematics."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from dpr_core import distributed
from dpr_core.config.execution import default_tokens
from dpr_core.data.batching import micro_batches
from dpr_core.errors import DensePathError

T = TypeVar("T")

logger = logging.getLogger("dense_path")


class BatchLimits:
    """What fits at once on this machine, as found by backing off, for all models of a stage that share it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], int] = {}
        """What was configured and turned out to be too much at once, and how much fits."""
        self._most_rows: dict[str, int] = {}
        """The most rows that a pass of a kind had."""
        self._warned_of_idle_ranks = False

    def in_micro_batches(
        self,
        what: str,
        lengths: Sequence[int],
        tokens: int | None,
        device: torch.device,
        work: Callable[[list[list[int]]], T],
        packed: bool = False,
    ) -> T:
        """Call `work` with all rows in micro-batches of at most `tokens`, halved as `with_oom_backoff` does.

        `what` names the pass in a warning, such as an optimizer step; `tokens` of None is the device's default. `work`
        must be idempotent: it is called again after a failure half-way.
        """
        longest = max(lengths, default=0)

        def in_batches(at_once: int) -> T:
            batches = micro_batches(lengths, at_once, packed)
            self._warn_of_idle_ranks(what, lengths, len(batches), at_once)
            return work(batches)

        return self.with_oom_backoff(
            "micro-batches of {} tokens",
            tokens or default_tokens(on_gpu=device.type != "cpu"),
            longest,
            in_batches,
            "tokens_per_micro_batch",
            f"one sequence of {longest} tokens",
            "allow shorter ones, set execution.gradient_checkpointing=true, or lower execution.logits_per_chunk",
        )

    def with_oom_backoff(
        self, what: str, most: int, least: int, work: Callable[[int], T], setting: str, smallest: str, hint: str
    ) -> T:
        """Call `work` with `most` at once, halved on out-of-memory down to `least`.

        For messages, `what` describes the amount, with {} for the number; `setting` is its field of `execution`;
        `smallest` names the minimum that does not fit, and `hint` the remedy. Several processes do not retry: while one
        runs out of memory, the others wait for it inside a collective.
        """
        while True:
            at_once = self._found.get((what, most), most)
            try:
                return work(at_once)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).splitlines()[0]
            # Outside of the handler, since its traceback keeps the tensors alive.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if distributed.world_size() > 1:
                raise DensePathError(
                    f"the memory of process {distributed.rank()} does not hold {what.format(at_once)} ({failure}); "
                    f"set execution.{setting} to less"
                )
            if at_once <= least:
                raise DensePathError(f"the memory does not hold {smallest} ({failure}); {hint}")
            self._found[what, most] = at_once // 2
            logger.warning("out of memory: going on with %s in place of %d", what.format(at_once // 2), at_once)

    def _warn_of_idle_ranks(self, what: str, lengths: Sequence[int], pieces: int, tokens: int) -> None:
        """Warn once where rows of these lengths make fewer micro-batches, of so many tokens at the most, than there are
        processes. A pass over fewer rows than another of its kind, such as the last of an epoch, is no reason to."""
        ranks, rows = distributed.world_size(), len(lengths)
        self._most_rows[what] = max(rows, self._most_rows.get(what, 0))
        if not 0 < pieces < ranks or rows < self._most_rows[what] or self._warned_of_idle_ranks:
            return
        self._warned_of_idle_ranks = True
        fewer = f"execution.launch.processes to {pieces}"
        smaller = f"execution.tokens_per_micro_batch to {sum(lengths) // ranks}"
        logger.warning(
            f"{what} over {rows} sequences, in micro-batches of at most {tokens} tokens, has work for {pieces} of "
            f"{ranks} processes at a time; set {f'{smaller}, or {fewer}' if rows >= ranks else fewer}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; CPU allocators raise a plain RuntimeError."""
    words = ("not enough memory", "can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
