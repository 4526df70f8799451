"""The token-credit page in the payload of a reward, to the byte as version 2 of the stage has it.

Its digest is that of every reward made so far, and policies are found by it. People are shown the page of
token_credit.py; this one goes with the next version of the stage.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpr_core.reporting.page import asset, page
from dpr_core.reporting.token_credit import shown, significant, totals

if TYPE_CHECKING:
    from dpr_core.models.dense_reward import ScoredText

STEPS = 10
RED, BLUE, WHITE = (178, 24, 43), (33, 102, 172), "#ffffff"
_SATURATED = 0.95


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
        "payload_credit.html",
        title,
        style=f"{asset('payload_credit.css')}{_shades()}\n",
        script=asset("credit.js"),
        introduction=introduction,
        steps=STEPS,
        reward_range=(significant(-reward_limit), significant(reward_limit)),
        return_range=(significant(-return_limit), significant(return_limit)),
        texts=[
            {
                "prompt": scored.prompt,
                "tokens": [
                    shown(token)
                    | {
                        "reward_step": _step(token.reward, reward_limit),
                        "return_step": _step(token.return_, return_limit),
                    }
                    for token in scored.tokens
                ],
                "totals": totals(scored.tokens),
            }
            for scored in texts
        ],
        sources=provenance,
    )


def _shades() -> str:
    """A rule of the page's style for each shade, under the switch between reward and return."""
    rules = []
    for prefix, by in (("rew", "reward"), ("ret", "return")):
        for step in range(-STEPS, STEPS + 1):
            channels = " ".join(map(str, RED if step > 0 else BLUE))
            ink = f"; color: {WHITE}" if step >= 8 or step <= -9 else ""
            rule = f"background: rgb({channels} / {abs(step) / STEPS:.2f}){ink}"
            rules.append(f"#by-{by}:checked ~ * .{prefix}{step} {{ {rule} }}")
    return "\n".join(rules)


def _limit(values: Iterable[float]) -> float:
    sizes = [abs(value) for value in values if math.isfinite(value)]
    limit = float(np.quantile(sizes, _SATURATED, method="higher")) if sizes else 0.0
    return limit or 1.0


def _step(value: float, limit: float) -> int:
    if math.isnan(value):
        return 0
    return round(STEPS * max(-1.0, min(1.0, value / limit)))
