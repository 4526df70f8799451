"""Single-answer ratings from 1 to 10, and the table that builds a rater from its settings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpr_core.config import evaluation as settings
from dpr_core.config.evaluation import OpenAIRaterConfig, RateConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rating import canary
from dpr_core.evaluation.rating.chat import ChatRater
from dpr_core.evaluation.rating.fastchat import FastChatPrompts
from dpr_core.evaluation.rating.rater import Prompts, Rater, Rating, Turn, rate_all, turns_of
from dpr_core.evaluation.rating.scripted import ScriptedRater
from dpr_core.evaluation.rating.template import DIGEST, OwnPrompts
from dpr_core.hashing import of_file

KINDS: dict[type[settings.Rater], Callable[[Any, RateConfig, Prompts, Path | None], Rater]] = {
    settings.ScriptedRaterConfig: lambda by, config, prompts, cache: ScriptedRater(by.rule, prompts),
    OpenAIRaterConfig: lambda by, config, prompts, cache: ChatRater(
        by, config.execution, prompts, VerdictCache(cache) if cache is not None else None, _identity(config)
    ),
}


def pinned(config: RateConfig) -> RateConfig:
    """The settings together with the hash of the instructions that the rater is given."""
    if config.prompts is not None:
        return config.model_copy(update={"prompts_content": _hash(config.prompts)})
    if isinstance(config.by, OpenAIRaterConfig):
        return config.model_copy(update={"by": config.by.model_copy(update={"template": DIGEST})})
    return config


def prompts_of(config: RateConfig) -> Prompts:
    """This project's own instructions, or those of the file that the settings name."""
    return OwnPrompts() if config.prompts is None else FastChatPrompts.read_from(Path(config.prompts).expanduser())


def build(config: RateConfig, prompts: Prompts, cache: Path | None = None) -> Rater:
    """The rater that the settings name; UsageError where it cannot work here (no key, no client library).

    With `cache`, a rater that costs anything is never asked the same twice.
    """
    return KINDS[type(config.by)](config.by, config, prompts, cache)


async def rate_answers(
    rater: Rater,
    config: RateConfig,
    answered: Sequence[tuple[Question, tuple[str, ...]]],
    on_progress: Callable[[int, int, str], None],
) -> tuple[list[tuple[Turn, Rating]], dict[str, float]]:
    """A rating of every turn of every answer, and what was found when a rater that costs money was tried first."""
    tried = {}
    if isinstance(config.by, OpenAIRaterConfig) and config.execution.canaries:
        tried = await canary.try_out(rater, [question for question, _ in answered], config.execution)
    turns = turns_of(answered, config.judgings)
    ratings = await rate_all(rater, turns, config.execution, on_progress)
    return list(zip(turns, ratings, strict=True)), tried


def judge_name(config: RateConfig) -> str:
    """What the rater is called in FastChat's rows."""
    return config.by.model if isinstance(config.by, OpenAIRaterConfig) else config.by.type


def _identity(config: RateConfig) -> str:
    """All that a rating depends on, beside what is rated."""
    known = pinned(config)
    return json.dumps(["rate", known.by.model_dump(mode="json"), known.prompts_content])


def _hash(path: str) -> str:
    try:
        return of_file(Path(path).expanduser())
    except OSError as error:
        raise UsageError(f"rate.prompts: {path} cannot be read: {error.strerror}") from None
