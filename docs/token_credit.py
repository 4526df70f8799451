"""Draw token credit as an SVG: one bar a token, from the JSON lines that `dpr score ID FILE.jsonl --json` prints.

dpr score ID texts.jsonl --json | python docs/token_credit.py > docs/images/token-credit.svg
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

CHARACTER = 14.0
"""Width of one character of a token."""
LEFT, TOP, BAR = 24.0, 62.0, 62.0
HIGH, LOW, INK, QUIET, LINE = "#0f766e", "#c2410c", "#1c1e21", "#667085", "#d0d5dd"
END = "⏎"


def drawing(rows: Sequence[dict[str, Any]]) -> str:
    """All scored responses below each other, on one scale."""
    largest = max(abs(token["reward"]) for row in rows for token in row["tokens"])
    width = 2 * LEFT + CHARACTER * max(sum(map(len, _texts(row))) for row in rows)
    lowest = [BAR * math.sqrt(max(0.0, -min(t["reward"] for t in row["tokens"])) / largest) for row in rows]
    height = TOP + sum(BAR + 80 + below for below in lowest)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        "<title>Reward of every token of two responses</title>",
        f'<rect width="100%" height="100%" rx="12" fill="#ffffff" stroke="{LINE}"/>',
        _text(LEFT, 32, "Reward of every token: log pi_SFT - log pi_ref", INK, 'font-size="17" font-weight="600"'),
        _text(
            LEFT,
            52,
            "bars: square root of its size; up: the later part of SFT made the token likelier",
            QUIET,
            'font-size="13"',
        ),
    ]
    zero = TOP
    for row, below in zip(rows, lowest, strict=True):
        zero += BAR + 30
        parts += _response(row, zero, largest)
        zero += 50 + below
    return "\n".join([*parts, "</svg>"]) + "\n"


def _texts(row: dict[str, Any]) -> list[str]:
    return [END if token["token"].startswith("<|") else token["token"] for token in row["tokens"]]


def _response(row: dict[str, Any], zero: float, largest: float) -> Iterable[str]:
    rewards = [token["reward"] for token in row["tokens"]]
    named = {rewards.index(max(rewards))} | ({rewards.index(min(rewards))} if min(rewards) < -largest / 20 else set())
    yield _text(LEFT, zero - BAR - 12, f"return {sum(rewards):+.2f}", QUIET, 'font-size="13"')
    x = LEFT
    for number, (text, reward) in enumerate(zip(_texts(row), rewards, strict=True)):
        width = CHARACTER * len(text)
        tall = BAR * math.sqrt(abs(reward) / largest)
        color = HIGH if reward > 0 else LOW
        y, label = (zero - tall, zero - tall - 5) if reward > 0 else (zero + 26, zero + 40 + tall)
        middle = x + width / 2
        yield f'<rect x="{middle - 6:.1f}" y="{y:.1f}" width="12" height="{tall:.1f}" rx="2" fill="{color}"/>'
        if number in named:
            yield _text(middle, label, f"{reward:+.2f}", color, 'font-size="13" font-weight="600" text-anchor="middle"')
        shown = text.strip() and escape(text.strip())
        weight = ' font-weight="700"' if number in named else ""
        ink = color if number in named and reward < 0 else INK
        style = f'font-family="ui-monospace, monospace" font-size="17" text-anchor="middle"{weight}'
        yield _text(middle, zero + 19, shown, ink, style)
        x += width
    yield f'<path d="M{LEFT} {zero + 1:.1f}H{x:.1f}M{LEFT} {zero + 25:.1f}H{x:.1f}" stroke="{LINE}" fill="none"/>'


def _text(x: float, y: float, text: str, color: str, style: str) -> str:
    family = "" if "font-family" in style else 'font-family="system-ui, sans-serif" '
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" {family}{style}>{text}</text>'


if __name__ == "__main__":
    sys.stdout.write(drawing([json.loads(line) for line in sys.stdin]))
