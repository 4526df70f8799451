"""Token prices of LLM judges: what was set, else a dated table out of a maintained one (`perf/judge_prices.py`)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dpr_core.config.base import Config
from dpr_core.config.evaluation import ChatCompletionsConfig, JudgeExecutionConfig, OpenAIBatchJudgeConfig

FILE = Path(__file__).with_name("prices.json")

OPENAI = "openai"

VENDORS = {
    "api.openai.com": OPENAI,
    "api.anthropic.com": "anthropic",
    "api.deepseek.com": "deepseek",
    "generativelanguage.googleapis.com": "gemini",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.together.xyz": "together_ai",
    "api.x.ai": "xai",
}
"""Whose prices hold at an address. At any other, such as a proxy's or Azure's, OpenAI's models have OpenAI's."""

ORDINARY_TIERS = ("auto", "default", "flex", "standard_only")
"""Of `extra_body.service_tier`: where the listed price holds, or more than the price. Any other may cost more."""

MOST_TOKENS = 10**8
"""No request has more; a larger number is no number of tokens."""

HALF_A_YEAR = 183
"""Days after which prices may no longer hold."""


@dataclass(frozen=True)
class Usage:
    """Tokens of answered requests, as the endpoint told them."""

    read: int
    written: int
    """With those of reasoning, even where a vendor leaves them out and counts them in the total alone."""
    cached: int = 0
    """Of those read."""
    reasoning: int = 0
    """Of those written."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.read + other.read,
            self.written + other.written,
            self.cached + other.cached,
            self.reasoning + other.reasoning,
        )

    @classmethod
    def told(cls, usage: Any) -> "Usage | None":
        """What a reply's `usage` says, in whatever form it came; None where it says no number that can be."""
        read, written = (count_in(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        if not read or written is None:
            return None
        written = max(written, (count_in(usage, "total_tokens") or 0) - read)
        cached = count_in(_field(usage, "prompt_tokens_details"), "cached_tokens") or 0
        reasoning = count_in(_field(usage, "completion_tokens_details"), "reasoning_tokens") or 0
        return cls(read, written, min(cached, read), min(reasoning, written))


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    read: float
    written: float
    cached: float | None = None
    """Of those read, where the endpoint had them from the request before."""
    reasoning: float | None = None
    """Of those written, where thinking has a price of its own."""

    def of(self, read: int, written: int) -> float:
        """Dollars, where nothing is known of caching and reasoning."""
        return (read * self.read + written * self.written) / 1e6

    def of_usage(self, used: Usage) -> float:
        cached = self.read if self.cached is None else self.cached
        reasoning = self.written if self.reasoning is None else self.reasoning
        more = used.cached * (cached - self.read) + used.reasoning * (reasoning - self.written)
        return self.of(used.read, used.written) + more / 1e6

    def at_most(self, read: int, written: int) -> float:
        """Dollars, whatever is cached or thought."""
        return Price(max(self.read, self.cached or 0), max(self.written, self.reasoning or 0)).of(read, written)


def price_of(by: ChatCompletionsConfig, execution: JudgeExecutionConfig) -> Price | None:
    """The price that was set, or the listed one of the model or of the model it is a dated version of.

    In a batch the listed price of a batch holds, else half of the listed one. One that was set is what a request costs,
    however it is sent.
    """
    read, written = execution.dollars_per_million_read, execution.dollars_per_million_written
    if read is not None and written is not None:
        return Price(read, written)
    listed = _listed(by)
    if listed is None:
        return None
    if isinstance(by, OpenAIBatchJudgeConfig):
        found = Price(*(listed.get(f"batch_{kind}", listed[kind] / 2) for kind in ("read", "written")))
    else:
        found = Price(listed["read"], listed["written"], listed.get("cached"), listed.get("reasoning"))
    if read is not None:
        return replace(found, read=read, cached=None)
    return found if written is None else replace(found, written=written, reasoning=None)


def prices(execution: JudgeExecutionConfig) -> str:
    """Where the prices are from."""
    return "as set" if _is_set(execution) else f"of {table()['as_of'][:7]}"


def price_warnings(judges: Iterable[tuple[Config, JudgeExecutionConfig]], today: date | None = None) -> list[str]:
    """What should be known of the listed prices that these judges have."""
    days = ((today or date.today()) - date.fromisoformat(table()["as_of"])).days
    paid = ((by, execution) for by, execution in judges if isinstance(by, ChatCompletionsConfig))
    listed = sorted({by.model for by, execution in paid if not _is_set(execution) and _listed(by)})
    if days <= HALF_A_YEAR or not listed:
        return []
    return [
        f"The prices of {', '.join(listed)} are of {table()['as_of']}, more than half a year ago; set "
        "judge.execution.dollars_per_million_read and dollars_per_million_written where they have changed."
    ]


@cache
def table() -> dict[str, Any]:
    """The data file: source, date, and prices by vendor and model."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def _listed(by: ChatCompletionsConfig) -> Mapping[str, float] | None:
    if (by.extra_body or {}).get("service_tier", "default") not in ORDINARY_TIERS:
        return None
    models: Mapping[str, Mapping[str, float]] = table()[VENDORS.get(urlsplit(by.base_url or "").hostname or "", OPENAI)]
    if by.model in models:
        return models[by.model]
    dated = (name for name in sorted(models, key=len, reverse=True) if by.model.startswith(f"{name}-20"))
    return models.get(next(dated, ""))


def _is_set(execution: JudgeExecutionConfig) -> bool:
    return None not in (execution.dollars_per_million_read, execution.dollars_per_million_written)


def _field(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def count_in(holder: Any, name: str) -> int | None:
    """A number of tokens, if that is what stands there."""
    value = _field(holder, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None
