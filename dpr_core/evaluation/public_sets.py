"""AlpacaEval, Arena-Hard, LIMA and MT-Bench: questions in their official layouts, from a local file or the hub."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpr_core.config.official import ArenaHardConfig, MTBenchConfig, Official
from dpr_core.errors import UsageError
from dpr_core.evaluation import hosted
from dpr_core.evaluation.official.layouts import LAYOUTS, Layout, questions_of
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import naming, of_benchmark_file, read_rows
from dpr_core.files import data_file
from dpr_core.hashing import hash_file

MT_BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
}


def load(config: Official) -> list[Question]:
    """The questions, each id once and each with as many turns as the benchmark asks."""
    layout, file = _layout(config), hosted.local_file(config)
    with naming(file):
        questions = questions_of(layout, read_rows(file, config.content))
    for question in questions:
        if len(question.turns) != layout.turns:
            raise UsageError(
                f"{file}: question {question.id} has {len(question.turns)} of the {layout.turns} turns that "
                f"{layout.title} asks"
            )
        temperature(config, question)
    if isinstance(config, MTBenchConfig) and config.references is not None:
        return _with_references(questions, data_file(config.references), config.references_content)
    return questions


def with_content_hash(config: Official) -> Official:
    """The benchmark together with the hashes of its files as they are now."""
    update = {"content": hosted.content_hash(config)}
    if isinstance(config, MTBenchConfig) and config.references is not None:
        update["references_content"] = of_benchmark_file(config.references, hash_file)
    return config.model_copy(update=update)


def placeholder_questions(config: Official) -> list[Question]:
    """As many questions, and turns of each, as the benchmark is known to have; without their texts."""
    layout = _layout(config)
    return [Question(str(number), ("",) * layout.turns) for number in range(layout.prompts)]


def temperature(config: Official, question: Question) -> float | None:
    """The benchmark's own temperature for a question, where that is wanted."""
    if isinstance(config, ArenaHardConfig) and config.temperatures == "own":
        return 0.0
    if isinstance(config, MTBenchConfig) and config.temperatures == "own":
        if question.category not in MT_BENCH_TEMPERATURES:
            raise UsageError(
                f"question {question.id} has the category {question.category!r}, for which MT-Bench sets no "
                f"temperature (it does for {', '.join(MT_BENCH_TEMPERATURES)}); use temperatures: paper"
            )
        return MT_BENCH_TEMPERATURES[question.category]
    return None


def official_file(
    config: Official, model: str, answered: Sequence[tuple[Question, tuple[str, ...]]]
) -> tuple[str, str]:
    """Name and text of the official answer file."""
    layout = _layout(config)
    return layout.file.format(model=model), layout.write(model, answered)


def _layout(config: Official) -> Layout:
    return LAYOUTS[config.type.replace("_", "-")]


def _with_references(questions: list[Question], path: Path, pinned: str | None) -> list[Question]:
    """Questions with the reference answers that the file has for some of them."""
    with naming(path):
        models = LAYOUTS["mt-bench"].answers(read_rows(path, pinned))
    if len(models) != 1:
        raise UsageError(f"{path} holds reference answers of {len(models)} models; one is needed")
    (references,) = models.values()
    known = {question.id: question for question in questions}
    if strange := sorted(references.keys() - known.keys()):
        raise UsageError(f"{path} has reference answers to questions that are not asked, such as {strange[0]}")
    for name, turns in references.items():
        if len(turns) != len(known[name].turns):
            raise UsageError(f"{path}: the reference answer to question {name} has {len(turns)} turns")
    return [replace(question, references=references.get(question.id, ())) for question in questions]
