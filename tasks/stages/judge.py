"""Compare two policies' answers to the same questions, each pair in both orders."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import AnswerConfig, ChatJudgeConfig, JudgeConfig
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact, Record
from tasks.local_home import home_folder
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace
from tasks.stages.answer import OFFICIAL, answered, model_name, read_answers, same_questions, write_rows
from tasks.stages.judge_traces import instructions, traced_share, traces_of

logger = logging.getLogger("dense_path")

WIN_RATE = "win_rate.json"
GAMES = "games.jsonl"

JUDGE = "judge.json"
"""Who judged: the settings, and the models and versions that the replies name."""

SCORES = "official.json"
"""The benchmark's own score, where its own prompts were used; its own file of judgments is in the folder `official`."""

CANARIES = "canaries.json"
"""What the canaries came to, where there were any: a report warns by it."""

CANARY_REPLIES = "canary_replies.jsonl"
"""What the judge or rater wrote of them."""

VERDICTS = "verdicts.sqlite"
"""The cache of all verdicts that were paid for, in `DPR_HOME`."""


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core.evaluation import benchmarks, canaries, protocols
    from dpr_core.evaluation.ask import Unreadable
    from dpr_core.evaluation.judge import (
        build_judge,
        costs_money,
        judged_by,
        judged_by_warnings,
        judging_protocol,
        rounds,
    )
    from dpr_core.evaluation.pairwise import Answer, Pair, answers_cut, judge_pairs, summarise
    from dpr_core.hashing import refuse_changed

    settings, share = cast(JudgeConfig, config), traced_share()
    candidate, baseline = work.input("candidate"), work.input("baseline")
    ours, theirs = (answered(read_answers(side.path)) for side in (candidate, baseline))
    if not same_questions((question for question, _ in ours), (question for question, _ in theirs)):
        raise UsageError(f"answers {candidate.id[:8]} and {baseline.id[:8]} are not to the same questions")
    pairs = [
        Pair(mine if mine.category else its, Answer(a), Answer(b))
        for (mine, a), (its, b) in zip(ours, theirs, strict=True)
    ]
    benchmark = AnswerConfig.model_validate(candidate.config).benchmark
    protocol = judging_protocol(settings)
    if protocol is not None:
        assert isinstance(settings.by, ChatJudgeConfig)
        refuse_changed(str(settings.prompts), settings.by.template, protocol.digest)
        for pair in pairs:
            protocol.refuse(pair.question)
        questions, theirs_called = [pair.question for pair in pairs], policy_name(baseline, work)
        others = protocol.baseline_warnings((question, theirs_called) for question in questions)
        for warning in [*protocol.about(questions), *others]:
            logger.warning("%s", warning)
    is_right = benchmarks.checker(benchmark)
    judge = build_judge(settings.by, settings.execution, is_right, work.store.home / VERDICTS, protocol)
    canary_metrics = {}
    if costs_money(settings.by) and settings.execution.canaries:
        kept = keeping_canaries(work, "judge")
        canary_metrics = asyncio.run(canaries.try_judge(judge, pairs, settings.execution, work.advance, kept))
        for warning in canaries.warnings(canary_metrics):
            logger.warning("%s", warning)
        write_canaries(work.output, canary_metrics)
    played = rounds(pairs, protocol)
    games = asyncio.run(judge_pairs(judge, played, settings.execution, work.advance, folder=work.store.home))
    result = summarise(games, settings.bootstrap_samples, settings.seed, (pair.question for pair in pairs))
    write_rows(work.output / GAMES, (game.as_dict() for game in games))
    unreadable = Unreadable.among(games, "verdicts")
    if result.unreadable_share > settings.execution.max_unreadable_share:
        work.file(work.output / GAMES, "judge")
    unreadable.check(settings.execution, f"the judge's replies are in judge/{GAMES} of run {work.run.id}")
    (work.output / WIN_RATE).write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    official_metrics = {}
    if protocol is not None:
        ours_called, theirs_called = policy_name(candidate, work), policy_name(baseline, work)
        found = protocols.official(protocol, played, games, ours_called, [theirs_called] * len(played), settings.by)
        found.write(work.output / OFFICIAL)
        (work.output / SCORES).write_text(json.dumps(found.scores, indent=2) + "\n", encoding="utf-8")
        official_metrics = found.metrics()
    served = judged_by(settings.by, (game.details for game in games))
    (work.output / JUDGE).write_text(json.dumps(served, indent=2) + "\n")
    for warning in judged_by_warnings(served):
        logger.warning("%s", warning)
    if share:
        work.run.traces(instructions(settings), traces_of(work.run.id, settings, share, played, games))
    measured = {
        f"judge/{name}": float(value) for name, value in result.as_dict().items() if isinstance(value, int | float)
    }
    if unreadable.refused:
        measured["judge/refused"] = float(unreadable.refused)
    return measured | {"judge/answers_cut": float(answers_cut(games))} | canary_metrics | official_metrics


def policy_name(answers: Artifact, work: Workspace) -> str:
    """What the answers' own official file calls the policy."""
    settings = AnswerConfig.model_validate(answers.config)
    return model_name(settings, work.store.record(answers.inputs["policy"]).stage)


def keeping_canaries(work: Workspace, stage: str) -> Callable[[list[dict[str, Any]]], str]:
    """Writes the rows of the canaries down, beside the payload too: it comes to nothing where none could be read."""

    def keep(rows: list[dict[str, Any]]) -> str:
        write_rows(work.output / CANARY_REPLIES, rows)
        work.file(work.output / CANARY_REPLIES, stage)
        return f"the replies are in {stage}/{CANARY_REPLIES} of run {work.run.id}"

    return keep


def write_canaries(folder: Path, measured: Mapping[str, float]) -> None:
    (folder / CANARIES).write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def canary_metrics_of(artifact: Artifact, record: Record) -> Mapping[str, float]:
    """What the canaries of a judge or a rater came to, and its other results; an earlier version kept both as a tag."""
    file = artifact.path / CANARIES
    canary_metrics: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {**record.results, **canary_metrics}


def pin(config: JudgeConfig) -> JudgeConfig:
    from dpr_core.evaluation.judge import judging_by

    return judging_by(config)[0]


def preflight(configs: Sequence[JudgeConfig], planning: bool = False) -> None:
    """A judge without key, library or an endpoint that knows it is better known before the training than after."""
    from dpr_core.evaluation.judge import build_judge, judging_by, probe_each
    from dpr_core.evaluation.prices import price_warnings

    traced_share()
    found = [judging_by(config) for config in configs]
    for config, protocol in found:
        build_judge(config.by, config.execution, lambda question, text: None, protocol=protocol)
    judges = [(config.by, config.execution) for config, _ in found]
    warnings = [
        warning
        for config, protocol in found
        if protocol is not None and isinstance(config.by, ChatJudgeConfig)
        for warning in protocol.warnings(config.by.model)
    ]
    for warning in [*price_warnings(judges), *dict.fromkeys(warnings)]:
        logger.warning("%s", warning)
    probe_each(judges, home_folder() / VERDICTS, for_nothing=planning)


def describe(config: StageConfig) -> str:
    return f"Win rate judged by {cast(JudgeConfig, config).by.type}, both orders, ties 0.5."


STAGE = Stage(
    name="judge",
    version=2,
    config=JudgeConfig,
    inputs={"candidate": ("answer",), "baseline": ("answer",)},
    body=body,
    describe=describe,
    pin=pin,
    preflight=preflight,
)
