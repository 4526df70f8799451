"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions."""

import importlib
import os
from typing import Any
from urllib.parse import urlsplit

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError, UsageError
from dpr_core.judging.judge import Comparison, Judgment, Verdict
from dpr_core.judging.template import read_verdict, request_messages

OPENAI_URL = "https://api.openai.com/v1"
REQUEST_SECONDS = 120.0
_CUT_SHORT = ("length", "content_filter")


class OpenAIJudge:
    """Asks for reasons and a last line `VERDICT: A|B|TIE`. Whoever calls it bounds how many calls are open."""

    def __init__(self, config: settings.OpenAIJudge, execution: settings.JudgeExecution) -> None:
        self._config = config
        self._retries = execution.retries
        self._key_variable = execution.api_key_variable
        self._url = _checked_url(config.base_url or OPENAI_URL)
        self._openai = _library()
        self._key()
        self._client: Any = None
        self._limit = "max_completion_tokens"

    async def compare(self, comparison: Comparison) -> Judgment:
        messages = request_messages(comparison)
        failure = None
        try:
            completion = await self._ask(messages)
        except self._openai.APIError as error:
            failure = self._failure(error)
        if failure is not None:
            # Raised outside the handler: the client's error, which holds the request and its key, must not be chained.
            raise failure
        return self._judgment(completion)

    async def close(self) -> None:
        """Close the connections; the next comparison opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _ask(self, messages: list[dict[str, str]]) -> Any:
        limit = self._limit
        try:
            return await self._send(messages, limit)
        except self._openai.APIStatusError as error:
            refused = error.status_code in (400, 422) and limit in str(error)
            if not refused or limit == "max_tokens":
                raise
        # Servers older than `max_completion_tokens` know the same limit as `max_tokens`; the judgment's details say so.
        self._limit = "max_tokens"
        return await self._send(messages, self._limit)

    async def _send(self, messages: list[dict[str, str]], limit: str) -> Any:
        if self._client is None:
            self._client = self._openai.AsyncOpenAI(
                api_key=self._key(), base_url=self._url, max_retries=self._retries, timeout=REQUEST_SECONDS
            )
        return await self._client.chat.completions.create(
            model=self._config.model,
            messages=messages,
            temperature=self._config.temperature,
            **{limit: self._config.max_tokens},
        )

    def _judgment(self, completion: Any) -> Judgment:
        choices = getattr(completion, "choices", None)
        if not choices:
            raise DensePathError(
                f"{self._url} answered, but not with a chat completion; check judge.by.base_url and the model's name"
            )
        choice = choices[0]
        reply = choice.message.content or ""
        usage = completion.usage
        details = {
            "model": completion.model,
            "system_fingerprint": completion.system_fingerprint,
            "finish_reason": choice.finish_reason,
            "prompt_tokens": usage and usage.prompt_tokens,
            "completion_tokens": usage and usage.completion_tokens,
            "length_limit": self._limit,
        }
        verdict = Verdict.UNREADABLE if choice.finish_reason in _CUT_SHORT else read_verdict(reply)
        return Judgment(verdict, reply, {name: value for name, value in details.items() if value is not None})

    def _failure(self, error: Any) -> DensePathError:
        said = " ".join(str(error).split()).replace(self._key(), "<key>")[:500]
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return DensePathError(
                f"{self._url} refused the key in {self._key_variable} (HTTP {status}); "
                "check the key and its rights to this model"
            )
        if status is None:
            return DensePathError(
                f"{self._url} gave no answer after {self._retries} retries: {said}; check the address and the network"
            )
        return DensePathError(f"{self._url} refused a request for the model {self._config.model}: {said}")

    def _key(self) -> str:
        """Read at each use, so that no object of ours holds it."""
        name = self._key_variable
        key = os.environ.get(name, "").strip()
        if not key:
            raise UsageError(
                f"the environment variable {name}, which should hold the judge's API key, is not set; "
                "set it (any value for an endpoint without keys), or name another in judge.execution.api_key_variable"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"the environment variable {name} holds characters that no API key has; set it again")
        return key


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
