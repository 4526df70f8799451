"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions."""

import importlib
import os
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError, UsageError
from dpr_core.judging.judge import Answer, Comparison, Judgment, Unavailable, Verdict
from dpr_core.judging.pace import Pace
from dpr_core.judging.spending import Meter, price_of, tokens_of
from dpr_core.judging.template import SCHEMA, read_json_verdict, read_verdict, request_messages

OPENAI_URL = "https://api.openai.com/v1"

CUT_SHORT = ("length", "content_filter")
"""Reasons to end after which a reply is not the judge's whole say."""

MAY_PASS = (408, 409, 425, 429)
"""Refusals, besides the server's own failures, that another time may not bring."""


class OpenAIJudge:
    """Asks for reasons and a verdict. Whoever calls it bounds how many calls are open."""

    def __init__(self, config: settings.OpenAIJudge, execution: settings.JudgeExecution) -> None:
        self._config = config
        self._execution = execution
        self._url = _checked_url(config.base_url or OPENAI_URL)
        self._openai = _library()
        self._key()
        self._client: Any = None
        self._limit = "max_completion_tokens"
        self._as_json = config.verdicts != "text"
        self._json_was_read = config.verdicts == "schema"
        self._requests = Pace(execution.requests_per_minute)
        self._tokens = Pace(execution.tokens_per_minute)
        price = price_of(config.model, execution.dollars_per_million_read, execution.dollars_per_million_written)
        if price is None and execution.budget_dollars is not None:
            raise UsageError(
                f"judge.execution.budget_dollars is set, but no price of {config.model} is known; set "
                "dollars_per_million_read and dollars_per_million_written beside it"
            )
        self.meter = Meter(price, execution.budget_dollars)

    async def compare(self, comparison: Comparison) -> Judgment:
        comparison, cut = self._cut(comparison)
        judgment = await self._compare(comparison)
        if judgment.verdict is not Verdict.UNREADABLE:
            self._json_was_read |= self._as_json
        elif judgment.details.get("verdicts") == "schema" and not self._json_was_read:
            # Some endpoints take a schema and then pay no heed to it.
            self._as_json = False
            judgment = await self._compare(comparison)
        return replace(judgment, details={**judgment.details, "answers_cut": cut}) if cut else judgment

    def _cut(self, comparison: Comparison) -> tuple[Comparison, int]:
        """Answers no longer than the limit, and how many had to be cut."""
        limit = self._config.max_answer_characters
        answers = (comparison.first, comparison.second)
        cut = [Answer(tuple(turn[:limit] for turn in answer.turns)) for answer in answers]
        return replace(comparison, first=cut[0], second=cut[1]), sum(a != b for a, b in zip(answers, cut, strict=True))

    async def _compare(self, comparison: Comparison) -> Judgment:
        asked = tokens_of(comparison)
        reserved = self.meter.reserve(asked, self._config.max_tokens)
        await self._requests.wait()
        await self._tokens.wait(asked + self._config.max_tokens)
        failure: DensePathError | None = None
        try:
            completion, as_json = await self._ask(comparison)
        except self._openai.APIError as error:
            failure = self._failure(error)
        except ValueError as error:
            # The client passes on what its JSON reader says of a reply that was cut off.
            failure = Unavailable(f"{self._url} sent a reply that could not be read: {error}")
        if failure is not None:
            self.meter.release(reserved)
            # Raised outside the handler: the client's error, which holds the request and its key, must not be chained.
            raise failure
        usage = getattr(completion, "usage", None)
        self.meter.settle(reserved, usage.prompt_tokens if usage else asked, usage.completion_tokens if usage else 0)
        return self._judgment(completion, as_json)

    def status(self) -> str:
        if not self.meter.requests:
            return ""
        spent = self.meter.spent
        return f"{self.meter.requests} requests" + ("" if spent is None else f", ${spent:.2f}")

    async def close(self) -> None:
        """Close the connections; the next comparison opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _ask(self, comparison: Comparison) -> tuple[Any, bool]:
        """Two things an endpoint may not know are found out by asking: the name of the length limit, and schemas."""
        while True:
            limit, as_json = self._limit, self._as_json
            try:
                return await self._send(request_messages(comparison, as_json), limit, as_json), as_json
            except self._openai.APIStatusError as error:
                if error.status_code not in (400, 422):
                    raise
                said = str(error)
                if as_json and self._config.verdicts == "auto" and _is_about_schemas(said):
                    self._as_json = False
                elif limit == "max_completion_tokens" and limit in said:
                    # Servers older than this name know the same limit as `max_tokens`.
                    self._limit = "max_tokens"
                else:
                    raise

    async def _send(self, messages: list[dict[str, str]], limit: str, as_json: bool) -> Any:
        if self._client is None:
            self._client = self._connect()
        return await self._client.chat.completions.create(
            model=self._config.model,
            messages=messages,
            temperature=self._config.temperature,
            **{limit: self._config.max_tokens},
            **({"response_format": SCHEMA} if as_json else {}),
        )

    def _connect(self) -> Any:
        common = {
            "api_key": self._key(),
            "max_retries": self._execution.retries,
            "timeout": self._execution.request_seconds,
        }
        if self._config.api_version is not None:
            return self._openai.AsyncAzureOpenAI(
                azure_endpoint=self._url, api_version=self._config.api_version, **common
            )
        return self._openai.AsyncOpenAI(base_url=self._url, **common)

    def _judgment(self, completion: Any, as_json: bool) -> Judgment:
        choices = getattr(completion, "choices", None)
        if not choices:
            raise DensePathError(
                f"{self._url} answered, but not with a chat completion; check judge.by.base_url and the model's name"
            )
        choice = choices[0]
        reply = choice.message.content or getattr(choice.message, "refusal", None) or ""
        usage = completion.usage
        details = {
            "model": completion.model,
            "system_fingerprint": completion.system_fingerprint,
            "finish_reason": choice.finish_reason,
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "length_limit": self._limit,
            "verdicts": "schema" if as_json else "text",
        }
        read = read_json_verdict if as_json else read_verdict
        verdict = Verdict.UNREADABLE if choice.finish_reason in CUT_SHORT else read(reply)
        return Judgment(verdict, reply, {name: value for name, value in details.items() if value is not None})

    def _failure(self, error: Any) -> DensePathError:
        said = " ".join(str(error).split()).replace(self._key(), "<key>")[:500]
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return DensePathError(
                f"{self._url} refused the key in {self._execution.api_key_variable} (HTTP {status}); "
                "check the key and its rights to this model"
            )
        if status is None:
            return Unavailable(
                f"{self._url} gave no answer after {self._execution.retries} retries: {said}; "
                "check the address and the network"
            )
        if status in MAY_PASS or status >= 500:
            return Unavailable(f"{self._url} failed {self._execution.retries} retries long (HTTP {status}): {said}")
        return DensePathError(f"{self._url} refused a request for the model {self._config.model}: {said}")

    def _key(self) -> str:
        """Read at each use, so that no object of ours holds it."""
        name = self._execution.api_key_variable
        key = os.environ.get(name, "").strip()
        if not key:
            raise UsageError(
                f"the environment variable {name}, which should hold the judge's API key, is not set; "
                "set it (any value for an endpoint without keys), or name another in judge.execution.api_key_variable"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"the environment variable {name} holds characters that no API key has; set it again")
        return key


def _is_about_schemas(message: str) -> bool:
    return any(word in message for word in ("response_format", "json_schema", "structured output", "guided"))


def _library() -> Any:
    try:
        return importlib.import_module("openai")
    except ModuleNotFoundError:
        raise UsageError(
            "the OpenAI judge needs the `openai` package, which is not installed; pip install 'dense-path[judge]'"
        ) from None


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"judge.by.base_url: {url!r} is no address; expected something like http://127.0.0.1:8000/v1")
    return url.rstrip("/")
