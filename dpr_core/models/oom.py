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

_found: dict[tuple[str, int], int] = {}
"""What was configured and turned out to be too much at once, and how much fits. True of this machine, so of all work in
this process."""


def in_micro_batches(
    what: str,
    lengths: Sequence[int],
    tokens: int | None,
    device: torch.device,
    work: Callable[[list[list[int]]], T],
    packed: bool = False,
) -> T:
    """Call `work` with all rows in micro-batches of at most `tokens`, halved on out-of-memory (see `with_oom_backoff`).

    `what` names the pass in a warning, such as an optimizer step; `tokens` of None is the device's default. `work` must
    be idempotent: it is called again after a failure half-way.
    """
    longest = max(lengths, default=0)

    def in_batches(at_once: int) -> T:
        batches = micro_batches(lengths, at_once, packed)
        distributed.warn_of_idle_ranks(what, lengths, len(batches), at_once)
        return work(batches)

    return with_oom_backoff(
        "micro-batches of {} tokens",
        tokens or default_tokens(on_gpu=device.type != "cpu"),
        longest,
        in_batches,
        "tokens_per_micro_batch",
        f"one sequence of {longest} tokens",
        "allow shorter ones, set execution.gradient_checkpointing=true, or lower execution.logits_per_chunk",
    )


def with_oom_backoff(
    what: str, most: int, least: int, work: Callable[[int], T], setting: str, smallest: str, hint: str
) -> T:
    """Call `work` with `most` at once, halved on out-of-memory down to `least`.

    For messages, `what` describes the amount, with {} for the number; `setting` is its field of `execution`; `smallest`
    names the minimum that does not fit, and `hint` the remedy. Several processes do not retry: while one runs out of
    memory, the others wait for it inside a collective.
    """
    while True:
        at_once = _found.get((what, most), most)
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
        _found[what, most] = at_once // 2
        logger.warning("out of memory: going on with %s in place of %d", what.format(at_once // 2), at_once)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; CPU allocators raise a plain RuntimeError."""
    words = ("not enough memory", "can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
