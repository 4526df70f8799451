"""`dpr benchmark rate`: the answers of a file rated from 1 to 10, without any pipeline."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpr_core.errors import UsageError
from dpr_core.files import check_output
from dpr_core.text import escape_control
from flows.cli.benchmark import (
    IN_OUTPUT,
    keeping_canaries,
    only_model,
    reference_line,
    shown_references,
    write_rows,
)
from flows.cli.console import Debug, Json, Set, emit, reported

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dpr_core.config.evaluation import RateConfig
    from dpr_core.evaluation.official.layouts import Answers
    from dpr_core.evaluation.questions import Question
    from dpr_core.evaluation.rate import RatingTemplate

Answered = list[tuple["Question", tuple[str, ...]]]


def rate(
    answers: Annotated[Path, typer.Option(help="Answers of one model to MT-Bench, as FastChat writes them.")],
    questions: Annotated[Path, typer.Option(help="MT-Bench's own questions.")],
    references: Annotated[Path | None, typer.Option(help="Reference answers, which the judge is shown.")] = None,
    assignments: Set = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost; ask nobody.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write every rating there, in FastChat's layout.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rate every turn of MT-Bench answers from 1 to 10.

    Settings are those of the rate stage: --set judgings=3 --set by.temperature=0.7
    """
    with reported(debug):
        from dpr_core.config.base import override, parse
        from dpr_core.config.evaluation import RateConfig
        from dpr_core.config.official import MTBenchConfig
        from dpr_core.evaluation.benchmarks import load
        from dpr_core.evaluation.judge import rater_name, rater_with_content_hash, rating_cost, rating_template
        from dpr_core.evaluation.official.layouts import LAYOUTS
        from dpr_core.evaluation.prices import prices

        if output is not None:
            check_output(output)
        settings = rater_with_content_hash(parse(RateConfig, override({}, assignments), "rate"))
        model, given = only_model(LAYOUTS["mt-bench"], answers)
        loaded = load(
            MTBenchConfig(path=str(questions), references=str(references) if references is not None else None)
        )
        answered, missing = _answered(loaded, given)
        template = rating_template(settings)
        summary = {"model": model, "judge": rater_name(settings), "unanswered": missing}
        summary |= shown_references(references, [question for question, _ in answered])
        if dry_run:
            cost = rating_cost(settings, template, answered).as_dict() | {"prices": prices(settings.execution)}
            emit({**summary, **cost}, as_json, lambda: "\n".join(f"{name}: {value}" for name, value in cost.items()))
            return
        result = _rated(settings, template, model, answered, output)
        emit({**summary, **result}, as_json, lambda: _view(summary, result))


def _answered(questions: "list[Question]", given: "Answers") -> tuple[Answered, list[str]]:
    """The questions that were answered in all turns, and the others."""
    if unknown := sorted(given.keys() - {question.id for question in questions}):
        raise UsageError(
            f"{len(unknown)} answers are to questions that are not in the questions file, such as {unknown[0]}"
        )
    whole = [question for question in questions if len(given.get(question.id, ())) == len(question.turns)]
    if not whole:
        raise UsageError("no question has been answered in all its turns")
    answered = [(question, given[question.id]) for question in whole]
    return answered, [question.id for question in questions if question not in whole]


def _rated(
    settings: "RateConfig", template: "RatingTemplate", model: str, answered: Answered, output: Path | None
) -> dict[str, Any]:
    from dpr_core.evaluation import canaries, judge
    from dpr_core.evaluation.ask import Unreadable
    from dpr_core.evaluation.rate import as_rows, rate_turns, summarise, turns_of
    from tasks.local_home import open_home
    from tasks.running.progress import StageProgress
    from tasks.stages.judge import VERDICTS
    from tasks.stages.rate import preflight, warn_of_references

    preflight([settings])
    warn_of_references([question for question, _ in answered])
    home = open_home()
    rater = judge.build_rater(settings, template, home / VERDICTS)
    canary_metrics: dict[str, float] = {}
    with StageProgress("rate") as progress:
        if judge.costs_money(settings.by) and settings.execution.canaries:
            asked, kept = [question for question, _ in answered], keeping_canaries(home)
            canary_metrics = asyncio.run(canaries.try_rater(rater, asked, settings.execution, progress.advance, kept))
        turns = turns_of(answered, settings.judgings)
        rated = asyncio.run(rate_turns(rater, turns, settings.execution, progress.advance))
    if output is not None:
        write_rows(output, as_rows(rated, model, judge.rater_name(settings)))
    print(rater.status(), file=sys.stderr)
    result = summarise(rated, settings.bootstrap_samples, settings.seed)
    unreadable = Unreadable.among([rating for _, rating in rated], "ratings")
    unreadable.check(settings.execution, IN_OUTPUT)
    served = judge.judged_by(settings.by, (rating.details for _, rating in rated))
    warnings = [*canaries.warnings(result.as_metrics() | canary_metrics), *judge.judged_by_warnings(served)]
    return {**result.as_dict(), "refused": unreadable.refused, **canary_metrics, "warnings": warnings}


def _view(summary: dict[str, Any], result: dict[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from dpr_core.evaluation.rate import Ratings
    from dpr_core.reporting.sections import RatedAnswers, ratings_caption, ratings_table

    ratings = Ratings(**{name: result[name] for name in Ratings.__dataclass_fields__})
    rated = [RatedAnswers(summary["model"], "mt_bench", summary["judge"], ratings)]
    lines = [ratings_caption(rated)]
    if summary["unanswered"]:
        lines.append(f"{len(summary['unanswered'])} questions are left out: not answered in all turns")
    if result["refused"]:
        lines.append(f"{result['refused']} of the unreadable ratings were refused by the endpoint")
    lines += [reference_line(summary), *(f"! {line}" for line in result["warnings"])]
    shown = ratings_table(rated)
    return Group(shown.as_terminal("Ratings"), *(Text(escape_control(line)) for line in lines))
