import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dpr_core.models.dense_reward import ScoredText, TokenCredit
from dpr_core.reporting import payload_credit
from dpr_core.reporting.token_credit import (
    INK,
    LOW,
    SHADES,
    STRENGTHS,
    WHITE,
    QuantileScale,
    as_html,
    as_json,
    as_terminal,
    hue,
    significant,
    takes_white_ink,
)

ROOT = Path(__file__).parents[3]
HOSTILE = [
    "<script>document.title='pwned'</script>",
    "</style><script>document.title='pwned'</script>",
    "--></title></span></p>",
    "\"' onmouseover=\"document.title='pwned'\" x='",
    '"><img src=x onerror="document.title=1">',
    "\u200b",
    "\u202eabc",
    "a\r\n",
    "\x1b[31m",
    "\x00",
    "",
    "&lt;",
    " two",
]


def scored(tokens: list[str], rewards: list[float] | None = None, prompt: str = "Why?") -> ScoredText:
    rewards = rewards or [0.25 * (i - 3) for i in range(len(tokens))]
    credits = [
        TokenCredit(i, 100 + i, token, -1.5, -1.5 - reward, reward, sum(rewards[i:]))
        for i, (token, reward) in enumerate(zip(tokens, rewards, strict=True))
    ]
    return ScoredText(prompt, "".join(tokens), [1, 2, *(100 + i for i in range(len(tokens)))], credits)


class Reader(HTMLParser):
    """What a parser makes of a page: tags with attributes, text by tag, and the tokens' own text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.tokens: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, attributes = self.open[-1] if self.open else ("", {})
        self.text[tag] = self.text.get(tag, "") + data
        if tag == "span" and (attributes.get("class") or "").startswith("t "):
            self.tokens.append((data, attributes))


def test_json_has_exactly_the_documented_keys() -> None:
    text = ScoredText("p", "r", [7, 8, 9], [TokenCredit(0, 9, " r", -0.5, -0.75, 0.25, 1.25)])
    assert json.loads(json.dumps(as_json(text))) == {
        "input_ids": [7, 8, 9],
        "tokens": [
            {
                "position": 0,
                "token_id": 9,
                "token": " r",
                "log_pi_sft": -0.5,
                "log_pi_ref": -0.75,
                "reward": 0.25,
                "return": 1.25,
            }
        ],
    }


def test_the_terminal_line_is_blue_for_high_and_orange_for_low() -> None:
    text = as_terminal(scored(["up", "zero", "down\n", "\x1b[2J"], [2.0, 0.0, -2.0, 1.0]))
    assert text.plain == "upzerodown\u21b5\u27e8U+001B\u27e9[2J"
    backgrounds = [span.style.bgcolor.name for span in text.spans]  # type: ignore[union-attr]
    assert backgrounds == ["#2166ac", "#ffffff", "#b43c08", "#ffffff"]


@pytest.mark.parametrize("rewards", [[0.0, 0.0, 0.0], [math.nan, math.inf, -math.inf]])
def test_values_without_a_scale_are_shown_too(rewards: list[float]) -> None:
    text = scored(["a", "b", "c"], rewards)
    assert as_terminal(text).plain == "abc"
    assert [token for token, _ in Reader(as_html([text], "t", {})).tokens] == ["a", "b", "c"]


@pytest.mark.parametrize("extreme", [50.0, 5e6])
def test_an_extreme_token_takes_no_colour_from_the_others(extreme: float) -> None:
    """As where every sample begins with one: more than a twentieth of the tokens are extreme."""
    sample = [extreme, *(0.01 * i for i in range(1, 9)), -0.2]
    scale = QuantileScale.of(sample * 12)
    assert [scale.shade(value) for value in sample] == [5, 0, 0, 0, 0, 0, 1, 1, 2, -3]


def test_shades_begin_where_the_legend_says() -> None:
    scale = QuantileScale.of([math.nan, math.inf, *range(-50, 51)])
    assert scale.edges == (25, 35, 40, 45, 48)
    assert [scale.shade(value) for value in (-48, -47.9, 24, 25, 0, math.nan, -math.inf)] == [-5, -4, 0, 1, 0, 0, -5]
    page = as_html([scored(["x"] * 20, [0.1 * (i - 9.5) for i in range(20)])], "t", {})
    legend = re.findall(r'<i class="reward(-?\d)"></i><small>([^<]+)</small>', page)
    assert [int(shade) for shade, _ in legend] == list(range(-SHADES, SHADES + 1))
    assert (legend[0][1], legend[SHADES][1], legend[-1][1]) == ("\u2264\u22120.95", "plain", "\u22650.95")
    assert not re.findall(r'<i class="sft\d"></i><small>\u2265', page)


def test_the_lowest_are_marked_and_can_be_gone_to() -> None:
    rewards = [0.5, -0.25, -1.0, -0.125, -2.0, 0.0]
    reader = Reader(page := as_html([scored(list("abcdef"), rewards), scored(["x"], [0.5])], "t", {}))
    assert [attributes.get("data-rank") for _, attributes in reader.tokens] == [None, "3", "2", None, "1", None, None]
    assert re.findall(r'<a href="#(t[\d-]+)">(\w)</a> ([^<]+)</td>', page)[:3] == [
        ("t0-4", "e", "\u22122.00"),
        ("t0-2", "c", "\u22121.00"),
        ("t0-1", "b", "\u22120.250"),
    ]
    assert 'The lowest reward is \u22122.00, on <a href="#t0-4"><code>e</code></a> at position 4 of text 1.' in page


def test_the_payload_of_a_reward_has_its_page_to_the_byte() -> None:
    """Policies are found by its digest; whoever changes it raises the version of the stage."""
    page = payload_credit.as_html(
        [scored(["The", " <b>\n", "\x00"], [0.25, -1.0, 0.125], "Why?\n<i>")],
        "Token credit on demonstrations",
        {"Formula": "a & b"},
    )
    assert hashlib.sha256(page.encode()).hexdigest() == (
        "70dedd897bb27a00fc90b0f14c0a9568835c03071abd04464893dd76a390baee"
    )


def test_the_page_shows_every_token_with_its_numbers() -> None:
    reader = Reader(as_html([scored(["The", " end"], [0.5, -1.0]), scored(["x"], [0.25])], "Credit", {"reward": "abc"}))
    assert reader.text["title"] == reader.text["h1"] == "Credit"
    assert [token for token, _ in reader.tokens] == ["The", " end", "x"]
    attributes = reader.tokens[1][1]
    assert {name: attributes[name] for name in attributes if name.startswith("data-")} == {
        "data-token": "\u2423end",
        "data-rank": "1",
        "data-id": "101",
        "data-position": "1",
        "data-sft": "\u22121.5000",
        "data-ref": "\u22120.5000",
        "data-reward": "\u22121.0000",
        "data-return": "\u22121.0000",
    }
    assert attributes["id"] == "t0-1"
    assert [a["class"] for _, a in reader.tokens] == [
        "t reward1 return-1 sft-5",
        "t reward-5 return-5 sft-5",
        "t reward0 return0 sft-5",
    ]


def test_on_the_page_low_is_orange_and_high_is_blue() -> None:
    page = as_html([scored(["a"])], "t", {})
    assert LOW[0] > LOW[2]
    for name in ("reward", "return", "sft"):
        assert f".{name}-5 {{ --{name}: rgb(180 60 8 / 1.00); --{name}-ink: #ffffff }}" in page
        assert f".{name}2 {{ --{name}: rgb(33 102 172 / 0.30) }}" in page


def test_totals_are_sums_over_the_text() -> None:
    page = as_html([scored(["a", "b", "c"], [0.5, -1.25, 0.25])], "t", {})
    totals = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert {name: totals[name] for name in list(totals)[:4]} == {
        "tokens": "3",
        "\u03a3 log \u03c0 SFT": "\u22124.50",
        "\u03a3 log \u03c0 ref": "\u22124.00",
        "\u03a3 reward": "\u22120.500",
    }


def test_the_first_return_is_told_where_it_is_not_the_sum() -> None:
    credits = [TokenCredit(0, 5, "a", -1.0, -1.5, 0.5, 0.95), TokenCredit(1, 6, "b", -1.0, -1.5, 0.5, 0.5)]
    page = as_html([ScoredText("p", "ab", [5, 6], credits)], "t", {})
    totals = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert (totals["\u03a3 reward"], totals["return of first token"]) == ("+1.00", "+0.950")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (-0.0012345, "\u22120.00123"),
        (0.5, "+0.500"),
        (0.9996, "+1.000"),
        (1.25, "+1.25"),
        (-1234.567, "\u22121234.57"),
        (-1.19e-07, "\u22121.19e\u221207"),
        (math.nan, "+nan"),
        (-math.inf, "\u2212inf"),
    ],
)
def test_a_small_reward_is_not_rounded_away(value: float, shown: str) -> None:
    assert significant(value) == shown


def test_reporting_imports_no_torch() -> None:
    code = "import sys, dpr_core.reporting.token_credit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_hostile_text_stays_text() -> None:
    evil = HOSTILE[1] + HOSTILE[3] + "\nnext \u202eline"
    page = as_html([scored(HOSTILE, prompt=evil)], evil, {evil: evil, "\ud800": "\x00"})
    reader = Reader(page)
    harmless = Reader(as_html([scored(["x"] * len(HOSTILE))], "t", {"a": "b", "c": "d"}))
    assert [a.get("href") for tag, a in reader.tags if tag == "a"] == [
        a["href"] for tag, a in harmless.tags if tag == "a"
    ]
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in harmless.tags]
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    shown = [token for token, _ in reader.tokens]
    assert shown[:5] == HOSTILE[:5]
    assert shown[5:] == [
        "\u27e8U+200B\u27e9",
        "\u27e8U+202E\u27e9abc",
        "a\u27e8U+000D\u27e9\u21b5",
        "\u27e8U+001B\u27e9[31m",
        "\u27e8U+0000\u27e9",
        "\u2205",
        "&lt;",
        " two",
    ]
    assert reader.text["title"] == evil.replace("\n", "\u21b5").replace("\u202e", "\u27e8U+202E\u27e9")
    assert "\u202e" not in page
    assert "\x00" not in page
    page.encode("utf-8")


def test_the_policy_allows_this_pages_style_and_script_alone() -> None:
    page = as_html([scored(["a"])], "t", {})
    policy = html.unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[0])
    digests = {}
    for tag in ("style", "script"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digests[tag] = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{digests['script']}'",
        f"style-src 'sha256-{digests['style']}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not re.search(r"""(?:src|href|style|url)\s*[=(](?!"#t\d)""", page)


def luminance(channels: list[float]) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("shade", range(-SHADES, SHADES + 1))
@pytest.mark.parametrize(("paper", "ink"), [(250, INK), (30, "#e6e8eb")])
def test_ink_can_be_read_on_every_shade(shade: int, paper: int, ink: str) -> None:
    share = STRENGTHS[abs(shade)]
    background = luminance([paper + (channel - paper) * share for channel in hue(shade)])
    colour = WHITE if takes_white_ink(shade) else ink
    foreground = luminance([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    brighter, darker = max(background, foreground), min(background, foreground)
    assert (brighter + 0.05) / (darker + 0.05) >= 4.5


def test_a_browser_runs_nothing_of_the_data(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    path = tmp_path / "credit.html"
    path.write_text(as_html([scored(HOSTILE), scored(["fine"])], "Token credit", {"reward": HOSTILE[0]}), "utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    opened = subprocess.run(
        [*command, "--dump-dom", f"{path.as_uri()}#t0-12"], capture_output=True, text=True, timeout=120, check=True
    )
    reader = Reader(opened.stdout.removeprefix("<!DOCTYPE html>"))
    assert reader.text["title"] == "Token credit"
    assert [token for token, _ in reader.tokens][:5] == HOSTILE[:5]
    assert len(reader.tokens) == len(HOSTILE) + 1
    assert [tag for tag, _ in reader.tags].count("script") == 1
    # The page's own script did run: the token named in the address has the focus, and the tooltip shows its numbers.
    tip = dict(re.findall(r'<dd data-show="(\w+)">([^<]*)</dd>', opened.stdout))
    assert (tip["token"], tip["id"], tip["reward"]) == ("\u2423two", "112", "+2.2500")
    assert "hidden" not in next(attributes for _, attributes in reader.tags if attributes.get("id") == "tip")
