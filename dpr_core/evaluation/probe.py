"""One short request before any work, so that a wrong key, address or model is known then and not hours later."""

import asyncio
from collections.abc import Iterable

from dpr_core.config import evaluation as settings
from dpr_core.config.base import Config
from dpr_core.evaluation.endpoint import Endpoint
from dpr_core.evaluation.judge import Unavailable, Unreachable
from dpr_core.evaluation.prompts import SCHEMA

REQUEST = [{"role": "user", "content": "Say yes."}]

MOST_TOKENS = 16
"""Of the reply, whatever the judge may write otherwise."""

MOST_SECONDS = 30.0


def probe_each(judges: Iterable[tuple[Config, settings.JudgeExecutionConfig]]) -> None:
    """Ask every endpoint once, however many judges are behind it, but for those with `check_endpoint` off."""
    found = {
        (by.base_url, by.model, by.api_version, execution.api_key_variable): (by, execution)
        for by, execution in judges
        if isinstance(by, settings.ChatCompletionsConfig) and execution.check_endpoint
    }
    for by, execution in found.values():
        probe(by, execution)


def probe(config: settings.ChatCompletionsConfig, execution: settings.JudgeExecutionConfig) -> None:
    """Raise what would make every request fail. An endpoint that is there but overloaded or slow passes."""
    asyncio.run(_ask(config, execution))


async def _ask(config: settings.ChatCompletionsConfig, execution: settings.JudgeExecutionConfig) -> None:
    small = config.model_copy(update={"max_tokens": MOST_TOKENS})
    seconds = min(MOST_SECONDS, execution.request_seconds)
    once = execution.model_copy(update={"retries": 0, "request_seconds": seconds})
    endpoint = Endpoint(small, once)
    demanded = isinstance(config, settings.ChatJudgeConfig) and config.verdicts == "schema"
    try:
        await endpoint.ask(REQUEST, SCHEMA if demanded else None)
    except Unreachable:
        raise
    except Unavailable:
        return
    finally:
        await endpoint.close()
