"""Steps of a rollout as CUDA graphs. A step is hundreds of small kernels, and Python takes longer to start them one by
one than a GPU to do them; a graph starts all at once."""

import logging
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_core.rollouts.kv_cache import Decoder, Spans

logger = logging.getLogger("dense_path")

Work = Callable[[], None]

Shape = tuple[tuple[int, int], ...]

COLUMNS = 128
"""Columns are read in multiples of this, so that a graph serves about so many steps."""

SAME = 0.1
"""Of the logits' deviation. Rounding, should other kernels be chosen in a graph, makes less of a difference, and
anything that is read from the wrong place a greater one."""


class Replaying:
    """A reader that replays its steps.

    A graph repeats what was done once, with the same shapes and at the same addresses. So the tokens of a step are
    copied to where the graph reads them, rows are filled up with free slots, and columns with some that the mask hides:
    then few shapes come. The second time that one comes it is captured, compared with what it is to repeat, and from
    then on replayed.
    """

    def __init__(self, reader: Decoder, capture: Callable[[Work], Work], give_up: Callable[[], None]) -> None:
        self.reader = reader
        self.capture = capture
        self.give_up = give_up
        self.steps: dict[Shape, Work | None] = {}
        """By the shape of a step; none was met once."""
        self.columns = 0
        """Of the slots whose addresses the graphs hold."""
        self.trusted = True
        self.ids, self.positions = self._zeros(1), self._zeros(1)
        self.last = self._zeros()
        self.found = torch.empty(0)

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor:
        if first > 0 or ids.shape[1] > 1 or not self.trusted:
            return self.reader.logits(first, ids, positions, last, spans)
        if self.columns != self.reader.slots.columns:
            self.steps.clear()
            self.columns = self.reader.slots.columns
        for held, new in ((self.ids, ids), (self.positions, positions)):
            held[: len(ids)] = new
            held[len(ids) :] = 0
        shape = self._filled_up(spans)
        if (step := self.steps.get(shape)) is None:
            self._step(shape)
            self.steps[shape] = self._captured(shape) if shape in self.steps else None
        else:
            step()
        return self.found[: len(ids)]

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        self.reader.move(source, target, width)

    def _step(self, shape: Shape) -> None:
        rows = sum(rows for rows, _ in shape)
        logits = self.reader.logits(0, self.ids[:rows], self.positions[:rows], self.last[:rows], shape)
        if self.found.shape[1:] != logits.shape[1:]:
            self.found = logits.new_zeros(self.reader.slots.count, logits.shape[1])
        self.found[:rows] = logits

    def _captured(self, shape: Shape) -> Work | None:
        expected = self.found.clone()
        try:
            replay = self.capture(lambda: self._step(shape))
            replay()
            self.trusted = bool((self.found - expected).abs().max() <= SAME * expected.std())
            problem = "it does not repeat what was captured"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.trusted, problem = False, str(error).splitlines()[0]
        if self.trusted:
            return replay
        logger.warning("rollouts do without CUDA graphs, and are slower: %s", problem)
        self.give_up()
        # What it may have left in the slots is written anew.
        self._step(shape)
        return None

    def _filled_up(self, spans: Spans) -> Shape:
        """As many rows as there are slots, or half as many, or a quarter, and so on; columns in multiples."""
        slots = self.reader.slots
        rows, needed = slots.count, sum(rows for rows, _ in spans)
        while rows > 1 and (half := -(-rows // 2)) >= needed:
            rows = half
        widths = [min(slots.most, -(-width // COLUMNS) * COLUMNS) for _, width in spans]
        counts = [count for count, _ in spans]
        counts[-1] += rows - needed
        return tuple(zip(counts, widths, strict=True))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.reader.slots.count, *shape, dtype=torch.long, device=self.reader.body.device)


class Graphs:
    """Captures what a GPU does. Graphs share their memory, since no two of them are replayed at once."""

    def __init__(self) -> None:
        self.last: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def __call__(self, work: Work) -> Work:
        graph, last = torch.cuda.CUDAGraph(), self.last()
        # torch takes no graph into memory that others shared and all have left.
        pool = last.pool() if last else torch.cuda.graph_pool_handle()
        # A capture that fails leaves its own stream behind. What other threads ask of the GPU, as NCCL's do all the
        # time, is none of its business.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            work()
        self.last = weakref.ref(graph)
        return graph.replay


def replaying(
    readers: Sequence[Decoder], device: torch.device, give_up: Callable[[], None]
) -> Sequence[Decoder | Replaying]:
    """On a GPU, readers whose steps are replayed; `give_up` is called where that does not work."""
    if device.type != "cuda":
        return readers
    graphs = Graphs()
    return [Replaying(reader, graphs, give_up) for reader in readers]
