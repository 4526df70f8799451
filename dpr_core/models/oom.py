"""Less at once where the memory is too small: the mathematics does not depend on micro-batches."""

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
    """`work` on all rows in micro-batches of at most `tokens`, begun again with half as many while memory runs out.
    `what` names the pass, such as a step.

    None takes what is fast on the device. Several processes do not begin again: see `with_oom_backoff`.

    Whatever `work` changes before it fails, it has to set right when it is called again.
    """
    longest = max(lengths, default=0)

    def share(at_once: int) -> T:
        batches = micro_batches(lengths, at_once, packed)
        distributed.warn_of_idle_ranks(what, lengths, len(batches), at_once)
        return work(batches)

    return with_oom_backoff(
        "micro-batches of {} tokens",
        tokens or default_tokens(on_gpu=device.type != "cpu"),
        longest,
        share,
        "tokens_per_micro_batch",
        f"one sequence of {longest} tokens",
        "allow shorter ones, set execution.gradient_checkpointing=true, or lower execution.logits_per_chunk",
    )


def with_oom_backoff(
    what: str, most: int, least: int, work: Callable[[int], T], setting: str, smallest: str, hint: str
) -> T:
    """`work` with `most` at once, called again with half of it while memory runs out, but not below `least`.

    `what` says how much that is, where {} is the number, and `setting` the field of `execution` that it comes from;
    `smallest` names what does not fit in the end, and `hint` what to do about it. Several processes do not try again:
    while one runs out of memory, the others wait for it in the middle of an exchange.
    """
    while True:
        at_once = _found.get((what, most), most)
        try:
            return work(at_once)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
        # Out of the handler, so that the traceback no longer holds the tensors that were too many.
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
    """CPU allocators say it in words only."""
    words = ("not enough memory", "can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
