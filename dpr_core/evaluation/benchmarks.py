"""Benchmarks: one file each, and the table of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpr_core.config.evaluation import Benchmark, FileBenchmarkConfig, LabBenchmarkConfig
from dpr_core.config.official import AlpacaEvalConfig, ArenaHardConfig, LimaConfig, MTBenchConfig
from dpr_core.evaluation import lab_prompts, prompt_file, public_sets
from dpr_core.evaluation.questions import Question, ReadResult

Answered = Sequence[tuple[Question, tuple[str, ...]]]
"""Questions, each with the text of the answer to every turn."""


@dataclass(frozen=True)
class Kind:
    """How one type of benchmark is loaded, and how a result is read from an answer to it."""

    load: Callable[[Any], list[Question]]
    read_result: ReadResult
    pinned: Callable[[Any], Benchmark] = lambda config: config
    """The config with a hash of whatever lies outside it."""
    missing: Callable[[Any], str | None] = lambda config: None
    """What has to be fetched before the questions can be read; None where they are here."""
    outline: Callable[[Any], list[Question]] = lambda config: []
    """Where they are not: as many questions as there should be, without their texts."""
    temperature: Callable[[Any, Question], float | None] = lambda config, question: None
    """The benchmark's own temperature for a question; None where it is the answer stage's."""
    official_file: Callable[[Any, str, Answered], tuple[str, str] | None] = lambda config, model, answered: None
    """Name and text of a file of a model's answers in the benchmark's own layout, where it has one."""


_OFFICIAL = Kind(
    public_sets.load,
    public_sets.read_result,
    public_sets.pinned,
    public_sets.missing,
    public_sets.outline,
    public_sets.temperature,
    public_sets.file_of,
)

KINDS: dict[type[Benchmark], Kind] = {
    LabBenchmarkConfig: Kind(lab_prompts.load, lab_prompts.read_result),
    FileBenchmarkConfig: Kind(prompt_file.load, prompt_file.read_result, prompt_file.pinned),
    AlpacaEvalConfig: _OFFICIAL,
    ArenaHardConfig: _OFFICIAL,
    LimaConfig: _OFFICIAL,
    MTBenchConfig: _OFFICIAL,
}


def load(config: Benchmark) -> list[Question]:
    """The questions of a benchmark, in a fixed order, with unique ids."""
    return KINDS[type(config)].load(config)


def pinned(config: Benchmark) -> Benchmark:
    """The benchmark as it is now, whatever happens to its file later."""
    return KINDS[type(config)].pinned(config)


def missing(config: Benchmark) -> str | None:
    """What has to be fetched before the questions can be read; None where they are here."""
    return KINDS[type(config)].missing(config)


def outline(config: Benchmark) -> list[Question]:
    """As many questions as a benchmark that is not here should have, without their texts."""
    return KINDS[type(config)].outline(config)


def result_reader(config: Benchmark) -> ReadResult:
    """How the result that an answer states is read for this benchmark."""
    return KINDS[type(config)].read_result


def temperature(config: Benchmark, question: Question) -> float | None:
    """The benchmark's own temperature for a question; None where it is the answer stage's."""
    return KINDS[type(config)].temperature(config, question)


def official_file(config: Benchmark, model: str, answered: Answered) -> tuple[str, str] | None:
    """Name and text of a file of a model's answers in the benchmark's own layout, where it has one."""
    return KINDS[type(config)].official_file(config, model, answered)
