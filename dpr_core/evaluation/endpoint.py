"""Client of an OpenAI-compatible chat completions endpoint: retries, rate limits, failures and the budget's meter."""

import asyncio
import importlib
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.budget import Meter, most_tokens_in, tokens_in
from dpr_core.evaluation.prices import Usage, count_in, price_of
from dpr_core.evaluation.spending import Spending
from dpr_core.redaction import holds_key, read_key, redact

OPENAI_URL = "https://api.openai.com/v1"
COMPLETIONS = "/chat/completions"

TOO_LONG = ("length", "model_length", "max_tokens")
KEPT_BACK = ("content_filter", "refusal")
CUT_SHORT = (*TOO_LONG, *KEPT_BACK)
"""Reasons to end after which a reply is not the model's whole say."""

MAY_PASS = (408, 409, 425, 429)
"""Refusals, besides the server's own failures, that another time may not bring."""

NO_MONEY = "insufficient_quota"
"""The code of a 429 that no waiting helps against."""

OF_ALL_REQUESTS = (404, 405)
"""Refusals of the model or the address. Any other, but for those of key and account, is of what one request says."""

OF_ALL_BY_CODE = ("model_not_found", "invalid_api_key")

ABOUT_CONTENT = ("flagged", "moderation", "content management", "content filter", "content_filter")
"""Words of a 403 that is no matter of the key."""

WRONG_KEY = re.compile(
    r"(?:invalid|incorrect|missing|expired)\W+api.key|api.key (?:is )?(?:not|invalid|expired|missing)", re.I
)
"""What some vendors say with no status of its own. A server that repeats a request about keys says no such thing."""

THINKING_SPENT = "output limit was reached"
"""Of OpenAI's refusal where thinking alone took all of the length limit."""

NO_TEMPERATURE = re.compile(
    r"unsupported[^{}]{0,60}temperature|temperature[^{}]{0,60}(?:support|deprecated|only|permitted|allowed)", re.I
)
"""A refusal of any temperature but the model's own. A server that repeats the request names it for no reason."""

NO_CONNECTION = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
"""What httpx calls a failure before anything was sent."""

MAY_COST = (408, 499)
"""Refusals that some proxies send for a request that was being answered."""

READ_BEFORE_REFUSED = (*ABOUT_CONTENT, "context length", "context_length_exceeded")
"""Words of refusals that some vendors charge for, Azure among them: a filter or a limit has been at work."""

COST_NOTHING = (503, 529)
"""Failures of a server that has no time for the request."""

FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_TOLD = 0.5, 8.0, 120.0
"""Seconds before a request is sent again: twice as long each time, or as long as the endpoint says."""

Messages = list[dict[str, str]]


class UnavailableError(DensePathError):
    """No reply this time, for a reason that may pass: the same request may be sent again later."""


class UnreachableError(UnavailableError):
    """Nobody is there, or somebody who does not speak this language. It may pass; before a run it is a mistake."""


class RefusedError(DensePathError):
    """The endpoint refuses what this one request says, as too long or by a filter; others it may take."""


class SchemaRefusedError(DensePathError):
    """The endpoint does not know how to answer in a given schema."""


class OtherVersionError(DensePathError):
    """The reply is not of the version of the model that was asked for."""


@dataclass(frozen=True)
class Reply:
    """What the model said, and what the endpoint told about its work."""

    text: str
    is_whole: bool
    """False where it was cut at the length limit or by a filter, or is a refusal in words."""
    details: Mapping[str, str | int]


class RateLimiter:
    """So many units a minute, evenly spread: `wait` returns when they may be used. None sets no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_a_unit = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    async def wait(self, units: float = 1) -> None:
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + units * self._seconds_a_unit
        if start > now:
            await asyncio.sleep(start - now)


class Endpoint:
    """One model behind one address. Whoever calls it bounds how many calls are open."""

    def __init__(
        self,
        config: settings.ChatCompletionsConfig,
        execution: settings.JudgeExecutionConfig,
        ledger: Spending | None = None,
    ) -> None:
        self.config = config
        self.execution = execution
        self.url = _checked_url(config.base_url or OPENAI_URL)
        self.library = _library()
        self._key()
        self._client: Any = None
        self._limit = "max_completion_tokens"
        self._takes_temperature = True
        self._requests = RateLimiter(execution.requests_per_minute)
        self._tokens = RateLimiter(execution.tokens_per_minute)
        price = price_of(config, execution)
        if price is None and execution.budget_dollars is not None:
            raise UsageError(
                f"judge.execution.budget_dollars is set, but no price of {config.model} is known; set "
                "dollars_per_million_read and dollars_per_million_written beside it"
            )
        self.meter = Meter(price, execution.budget_dollars, ledger, execution.budget_account, config.model)

    async def ask(self, messages: Messages, schema: Mapping[str, Any] | None = None) -> Reply:
        """One completion. After SchemaRefusedError ask without; after UnavailableError, later; after RefusedError, for
        something else; after others, for nothing."""
        for again in range(self.execution.retries + 1):
            outcome, pause = await self._try(messages, schema, again)
            if isinstance(outcome, Reply):
                return outcome
            failure = outcome
            if pause is None or again == self.execution.retries:
                break
            await asyncio.sleep(pause)
        # Raised outside the handler: the client's error, which holds the request and its key, must not be chained.
        raise failure

    async def _try(
        self, messages: Messages, schema: Mapping[str, Any] | None, again: int
    ) -> tuple[Reply | DensePathError, float | None]:
        """Send it once, charged by itself: the reply, or a failure and the seconds after which it may be sent again."""
        limit = self.config.max_tokens
        await self._requests.wait()
        if self.execution.tokens_per_minute is not None:
            await self._tokens.wait(tokens_in(messages) + limit)
        charge = await self.meter.charge(most_tokens_in(messages, schema), limit)
        try:
            completion = await self._complete(messages, schema)
        except self.library.APIError as error:
            if _may_have_cost(error):
                self.meter.lose(charge)
            else:
                self.meter.withdraw(charge)
            failure = self.failure(error, schema is not None)
            return failure, _pause(error, again) if isinstance(failure, UnavailableError) else None
        except ValueError as error:
            # The client passes on what its JSON reader says of a reply that was cut off.
            self.meter.lose(charge)
            return self.unreadable(error), None
        except BaseException:
            self.meter.lose(charge)
            raise
        if not _is_completion(completion):
            self.meter.lose(charge)
            return UnreachableError(
                f"{self.url} answered, but not with a chat completion; check judge.by.base_url, which often ends in "
                "/v1, and the model's name"
            ), None
        self.meter.answer(charge, Usage.told(getattr(completion, "usage", None)))
        return self.reply(completion), None

    async def knock(self) -> None:
        """Ask for the list of models, which costs nothing, and raise if nobody is there or the key is refused."""
        failure: DensePathError | None = None
        try:
            await self.client.models.list()
        except self.library.APIError as error:
            # Not every endpoint has such a list.
            if getattr(error, "status_code", None) in (None, 401, 403):
                failure = self.failure(error)
        except ValueError:
            pass
        if failure is not None:
            raise failure

    def body(self, messages: Messages, schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The request as the endpoint takes it, as far as that is known."""
        return self._body(messages, schema, self._limit, self._takes_temperature)

    def _body(
        self, messages: Messages, schema: Mapping[str, Any] | None, limit: str, takes_temperature: bool
    ) -> dict[str, Any]:
        optional = {
            "temperature": self.config.temperature if takes_temperature else None,
            "reasoning_effort": self.config.reasoning_effort,
            "response_format": dict(schema) if schema is not None else None,
            "logprobs": True if self.config.top_logprobs else None,
            "top_logprobs": self.config.top_logprobs,
        }
        return {
            "model": self.config.model,
            "messages": messages,
            limit: self.config.max_tokens,
            **{name: value for name, value in optional.items() if value is not None},
            **(self.config.extra_body or {}),
        }

    def reply(self, completion: Any) -> Reply:
        """What is read of a completion, as it was written: what is kept and parsed must not be changed.

        OtherVersionError where a version of the model wrote it that may not judge.
        """
        choice, usage = completion.choices[0], completion.usage
        refusal = getattr(choice.message, "refusal", None)
        # The library checks no type. A reply may end in half of an emoji, which no file takes.
        texts = (text for text in (choice.message.content, refusal) if text and isinstance(text, str))
        said = next(texts, "")
        is_kept_back = refusal or choice.finish_reason in KEPT_BACK
        if self.config.top_logprobs and said and not is_kept_back:
            said = json.dumps(self._choice_with_logprobs(choice))
        said = said.encode("utf-8", "replace").decode()
        self._refuse_key_in(said, completion.model, completion.system_fingerprint, choice.finish_reason)
        wanted, version = self.config.system_fingerprint, completion.system_fingerprint
        if wanted is not None and version != wanted:
            raise OtherVersionError(
                f"{self.url} answers as {version or 'a version without a name'}, not as "
                f"judge.by.system_fingerprint={wanted}; judge everything with one version: set that one, or none to "
                "take any"
            )
        # Where the first token is all that is read, the end of the reply is no loss.
        is_cut = choice.finish_reason in (KEPT_BACK if self.config.top_logprobs else CUT_SHORT)
        thinking = count_in(getattr(usage, "completion_tokens_details", None), "reasoning_tokens")
        details = {
            "model": completion.model,
            "system_fingerprint": version,
            "finish_reason": None if self.config.top_logprobs and not is_cut else choice.finish_reason,
            "prompt_tokens": count_in(usage, "prompt_tokens"),
            "completion_tokens": count_in(usage, "completion_tokens"),
            "reasoning_tokens": thinking or None,
            "length_limit": self._limit,
            "temperature": None if self._takes_temperature else "the model's own",
        }
        return Reply(
            said,
            not is_cut and not refusal,
            {name: value for name, value in details.items() if isinstance(value, str | int)},
        )

    def _choice_with_logprobs(self, choice: Any) -> dict[str, Any]:
        """The choice as it was sent, which is what AlpacaEval keeps of it."""
        sent: dict[str, Any] = choice.model_dump(mode="json", exclude_none=True, warnings=False)
        logprobs = sent.get("logprobs")
        if not isinstance(logprobs, dict) or not logprobs.get("content"):
            raise DensePathError(
                f"{self.url} sends no log-probabilities for {self.config.model}, which these judge prompts need; use "
                "another endpoint or model, or prompts without them, such as judge.prompts=alpaca_eval_gpt4"
            )
        return sent

    def unreadable(self, error: ValueError) -> UnavailableError:
        """What the client's JSON reader says of a reply, which may repeat a part of it."""
        return UnavailableError(f"{self.url} sent a reply that could not be read: {error}")

    def failure(self, error: Any, with_schema: bool = False) -> DensePathError:
        """The client's error as one of ours, in one line."""
        # A key that is cut in two would not be found any more.
        said = redact(_in_a_line(error))[:500]
        status, code = getattr(error, "status_code", None), getattr(error, "code", None)
        tried = f" after {self.execution.retries} retries" if self.execution.retries else ""
        if status in (401, 403) and not (status == 403 and any(word in said.lower() for word in ABOUT_CONTENT)):
            return DensePathError(
                f"{self.url} refused the key in {self.execution.api_key_variable} (HTTP {status}); "
                "check the key and its rights to this model"
            )
        if status is None and type(error.__cause__).__name__ in NO_CONNECTION:
            return UnreachableError(
                f"{self.url} cannot be reached{tried}: {said}; check judge.by.base_url and the network"
            )
        if status is None:
            return UnavailableError(f"{self.url} gave no answer{tried}: {said}; check the address and the network")
        if code == NO_MONEY or status == 402:
            return DensePathError(f"{self.url}: the account of this key has nothing left to spend: {said}")
        if status in MAY_PASS or status >= 500:
            return UnavailableError(f"{self.url} failed{tried} (HTTP {status}): {said}")
        if with_schema and status in (400, 422) and _is_about_schemas(said):
            return SchemaRefusedError(f"{self.url} does not take a schema for the reply: {said}")
        hint = "; check judge.by.model, and judge.by.base_url, which often ends in /v1" if status == 404 else ""
        if THINKING_SPENT in said:
            hint = "; raise judge.by.max_tokens, in which thinking counts"
        elif NO_TEMPERATURE.search(said):
            hint = "; set judge.by.temperature=null"
        no_logprobs = self.config.top_logprobs and "logprobs" in said
        if no_logprobs:
            hint = "; use judge prompts that need no log-probabilities, such as judge.prompts=alpaca_eval_gpt4"
        of_all = no_logprobs or status in OF_ALL_REQUESTS or code in OF_ALL_BY_CODE or WRONG_KEY.search(said)
        kind = DensePathError if of_all else RefusedError
        return kind(f"{self.url} refused a request for the model {self.config.model}: {said}{hint}")

    def status(self) -> str:
        """How many requests were answered, and what they cost."""
        if not self.meter.requests:
            return ""
        spent = self.meter.spent
        return f"{self.meter.requests} requests" + ("" if spent is None else f", ${spent:.2f}")

    @property
    def client(self) -> Any:
        """The library's client, connected at the first use."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self.meter.flush()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _complete(self, messages: Messages, schema: Mapping[str, Any] | None) -> Any:
        """In the form that the endpoint takes, which is known once a request in it was answered."""
        limit, takes_temperature = self._limit, self._takes_temperature
        while True:
            body = self._body(messages, schema, limit, takes_temperature)
            try:
                # Not `chat.completions.create`, which takes no field that it does not know, and a fifth more time.
                kind = self.library.types.chat.ChatCompletion
                completion = await self.client.post(COMPLETIONS, body=body, cast_to=kind)
            except self.library.APIStatusError as error:
                if error.status_code not in (400, 422) or _may_have_cost(error):
                    raise
                if limit in str(error) and limit != "max_tokens":
                    # Servers older than this name know the same limit as `max_tokens`.
                    limit = "max_tokens"
                elif "temperature" in body and NO_TEMPERATURE.search(str(error)):
                    # A reasoning model has its own.
                    takes_temperature = False
                else:
                    raise
            else:
                self._limit, self._takes_temperature = limit, takes_temperature
                return completion

    def _connect(self) -> Any:
        common = {
            "api_key": self._key(),
            # Each request that is sent is charged by itself; the client would send again in secret.
            "max_retries": 0,
            "timeout": self.execution.request_seconds,
        }
        if self.config.api_version is not None:
            return self.library.AsyncAzureOpenAI(azure_endpoint=self.url, api_version=self.config.api_version, **common)
        return self.library.AsyncOpenAI(base_url=self.url, **common)

    def _key(self) -> str:
        """Read at each use, so that no object of ours holds it."""
        name = self.execution.api_key_variable
        try:
            key = read_key(name)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not key:
            raise UsageError(
                f"the environment variable {name}, which should hold the judge's API key, is not set; "
                "set it (any value for an endpoint without keys), or name another in judge.execution.api_key_variable"
            )
        return key

    def _refuse_key_in(self, *said: Any) -> None:
        """An endpoint that repeats the key would have it written down with everything that is kept."""
        key = self._key()
        if any(holds_key(str(each), key) for each in said):
            raise DensePathError(
                f"{self.url} repeats the key in {self.execution.api_key_variable} in its reply, of which nothing is "
                "kept; ask whoever runs it why, and have the key replaced"
            )


def _may_have_cost(error: Any) -> bool:
    """Whether a request that failed may have been worked on: then it may be on the bill."""
    status = getattr(error, "status_code", None)
    if status is None:
        return type(error.__cause__).__name__ not in NO_CONNECTION
    return (
        read_before_refused(error)
        or status in MAY_COST
        or status < 400
        or (status >= 500 and status not in COST_NOTHING)
    )


def read_before_refused(error: Exception) -> bool:
    """Whether a filter or a limit refused a request, after it was read."""
    said = f"{error} {getattr(error, 'code', None)}".lower()
    return THINKING_SPENT in said or any(word in said for word in READ_BEFORE_REFUSED)


def _is_completion(found: Any) -> bool:
    """The library checks no type."""
    try:
        return bool(found.choices) and hasattr(found.choices[0].message, "content")
    except (AttributeError, LookupError, TypeError):
        return False


def _pause(error: Any, again: int) -> float | None:
    """Seconds until another try, the number `again`; None where the endpoint wants none, or none soon."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            told = unit * float(headers.get(name, "nan"))
        except ValueError:
            continue
        if told > 0:
            return told if told <= LONGEST_PAUSE_TOLD else None
    if headers.get("x-should-retry") == "false":
        return None
    return min(FIRST_PAUSE * 2.0 ** min(again, 10), LONGEST_PAUSE) * random.uniform(0.75, 1.0)


def _in_a_line(error: Any) -> str:
    """What the client says of an error, and the reason beneath it; an error page is only named as one."""
    body = getattr(error, "body", None)
    if isinstance(body, str) and body.lstrip().startswith("<"):
        return f"HTTP {error.status_code} with a page of HTML"
    return " ".join(" ".join(filter(None, (str(error), str(error.__cause__ or "")))).split())


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
