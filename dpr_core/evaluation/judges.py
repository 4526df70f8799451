"""Judges, and the table that builds one from its settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_core.config import evaluation as settings
from dpr_core.evaluation.batch.batch_judge import OpenAIBatchJudge
from dpr_core.evaluation.cache import CachedJudge, VerdictCache
from dpr_core.evaluation.judge import Judge
from dpr_core.evaluation.openai import OpenAIJudge
from dpr_core.evaluation.prompts import TEMPLATE_DIGEST
from dpr_core.evaluation.questions import ReadResult
from dpr_core.evaluation.scripted import ScriptedJudge
from dpr_core.evaluation.verifiable import VerifiableJudge

KINDS: dict[type[settings.Judge], Callable[[Any, settings.JudgeExecutionConfig, ReadResult, Path | None], Judge]] = {
    settings.VerifiableJudgeConfig: lambda config, execution, read_result, cache: VerifiableJudge(read_result),
    settings.ScriptedJudgeConfig: lambda config, execution, read_result, cache: ScriptedJudge(config.rule),
    settings.OpenAIJudgeConfig: lambda config, execution, read_result, cache: OpenAIJudge(config, execution),
    settings.OpenAIBatchJudgeConfig: lambda config, execution, read_result, cache: OpenAIBatchJudge(
        config, execution, identity(config), cache
    ),
}


def pinned(config: settings.Judge) -> settings.Judge:
    """The judge together with the hash of the instructions that it is given."""
    if isinstance(config, settings.ChatCompletionsConfig):
        return config.model_copy(update={"template": TEMPLATE_DIGEST})
    return config


def identity(config: settings.Judge) -> str:
    """All of a judge that a verdict depends on. How a request is delivered is not: a batch shares what it knows."""
    if isinstance(config, settings.OpenAIBatchJudgeConfig):
        config = settings.OpenAIJudgeConfig.model_validate(config.model_dump(exclude={"type"}))
    return pinned(config).model_dump_json()


def costs_money(config: settings.Judge) -> bool:
    """Whether a verdict has to be paid for."""
    return isinstance(config, settings.ChatCompletionsConfig)


def build(
    config: settings.Judge, execution: settings.JudgeExecutionConfig, read_result: ReadResult, cache: Path | None = None
) -> Judge:
    """The judge that the settings name; UsageError where it cannot work here (no key, no client library).

    With `cache`, a judge that costs anything is never asked the same twice.
    """
    judge = KINDS[type(config)](config, execution, read_result, cache)
    if cache is not None and costs_money(config):
        return CachedJudge(judge, VerdictCache(cache), identity(config))
    return judge
