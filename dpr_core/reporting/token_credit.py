"""Token-credit view: each token of a response coloured by its reward, as JSON, for a terminal and as a page."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.style import Style
from rich.text import Text

from dpr_core.reporting.page import asset, page
from dpr_core.text import escape_control

if TYPE_CHECKING:
    from dpr_core.models.dense_reward import ScoredText, TokenCredit

QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Of the sizes of all values: where the shades begin. The smaller half is plain."""

STRENGTHS = (0.0, 0.14, 0.3, 0.48, 0.88, 1.0)
"""How much colour each shade has."""

SHADES = len(QUANTILES)

LOW, HIGH = (180, 60, 8), (33, 102, 172)
"""Orange and blue: nobody takes one for the other, whatever colours they see."""

INK = "#1c1e21"
WHITE = "#ffffff"

LOWEST = 3
"""Tokens that are marked in each text."""

LOWEST_REWARD = "lowest reward"

_SHORTEST_IN_FULL = 1e-4

_ROUNDING = 1e-5
"""How far sums in single precision may be apart, as a share of what is summed."""


@dataclass(frozen=True)
class QuantileScale:
    """Shades by how many values are as large: an extreme one takes the strongest and leaves the others theirs."""

    edges: tuple[float, ...]
    """The smallest size of each shade."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """The scale of all values together."""
        sizes = sorted(abs(value) for value in values if math.isfinite(value))
        return cls(tuple(sizes[math.floor(q * len(sizes))] for q in QUANTILES) if sizes else ())

    def shade(self, value: float) -> int:
        """From -5 for the lowest to 5 for the highest."""
        if not value or math.isnan(value):
            return 0
        return bisect_right(self.edges, abs(value)) * (1 if value > 0 else -1)


def hue(shade: int) -> tuple[int, int, int]:
    """Orange, which alarms, below zero, and blue above."""
    return HIGH if shade > 0 else LOW


def takes_white_ink(shade: int) -> bool:
    """Whether white reads better than dark ink on this shade over a light page."""
    return abs(shade) >= SHADES - 1


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
    """The response as one coloured text: orange for low reward, blue for high."""
    scale = QuantileScale.of(token.reward for token in scored.tokens)
    text = Text()
    for token in scored.tokens:
        text.append(escape_control(token.token), _terminal_style(scale.shade(token.reward)))
    return text


_VALUES: Mapping[str, tuple[str, Callable[["TokenCredit"], float]]] = {
    "reward": ("Reward", lambda token: token.reward),
    "return": ("Return", lambda token: token.return_),
    "sft": ("log \u03c0 SFT", lambda token: token.log_pi_sft),
}


def as_html(texts: "Sequence[ScoredText]", title: str, provenance: Mapping[str, str]) -> str:
    """One self-contained page with every text, coloured by reward, by return, by log pi_SFT, or by all three."""
    tokens = [token for scored in texts for token in scored.tokens]
    scales = {name: QuantileScale.of(map(value, tokens)) for name, (_, value) in _VALUES.items()}
    views = [
        {"name": name, "title": title_of, "shades": _legend(name, scales[name], name == "sft")}
        for name, (title_of, _) in _VALUES.items()
    ]
    return page(
        "credit.html",
        title,
        style=f"{asset('credit.css')}{_rules()}\n",
        script=asset("credit.js") + asset("search.js"),
        compared=(
            f"{len(texts)} {'text' if len(texts) == 1 else 'texts'}, {len(tokens):,} response tokens. "
            "Reward is what a token earns, return the rewards from it to the end of the response, and log \u03c0 SFT "
            "how likely the SFT model finds it."
        ),
        lowest=_lowest_of_all(texts),
        scale=(
            "Orange is low, blue is high. Shades are quantiles over all tokens of this page, by size: half of the "
            f"values are plain, and five shades begin at {', '.join(f'{100 * q:g}' for q in QUANTILES)}%, so that an "
            f"extreme token hides no other. \u25bc1 to \u25bc{LOWEST} mark the lowest rewards of a text. Point at a "
            "token for its numbers, or move with the arrow keys."
        ),
        views=[*views, {"name": "all", "title": "All three", "shades": []}],
        texts=[
            {
                "prompt": scored.prompt,
                "tokens": _marked(scored.tokens, scales),
                "lowest": _lowest(scored.tokens),
                "totals": {name: value for name, value in totals(scored.tokens).items() if name != LOWEST_REWARD},
            }
            for scored in texts
        ],
        sources=provenance,
    )


def _marked(tokens: "Sequence[TokenCredit]", scales: Mapping[str, QuantileScale]) -> list[dict[str, Any]]:
    ranks = {index: rank for rank, index in enumerate(_below_zero(tokens, "reward"), start=1)}
    return [
        shown(token)
        | {
            "rank": ranks.get(index),
            "kinds": " ".join(f"{name}{scales[name].shade(value(token))}" for name, (_, value) in _VALUES.items()),
        }
        for index, token in enumerate(tokens)
    ]


def _below_zero(tokens: "Sequence[TokenCredit]", name: str) -> list[int]:
    """Places of the lowest values, the lowest first."""
    value = _VALUES[name][1]
    places = [index for index, token in enumerate(tokens) if value(token) < 0]
    return sorted(places, key=lambda index: value(tokens[index]))[:LOWEST]


def _lowest(tokens: "Sequence[TokenCredit]") -> dict[str, list[dict[str, Any]]]:
    """The lowest tokens by the reward, and by log pi_SFT alone, to be read beside each other."""
    found = {}
    for name in ("reward", "sft"):
        title, value = _VALUES[name]
        if places := _below_zero(tokens, name):
            found[f"Lowest {title if name == 'sft' else name}"] = [
                {"index": i, "token": shown(tokens[i])["marked"] or "\u2205", "value": significant(value(tokens[i]))}
                for i in places
            ]
    return found


def _lowest_of_all(texts: "Sequence[ScoredText]") -> dict[str, str] | None:
    every = [(t.reward, card, i) for card, text in enumerate(texts) for i, t in enumerate(text.tokens) if t.reward < 0]
    if not every:
        return None
    reward, card, index = min(every)
    return {
        "before": f"The lowest reward is {significant(reward)}, on",
        "at": f"t{card}-{index}",
        "token": shown(texts[card].tokens[index])["marked"] or "\u2205",
        "after": f"at position {texts[card].tokens[index].position} of text {card + 1}.",
    }


def shown(token: "TokenCredit") -> dict[str, Any]:
    """A token and its numbers as a page says them."""
    return {
        "text": escape_control(token.token) or "\u2205",
        "marked": escape_control(token.token).replace(" ", "\u2423"),
        "ends_line": token.token.endswith("\n"),
        "id": token.token_id,
        "position": token.position,
        "log_sft": _number(token.log_pi_sft),
        "log_ref": _number(token.log_pi_ref),
        "reward": _number(token.reward),
        "return_": _number(token.return_),
    }


def _legend(name: str, scale: QuantileScale, never_positive: bool) -> list[dict[str, str]]:
    """Every shade with the value that it begins at. A log-probability has no values above zero."""
    if not scale.edges:
        return []
    shades = range(-SHADES, 1 if never_positive else SHADES + 1)
    return [{"kind": f"{name}{shade}", "label": _bound(scale, shade)} for shade in shades]


def _bound(scale: QuantileScale, shade: int) -> str:
    if not shade:
        return "plain"
    edge = math.copysign(scale.edges[abs(shade) - 1], shade)
    return f"{'<>'[shade > 0]}{edge:.2g}".replace("-", "\u2212").translate({ord("<"): "\u2264", ord(">"): "\u2265"})


def _rules() -> str:
    """The page's style for each shade of each value, and which of them are seen under the switch."""
    rules = []
    for name in _VALUES:
        for shade in range(-SHADES, SHADES + 1):
            channels = " ".join(map(str, hue(shade)))
            ink = f"; --{name}-ink: {WHITE}" if takes_white_ink(shade) else ""
            rules.append(f".{name}{shade} {{ --{name}: rgb({channels} / {STRENGTHS[abs(shade)]:.2f}){ink} }}")
        chosen = f"#by-{name}:checked"
        rules.append(f"{chosen} ~ main .t {{ background: var(--{name}); color: var(--{name}-ink, inherit) }}")
        rules.append(f"{chosen} ~ .bar .legend-{name} {{ display: grid }}")
        rules.append(f".legend-{name} i {{ background: var(--{name}) }}")
    for name in (*_VALUES, "all"):
        chosen = f"#by-{name}:checked"
        rules.append(f"{chosen} ~ .bar [for=by-{name}] {{ background: var(--accent); color: var(--paper) }}")
        focused = f"#by-{name}:focus-visible"
        rules.append(f"{focused} ~ .bar [for=by-{name}] {{ outline: 2px solid var(--ink); outline-offset: -3px }}")
    rows = [
        f"linear-gradient(var(--{name}) 0 0) 0 {at} / 100% .3em no-repeat"
        for name, at in zip(_VALUES, _ROWS, strict=True)
    ]
    rules.append(f"#by-all:checked ~ main .t {{ padding-bottom: 1.15em; background: {', '.join(rows)} }}")
    rules.append("#by-all:checked ~ main .tokens { line-height: 2.9 }")
    rules.append("#by-all:checked ~ .bar .legend { display: grid }")
    return "\n".join(rules)


_ROWS = ("calc(100% - .76em)", "calc(100% - .38em)", "100%")


def totals(tokens: "Sequence[TokenCredit]") -> dict[str, str]:
    """Sums over a text, and its lowest reward."""
    if not tokens:
        return {"tokens": "0"}
    lowest = min(tokens, key=lambda t: t.reward)
    total, first = sum(t.reward for t in tokens), tokens[0].return_
    found = {
        "tokens": str(len(tokens)),
        "\u03a3 log \u03c0 SFT": _number(sum(t.log_pi_sft for t in tokens), 2),
        "\u03a3 log \u03c0 ref": _number(sum(t.log_pi_ref for t in tokens), 2),
        "\u03a3 reward": significant(total),
    }
    if not abs(first - total) <= _ROUNDING * sum(abs(t.reward) for t in tokens):
        found["return of first token"] = significant(first)
    return found | {LOWEST_REWARD: f"{significant(lowest.reward)} at position {lowest.position}"}


def significant(value: float) -> str:
    """A reward with its sign and three significant digits, at least two after the point."""
    if not value:
        return "0"
    if not math.isfinite(value) or abs(value) < _SHORTEST_IN_FULL:
        return f"{value:+.2e}".replace("-", "\u2212")
    return _number(value, max(2, 2 - math.floor(math.log10(abs(value)))))


def _number(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _terminal_style(shade: int) -> Style:
    share = STRENGTHS[abs(shade)]
    background = [round(255 + (channel - 255) * share) for channel in hue(shade)]
    ink = WHITE if takes_white_ink(shade) else INK
    return Style(color=ink, bgcolor="#{:02x}{:02x}{:02x}".format(*background))
