"""The token-credit view: each token of a response coloured by its reward, as in the paper's Figure 1."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.style import Style
from rich.text import Text

from dpr_core.credit import ScoredText, TokenCredit
from dpr_core.reporting.credit_style import INK, SCRIPT, STEPS, STYLE, WHITE, hue, takes_white_ink
from dpr_core.reporting.page import Html, definitions, element, join, page
from dpr_core.text import escape_control, escape_control_lines

_SATURATED = 0.95
"""Colours span the values up to this quantile of their sizes, so that one extreme token does not pale all others."""

_SHORTEST_IN_FULL = 1e-4

_ROUNDING = 1e-5
"""How far sums in single precision may be apart, as a share of what is summed."""


def as_json(scored: ScoredText) -> dict[str, Any]:
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


def as_terminal(scored: ScoredText) -> Text:
    """The response as one coloured text: red for high reward, blue for low."""
    limit = _limit(t.reward for t in scored.tokens)
    text = Text()
    for token in scored.tokens:
        text.append(escape_control(token.token), _terminal_style(_step(token.reward, limit)))
    return text


def as_html(texts: Sequence[ScoredText], title: str, provenance: Mapping[str, str]) -> str:
    """One self-contained page with every text, coloured by reward or by return."""
    tokens = [token for scored in texts for token in scored.tokens]
    reward_limit = _limit(t.reward for t in tokens)
    return_limit = _limit(t.return_ for t in tokens)
    switch = join(
        element("input", type="radio", name="by", id="by-reward", checked=True),
        element("input", type="radio", name="by", id="by-return"),
    )
    bar = element(
        "div",
        element("div", *_SWITCH_LABELS, class_="switch"),
        _legend("reward", reward_limit),
        _legend("return", return_limit),
        class_="bar",
    )
    cards = [_card(i, scored, reward_limit, return_limit) for i, scored in enumerate(texts)]
    return page(
        title,
        element("header", element("h1", escape_control(title)), _introduction(len(texts), len(tokens))),
        switch,
        bar,
        element("main", *cards),
        element("footer", definitions(provenance, "provenance")) if provenance else Html(""),
        _TIP,
        style=STYLE,
        script=SCRIPT,
    )


_SWITCH_LABELS = (element("label", "Reward", for_="by-reward"), element("label", "Return", for_="by-return"))

_TIP_ROWS = {
    "token": "token",
    "id": "token id",
    "position": "position",
    "sft": "log \u03c0 SFT",
    "ref": "log \u03c0 ref",
    "reward": "reward",
    "return": "return",
}

_TIP = element(
    "div",
    element("dl", *(join(element("dt", label), element("dd", data_show=key)) for key, label in _TIP_ROWS.items())),
    id="tip",
    role="tooltip",
    hidden=True,
)


def _introduction(texts: int, tokens: int) -> Html:
    count = f"{texts} {'text' if texts == 1 else 'texts'}, {tokens} response tokens."
    return element(
        "p",
        f"{count} Stronger red is a higher value, stronger blue a lower one. Point at a token for its numbers, or move "
        "with the arrow keys.",
        class_="quiet",
    )


def _legend(by: str, limit: float) -> Html:
    swatches = [element("i", class_=f"{by[:3]}{step}") for step in range(-STEPS, STEPS + 1)]
    return element(
        "div",
        element("span", f"\u2264 {significant(-limit)}"),
        element("span", *swatches, class_="ramp"),
        element("span", f"\u2265 {significant(limit)}"),
        class_=f"legend legend-{by}",
    )


def _card(index: int, scored: ScoredText, reward_limit: float, return_limit: float) -> Html:
    spans = []
    for i, token in enumerate(scored.tokens):
        rew, ret = _step(token.reward, reward_limit), _step(token.return_, return_limit)
        span = element(
            "span",
            escape_control(token.token) or "\u2205",
            class_=f"t rew{rew} ret{ret}",
            id=f"t{index}-{i}",
            tabindex=-1 if i else 0,
            data_token=escape_control(token.token).replace(" ", "\u2423"),
            data_id=token.token_id,
            data_position=token.position,
            data_sft=_number(token.log_pi_sft),
            data_ref=_number(token.log_pi_ref),
            data_reward=_number(token.reward),
            data_return=_number(token.return_),
        )
        spans += [span, Html("\n")] if token.token.endswith("\n") else [span]
    return element(
        "section",
        element("h2", "Prompt"),
        element("p", escape_control_lines(scored.prompt), class_="prompt"),
        element("h2", "Response"),
        element("p", *spans, class_="tokens"),
        definitions(_totals(scored.tokens), "totals"),
    )


def _totals(tokens: Sequence[TokenCredit]) -> dict[str, str]:
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
