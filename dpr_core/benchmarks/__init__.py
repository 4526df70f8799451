"""Benchmarks: one file each, and the table of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpr_core.benchmarks import file, lab
from dpr_core.benchmarks.base import Question, ReadResult
from dpr_core.config.evaluation import Benchmark, FileBenchmark, LabBenchmark


@dataclass(frozen=True)
class Kind:
    """How one type of benchmark is loaded, and how a result is read from an answer to it."""

    load: Callable[[Any], list[Question]]
    read_result: ReadResult
    pinned: Callable[[Any], Benchmark] = lambda config: config
    """The config with a hash of whatever lies outside it."""


KINDS: dict[type[Benchmark], Kind] = {
    LabBenchmark: Kind(lab.load, lab.read_result),
    FileBenchmark: Kind(file.load, file.read_result, file.pinned),
}


def load(config: Benchmark) -> list[Question]:
    """The questions of a benchmark, in a fixed order, with unique ids."""
    return KINDS[type(config)].load(config)


def pinned(config: Benchmark) -> Benchmark:
    """The benchmark as it is now, whatever happens to its file later."""
    return KINDS[type(config)].pinned(config)


def result_reader(config: Benchmark) -> ReadResult:
    """How the result that an answer states is read for this benchmark."""
    return KINDS[type(config)].read_result
