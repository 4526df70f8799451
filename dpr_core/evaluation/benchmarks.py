"""Benchmarks by kind: the questions, their content hash, and how the result is read from an answer."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dpr_core import hub
from dpr_core.config.evaluation import Benchmark, FileBenchmarkConfig, LabBenchmarkConfig
from dpr_core.config.gold import (
    E2EConfig,
    GoldBenchmark,
    GoldBenchmarkConfig,
    GSM8KConfig,
    LikelihoodConfig,
    WordProblemsConfig,
)
from dpr_core.config.official import AlpacaEvalConfig, ArenaHardConfig, HostedFileConfig, LimaConfig, MTBenchConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation import hosted, public_sets
from dpr_core.evaluation.gold import e2e, gsm8k, likelihood, word_problems
from dpr_core.evaluation.gold.measures import Gold
from dpr_core.evaluation.questions import IsRight, Question, exact_match, not_checked
from dpr_core.evaluation.rows import Row, jsonl_rows, of_benchmark_file, text_field
from dpr_core.hashing import hash_file, read_pinned
from dpr_core.lab import programs

Answered = Sequence[tuple[Question, tuple[str, ...]]]
"""Questions, each with the text of the answer to every turn."""


@dataclass(frozen=True)
class Kind:
    """How one type of benchmark is loaded, and how an answer to it is checked."""

    load: Callable[[Any], list[Question]]
    is_right: IsRight
    with_content_hash: Callable[[Any], Benchmark] = lambda config: config
    missing: Callable[[Any], str | None] = lambda config: None
    placeholder_questions: Callable[[Any], list[Question]] = lambda config: []
    temperature: Callable[[Any, Question], float | None] = lambda config, question: None
    official_file: Callable[[Any, str, Answered], tuple[str, str] | None] = lambda config, model, answered: None
    gold: Gold | None = None


def load(config: Benchmark) -> list[Question]:
    """The questions of a benchmark, in a fixed order, with unique ids."""
    return KINDS[type(config)].load(config)


def with_content_hash(config: Benchmark) -> Benchmark:
    """The config with a hash of whatever lies outside it: the benchmark as it is now."""
    return KINDS[type(config)].with_content_hash(config)


def missing(config: Benchmark) -> str | None:
    """What has to be fetched before the questions can be read; None where they are here."""
    return KINDS[type(config)].missing(config)


def check_source(config: Benchmark) -> None:
    """Raise, within seconds, why what is missing cannot be fetched."""
    if isinstance(config, HostedFileConfig) and missing(config) is not None:
        repository, file = hosted.on_hub(config)
        hub.check("dataset", repository, config.revision, hosted.setting(config), file)


def placeholder_questions(config: Benchmark) -> list[Question]:
    """As many questions as a benchmark that is not here should have, without their texts."""
    return KINDS[type(config)].placeholder_questions(config)


def checker(config: Benchmark) -> IsRight:
    """Whether an answer to a question of this benchmark is right."""
    return KINDS[type(config)].is_right


def temperature(config: Benchmark, question: Question) -> float | None:
    """The benchmark's own temperature for a question; None where it is the answer stage's."""
    return KINDS[type(config)].temperature(config, question)


def official_file(config: Benchmark, model: str, answered: Answered) -> tuple[str, str] | None:
    """Name and text of a file of a model's answers in the benchmark's own layout, where it has one."""
    return KINDS[type(config)].official_file(config, model, answered)


def gold(config: Benchmark) -> Gold | None:
    """What a program measures of the answers, where it can."""
    return KINDS[type(config)].gold


def _lab_questions(config: LabBenchmarkConfig) -> list[Question]:
    """The same prompts for the same settings, each with its result as reference."""
    problems = programs.draw_problems(config.task, config.split, config.prompts, config.prompt_seed)
    return [Question(id=p.id, turns=(p.prompt,), reference=str(p.result)) for p in problems]


def _file_questions(config: FileBenchmarkConfig) -> list[Question]:
    """A question for every line of a JSONL file. Rows without an `id` are named by their line number."""
    questions: list[Question] = []
    first_line: dict[str, int] = {}
    content = of_benchmark_file(config.path, lambda path: read_pinned(path, config.content))
    for number, row in jsonl_rows(content, config.path):
        where = f"{config.path}, line {number}"
        question = _file_question(row, number, where)
        if question.id in first_line:
            raise UsageError(
                f"{where}: the id {question.id!r} was already used in line {first_line[question.id]}; "
                "give every row an id of its own"
            )
        first_line[question.id] = number
        questions.append(question)
    if not questions:
        raise UsageError(f"{config.path}: the benchmark file has no rows; write one JSON object with a `prompt` a line")
    return questions


def _file_question(row: Row, number: int, where: str) -> Question:
    def field(name: str, or_a_number: bool = False) -> str:
        value = row.get(name)
        if value is None:
            return ""
        if or_a_number and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return text_field(value, name, where, may_be_empty=True)

    prompt = field("prompt")
    if not prompt.strip():
        raise UsageError(f"{where}: the row has no `prompt`, or an empty one; give it some text")
    return Question(
        id=field("id", or_a_number=True) or str(number),
        turns=(prompt,),
        system=field("system"),
        reference=None if row.get("reference") is None else field("reference", or_a_number=True).strip(),
    )


_STATED = re.compile(r"answer is:?[ \t]*(.*)", re.IGNORECASE)


def stated_result(text: str) -> str | None:
    """What follows the last "answer is", or else the last line that is not empty; without a final full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    stated = [found.group(1) for line in lines if (found := _STATED.search(line))]
    result = (stated or lines)[-1].strip().removesuffix(".").strip()
    return result or None


def _with_file_hash(config: FileBenchmarkConfig) -> FileBenchmarkConfig:
    return config.model_copy(update={"content": of_benchmark_file(config.path, hash_file)})


def _with_hosted_hash(config: GoldBenchmark) -> GoldBenchmark:
    return config.model_copy(update={"content": hosted.content_hash(config)})


PROMPTS_NOT_HERE = 1000
"""Assumed of a file of gold rows that is not on this machine yet."""


def _gold_placeholders(config: GoldBenchmarkConfig) -> list[Question]:
    return [Question(str(number), ("",)) for number in range(config.prompts or PROMPTS_NOT_HERE)]


def _gold(load: Callable[[Any], list[Question]], is_right: IsRight, measured: Gold) -> Kind:
    return Kind(load, is_right, _with_hosted_hash, hosted.missing, _gold_placeholders, gold=measured)


_PUBLIC = Kind(
    public_sets.load,
    not_checked,
    public_sets.with_content_hash,
    hosted.missing,
    public_sets.placeholder_questions,
    public_sets.temperature,
    public_sets.official_file,
)

KINDS: dict[type[Benchmark], Kind] = {
    LabBenchmarkConfig: Kind(_lab_questions, exact_match(programs.read_result)),
    FileBenchmarkConfig: Kind(_file_questions, exact_match(stated_result), _with_file_hash),
    AlpacaEvalConfig: _PUBLIC,
    ArenaHardConfig: _PUBLIC,
    LimaConfig: _PUBLIC,
    MTBenchConfig: _PUBLIC,
    WordProblemsConfig: _gold(word_problems.load, word_problems.is_right, word_problems.GOLD),
    GSM8KConfig: _gold(gsm8k.load, word_problems.is_right, gsm8k.GOLD),
    E2EConfig: _gold(e2e.load, e2e.is_right, e2e.GOLD),
    LikelihoodConfig: _gold(likelihood.load, not_checked, likelihood.GOLD),
}
