"""Less at once where the memory is too small: the mathematics does not depend on micro-batches."""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from dpr_core.data.batching import micro_batches
from dpr_core.errors import DensePathError

T = TypeVar("T")

logger = logging.getLogger("dense_path")

_found: dict[int, int] = {}
"""The configured tokens at once that turned out to be too many, and how many fit. True of this machine, so of all work
in this process."""


def in_micro_batches(lengths: Sequence[int], tokens: int, work: Callable[[list[list[int]]], T]) -> T:
    """`work` on all rows in micro-batches of at most `tokens`, begun again with half as many while memory runs out.

    Whatever `work` changes before it fails, it has to set right when it is called again.
    """
    while True:
        at_once = _found.get(tokens, tokens)
        try:
            return work(micro_batches(lengths, at_once))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
        # Out of the handler, so that the traceback no longer holds the tensors that were too many.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if at_once <= max(lengths):
            raise DensePathError(
                f"the memory does not hold one sequence of {max(lengths)} tokens ({failure}); allow shorter ones, set "
                "execution.gradient_checkpointing=true, or lower execution.logits_per_chunk"
            )
        _found[tokens] = at_once // 2
        logger.warning("out of memory: going on with micro-batches of %d tokens in place of %d", at_once // 2, at_once)


def is_out_of_memory(error: BaseException) -> bool:
    """CPU allocators say it in words only."""
    words = ("not enough memory", "can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
