"""Token-credit view: each token of a response coloured by its reward, as JSON, for a terminal and as a page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.style import Style
from rich.text import Text

from dpr_core.reporting.page import asset, page
from dpr_core.text import escape_control

if TYPE_CHECKING:
    from dpr_core.models.dense_reward import ScoredText, TokenCredit

STEPS = 10
"""Shades on each side of zero."""

RED = (178, 24, 43)
BLUE = (33, 102, 172)
INK = "#1c1e21"
WHITE = "#ffffff"

_SATURATED = 0.95
"""Colours span the values up to this quantile of their sizes, so that one extreme token does not pale all others."""

_SHORTEST_IN_FULL = 1e-4

_ROUNDING = 1e-5
"""How far sums in single precision may be apart, as a share of what is summed."""


def hue(step: int) -> tuple[int, int, int]:
    """Red above zero, blue below."""
    return RED if step > 0 else BLUE


def takes_white_ink(step: int) -> bool:
    """Whether white reads better than dark ink on this shade over a light page."""
    return step >= 8 or step <= -9


def as_json(scored: "ScoredText") -> dict[str, Any]:
    """The scored text as JSON values."""
    tokens = [
        {
            "position": t.position,
            "token_id": t.token_id,
            "token": t.token,
            "log_pi_sft": t.log_pi_sft,
            "log_pi_ref": t.log_pi_ref,
            "reward": t.reward,
            "return": t.return_,
        }
        for t in scored.tokens
    ]
    return {"input_ids": scored.input_ids, "tokens": tokens}


def as_terminal(scored: "ScoredText") -> Text:
    """The response as one coloured text: red for high reward, blue for low."""
    limit = _limit(t.reward for t in scored.tokens)
    text = Text()
    for token in scored.tokens:
        text.append(escape_control(token.token), _terminal_style(_step(token.reward, limit)))
    return text


def as_html(texts: "Sequence[ScoredText]", title: str, provenance: Mapping[str, str]) -> str:
    """One self-contained page with every text, coloured by reward or by return."""
    tokens = [token for scored in texts for token in scored.tokens]
    reward_limit = _limit(t.reward for t in tokens)
    return_limit = _limit(t.return_ for t in tokens)
    introduction = (
        f"{len(texts)} {'text' if len(texts) == 1 else 'texts'}, {len(tokens)} response tokens. "
        "Stronger red is a higher value, stronger blue a lower one. Point at a token for its numbers, or move with the "
        "arrow keys."
    )
    return page(
        "credit.html",
        title,
        style=f"{asset('credit.css')}{_shades()}\n",
        script=asset("credit.js"),
        introduction=introduction,
        steps=STEPS,
        reward_range=(significant(-reward_limit), significant(reward_limit)),
        return_range=(significant(-return_limit), significant(return_limit)),
        texts=[
            {
                "prompt": scored.prompt,
                "tokens": [_shown(token, reward_limit, return_limit) for token in scored.tokens],
                "totals": _totals(scored.tokens),
            }
            for scored in texts
        ],
        sources=provenance,
    )


def _shown(token: "TokenCredit", reward_limit: float, return_limit: float) -> dict[str, Any]:
    return {
        "text": escape_control(token.token) or "\u2205",
        "marked": escape_control(token.token).replace(" ", "\u2423"),
        "ends_line": token.token.endswith("\n"),
        "id": token.token_id,
        "position": token.position,
        "reward_step": _step(token.reward, reward_limit),
        "return_step": _step(token.return_, return_limit),
        "log_sft": _number(token.log_pi_sft),
        "log_ref": _number(token.log_pi_ref),
        "reward": _number(token.reward),
        "return_": _number(token.return_),
    }


def _shades() -> str:
    """A rule of the page's style for each shade, under the switch between reward and return."""
    rules = []
    for prefix, by in (("rew", "reward"), ("ret", "return")):
        for step in range(-STEPS, STEPS + 1):
            channels = " ".join(str(channel) for channel in hue(step))
            ink = f"; color: {WHITE}" if takes_white_ink(step) else ""
            rule = f"background: rgb({channels} / {abs(step) / STEPS:.2f}){ink}"
            rules.append(f"#by-{by}:checked ~ * .{prefix}{step} {{ {rule} }}")
    return "\n".join(rules)


def _totals(tokens: "Sequence[TokenCredit]") -> dict[str, str]:
    if not tokens:
        return {"tokens": "0"}
    lowest = min(tokens, key=lambda t: t.reward)
    total, first = sum(t.reward for t in tokens), tokens[0].return_
    totals = {
        "tokens": str(len(tokens)),
        "\u03a3 log \u03c0 SFT": _number(sum(t.log_pi_sft for t in tokens), 2),
        "\u03a3 log \u03c0 ref": _number(sum(t.log_pi_ref for t in tokens), 2),
        "\u03a3 reward": significant(total),
    }
    if not abs(first - total) <= _ROUNDING * sum(abs(t.reward) for t in tokens):
        totals["return of first token"] = significant(first)
    return totals | {"lowest reward": f"{significant(lowest.reward)} at position {lowest.position}"}


def significant(value: float) -> str:
    """A reward with its sign and three significant digits, at least two after the point."""
    if not value:
        return "0"
    if not math.isfinite(value) or abs(value) < _SHORTEST_IN_FULL:
        return f"{value:+.2e}".replace("-", "\u2212")
    return _number(value, max(2, 2 - math.floor(math.log10(abs(value)))))


def _number(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _limit(values: Iterable[float]) -> float:
    sizes = [abs(value) for value in values if math.isfinite(value)]
    limit = float(np.quantile(sizes, _SATURATED, method="higher")) if sizes else 0.0
    return limit or 1.0


def _step(value: float, limit: float) -> int:
    if math.isnan(value):
        return 0
    return round(STEPS * max(-1.0, min(1.0, value / limit)))


def _terminal_style(step: int) -> Style:
    share = abs(step) / STEPS
    background = [round(255 + (channel - 255) * share) for channel in hue(step)]
    ink = WHITE if takes_white_ink(step) else INK
    return Style(color=ink, bgcolor="#{:02x}{:02x}{:02x}".format(*background))
