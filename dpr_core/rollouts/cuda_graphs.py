"""CUDA graphs of decode steps: one launch replays the hundreds of small kernels of a step.

Without a graph, Python takes longer to launch them one by one than a GPU to run them.
"""

import logging
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_core.rollouts.kv_cache import Decoder, Spans

logger = logging.getLogger("dense_path")

Work = Callable[[], None]
"""A function that runs kernels on fixed tensors."""

Shape = tuple[tuple[int, int], ...]
"""The spans of a padded step."""

COLUMNS = 128
"""Attention widths are multiples of this, so that one graph serves about so many steps."""

TOLERANCE = 0.1
"""Greatest difference of replayed logits, over their standard deviation: more than rounding makes, should a graph
choose other kernels, and less than reading from a wrong address does."""


class GraphedDecoder:
    """A decoder that replays its decode steps from CUDA graphs.

    A graph repeats the same kernels at the same addresses and shapes. So the inputs of a step are copied into static
    tensors, rows are padded with free slots and columns with masked ones, which leaves few shapes. The second time that
    a shape occurs it is captured, verified against the eager step, and replayed from then on.
    """

    def __init__(self, decoder: Decoder, capture: Callable[[Work], Work], on_failure: Callable[[], None]) -> None:
        self.decoder = decoder
        self.capture = capture
        self.on_failure = on_failure
        self.steps: dict[Shape, Work | None] = {}
        """The replay of each shape; None for a shape that occurred once."""
        self.columns = 0
        """The cache columns that the graphs were captured with."""
        self.trusted = True
        self.ids, self.positions = self._zeros(1), self._zeros(1)
        self.last = self._zeros()
        self.logits_out = torch.empty(0)

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor:
        if first > 0 or ids.shape[1] > 1 or not self.trusted:
            return self.decoder.logits(first, ids, positions, last, spans)
        if self.columns != self.decoder.slots.columns:
            self.steps.clear()
            self.columns = self.decoder.slots.columns
        for static, new in ((self.ids, ids), (self.positions, positions)):
            static[: len(ids)] = new
            static[len(ids) :] = 0
        shape = self._padded(spans)
        if (step := self.steps.get(shape)) is None:
            self._run(shape)
            self.steps[shape] = self._captured(shape) if shape in self.steps else None
        else:
            step()
        return self.logits_out[: len(ids)]

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        self.decoder.move(source, target, width)

    def _run(self, shape: Shape) -> None:
        rows = sum(rows for rows, _ in shape)
        logits = self.decoder.logits(0, self.ids[:rows], self.positions[:rows], self.last[:rows], shape)
        if self.logits_out.shape[1:] != logits.shape[1:]:
            self.logits_out = logits.new_zeros(self.decoder.slots.count, logits.shape[1])
        self.logits_out[:rows] = logits

    def _captured(self, shape: Shape) -> Work | None:
        expected = self.logits_out.clone()
        try:
            replay = self.capture(lambda: self._run(shape))
            replay()
            self.trusted = bool((self.logits_out - expected).abs().max() <= TOLERANCE * expected.std())
            problem = "a replay does not give the logits of the step that was captured"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.trusted, problem = False, str(error).splitlines()[0]
        if self.trusted:
            return replay
        logger.warning("rollouts run without CUDA graphs, more slowly: %s", problem)
        self.on_failure()
        # Rewrite what a wrong replay may have left in the cache.
        self._run(shape)
        return None

    def _padded(self, spans: Spans) -> Shape:
        """Rows padded to the slots, or to a half, a quarter and so on; widths to multiples of COLUMNS."""
        slots = self.decoder.slots
        rows, needed = slots.count, sum(rows for rows, _ in spans)
        while rows > 1 and (half := -(-rows // 2)) >= needed:
            rows = half
        widths = [min(slots.most, -(-width // COLUMNS) * COLUMNS) for _, width in spans]
        counts = [count for count, _ in spans]
        counts[-1] += rows - needed
        return tuple(zip(counts, widths, strict=True))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.decoder.slots.count, *shape, dtype=torch.long, device=self.decoder.body.device)


class GraphCapture:
    """Captures CUDA graphs into one shared memory pool, since no two of them are replayed at once."""

    def __init__(self) -> None:
        self.last: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def __call__(self, work: Work) -> Work:
        graph, last = torch.cuda.CUDAGraph(), self.last()
        # torch does not reuse a pool after all of its graphs are gone.
        pool = last.pool() if last else torch.cuda.graph_pool_handle()
        # The outer context restores the stream after a failed capture. Thread-local mode ignores what other threads,
        # such as NCCL's, do on the GPU.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            work()
        self.last = weakref.ref(graph)
        return graph.replay


def with_cuda_graphs(
    decoders: Sequence[Decoder], device: torch.device, on_failure: Callable[[], None]
) -> Sequence[Decoder | GraphedDecoder]:
    """Decoders that replay CUDA graphs, on a GPU; `on_failure` is called where a capture does not work."""
    if device.type != "cuda":
        return decoders
    capture = GraphCapture()
    return [GraphedDecoder(decoder, capture, on_failure) for decoder in decoders]
