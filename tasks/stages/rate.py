"""Rate every turn of a policy's answers from 1 to 10, one answer at a time."""

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import RateConfig
from tasks.local_home import home_folder
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace
from tasks.stages.answer import answered, read_answers, write_rows
from tasks.stages.judge import JUDGE, VERDICTS, canary_metrics_of, keeping_canaries, policy_name, write_canaries

if TYPE_CHECKING:
    from dpr_core.evaluation.questions import Question
    from dpr_core.reporting.sections import RatedAnswers

logger = logging.getLogger("dense_path")

RATED = ", rated"
"""What the role of a rate artifact ends with among the inputs of a report, after "policy on benchmark"."""

RATINGS = "ratings.json"

JUDGMENTS = "model_judgment.jsonl"
"""Every rating as a row in FastChat's layout."""


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core.evaluation import canaries, judge
    from dpr_core.evaluation.ask import Unreadable
    from dpr_core.evaluation.rate import as_rows, rate_turns, summarise, turns_of

    settings = cast(RateConfig, config)
    answers = work.input("answers")
    pairs = answered(read_answers(answers.path))
    warn_of_references([question for question, _ in pairs])
    rater = judge.build_rater(settings, judge.rating_template(settings), work.store.home / VERDICTS)
    canary_metrics = {}
    if judge.costs_money(settings.by) and settings.execution.canaries:
        asked, kept = [question for question, _ in pairs], keeping_canaries(work, "rate")
        canary_metrics = asyncio.run(canaries.try_rater(rater, asked, settings.execution, work.advance, kept))
        write_canaries(work.output, canary_metrics)
    rated = asyncio.run(rate_turns(rater, turns_of(pairs, settings.judgings), settings.execution, work.advance))
    write_rows(work.output / JUDGMENTS, as_rows(rated, policy_name(answers, work), judge.rater_name(settings)))
    result = summarise(rated, settings.bootstrap_samples, settings.seed)
    unreadable = Unreadable.among([rating for _, rating in rated], "ratings")
    if result.unscored_share > settings.execution.max_unreadable_share:
        work.file(work.output / JUDGMENTS, "rate")
    unreadable.check(settings.execution, f"the judge's replies are in rate/{JUDGMENTS} of run {work.run.id}")
    (work.output / RATINGS).write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    served = judge.judged_by(settings.by, (given.details for _, given in rated))
    (work.output / JUDGE).write_text(json.dumps(served, indent=2) + "\n", encoding="utf-8")
    cut = sum(int(given.details.get("answers_cut", 0)) for _, given in rated)
    measured = result.as_metrics() | {"rate/answers_cut": float(cut)} | canary_metrics
    if unreadable.refused:
        measured["rate/refused"] = float(unreadable.refused)
    for warning in [*judge.judged_by_warnings(served), *canaries.warnings(measured)]:
        logger.warning("%s", warning)
    return measured


def warn_of_references(questions: "Sequence[Question]") -> None:
    """MT-Bench shows its judge a reference answer where there is one right result."""
    from dpr_core.evaluation.official import references

    for warning in references.warnings(questions):
        logger.warning("%s", warning)


def rated_in(work: Workspace) -> "list[RatedAnswers]":
    """What the rate artifacts among a stage's inputs came to, by the policy and benchmark that their roles name."""
    from dpr_core.evaluation import canaries
    from dpr_core.evaluation.judge import rater_name
    from dpr_core.evaluation.official import references
    from dpr_core.evaluation.rate import Ratings
    from dpr_core.reporting.sections import RatedAnswers

    found = []
    for role in work.inputs:
        artifact = work.input(role)
        if artifact.stage == STAGE.name:
            policy, _, benchmark = role.removesuffix(RATED).partition(" on ")
            ratings = Ratings(**json.loads((artifact.path / RATINGS).read_text(encoding="utf-8")))
            judge = rater_name(RateConfig.model_validate(artifact.config))
            complaints = canaries.warnings(canary_metrics_of(artifact, work.store.published(artifact.id)))
            answers = read_answers(work.artifact(artifact.inputs["answers"]).path)
            complaints += references.warnings(question for question, _ in answered(answers))
            found.append(RatedAnswers(policy, benchmark, judge, ratings, tuple(complaints)))
    return found


def pin(config: RateConfig) -> RateConfig:
    from dpr_core.evaluation.judge import rater_with_content_hash

    return rater_with_content_hash(config)


def preflight(configs: Sequence[RateConfig], planning: bool = False) -> None:
    """A rater without its key, its instructions or an endpoint that knows it is better known before the training."""
    from dpr_core.evaluation.judge import build_rater, probe_each, rater_with_content_hash, rating_template
    from dpr_core.evaluation.prices import price_warnings

    for config in map(rater_with_content_hash, configs):
        build_rater(config, rating_template(config))
    judges = [(config.by, config.execution) for config in configs]
    for warning in price_warnings(judges):
        logger.warning("%s", warning)
    probe_each(judges, home_folder() / VERDICTS, for_nothing=planning)


def describe(config: StageConfig) -> str:
    settings = cast(RateConfig, config)
    times = f", {settings.judgings} times each" if settings.judgings > 1 else ""
    return f"Ratings from 1 to 10 by {settings.by.type}{times}."


STAGE = Stage(
    name="rate",
    version=1,
    config=RateConfig,
    inputs={"answers": ("answer",)},
    body=body,
    describe=describe,
    pin=pin,
    preflight=preflight,
)
