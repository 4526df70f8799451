"""Judges, and the table that builds one from its settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_core.benchmarks.base import ReadResult
from dpr_core.config import evaluation as settings
from dpr_core.judging.cache import CachedJudge, VerdictCache
from dpr_core.judging.judge import Judge
from dpr_core.judging.openai import OpenAIJudge
from dpr_core.judging.scripted import ScriptedJudge
from dpr_core.judging.template import TEMPLATE_DIGEST
from dpr_core.judging.verifiable import VerifiableJudge

KINDS: dict[type[settings.Judge], Callable[[Any, settings.JudgeExecution, ReadResult], Judge]] = {
    settings.VerifiableJudge: lambda config, execution, read_result: VerifiableJudge(read_result),
    settings.ScriptedJudge: lambda config, execution, read_result: ScriptedJudge(config.rule),
    settings.OpenAIJudge: lambda config, execution, read_result: OpenAIJudge(config, execution),
}


def pinned(config: settings.Judge) -> settings.Judge:
    """The judge together with the hash of the instructions that it is given."""
    if isinstance(config, settings.ChatCompletions):
        return config.model_copy(update={"template": TEMPLATE_DIGEST})
    return config


def costs_money(config: settings.Judge) -> bool:
    """Whether a verdict has to be paid for."""
    return isinstance(config, settings.ChatCompletions)


def build(
    config: settings.Judge, execution: settings.JudgeExecution, read_result: ReadResult, cache: Path | None = None
) -> Judge:
    """The judge that the settings name; UsageError where it cannot work here (no key, no client library).

    With `cache`, a judge that costs anything is never asked the same twice.
    """
    judge = KINDS[type(config)](config, execution, read_result)
    if cache is not None and costs_money(config):
        return CachedJudge(judge, VerdictCache(cache), pinned(config).model_dump_json())
    return judge
