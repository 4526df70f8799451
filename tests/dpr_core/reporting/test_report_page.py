"""The pages in a browser: they open without a complaint, fold, switch and search, and run nothing that models wrote."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpr_core.models.dense_reward import ScoredText, TokenCredit
from dpr_core.reporting import sections
from dpr_core.reporting.examples import examples_section
from dpr_core.reporting.judgments import JudgedAnswers
from dpr_core.reporting.page import page
from dpr_core.reporting.report import ReportTable, Row, as_html
from dpr_core.reporting.tables import Table
from dpr_core.reporting.token_credit import as_html as credit_page
from tests.browser import CHROMIUM, Browser, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

Make = Callable[..., JudgedAnswers]

HOSTILE = (
    "</p></details></script><script>document.title = 'taken'</script>"
    "<img src=x onerror=\"document.title = 'taken'\"><svg onload=\"document.title = 'taken'\"></svg>"
    "<style>body { display: none }</style><meta http-equiv=refresh content='0; url=about:blank'>\u202e${7*7}"
)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8cf500f0003840180eb2b2f5b0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as ready:
        yield ready


def report_of(judged: Make) -> str:
    scores = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0)] * 20
    every = [
        judged(
            name, scores, answers=(HOSTILE, HOSTILE), turns=(HOSTILE,), words=HOSTILE, benchmark=HOSTILE, judge=HOSTILE
        )
        for name in (HOSTILE, "DPR")
    ]
    rows = [Row(each.policy, HOSTILE, 60, 20.0, 0.0, win_rate=50.0, win_rate_interval=(40, 60)) for each in every]
    linked = [sections.ArtifactLinks(HOSTILE, HOSTILE, {"answers": "1" * 32})]
    parts = [
        sections.paired_tests_section(sections.compare_policies(every)),
        sections.lengths_section(every, HOSTILE),
        examples_section(every, HOSTILE),
        sections.links_section(linked, lambda run_id: f"https://mlflow.example/{run_id}"),
    ]
    table = ReportTable(HOSTILE, tuple(rows), HOSTILE, (HOSTILE,), {HOSTILE: HOSTILE})
    return as_html(table, [part for part in parts if part is not None])


def test_nothing_that_a_model_wrote_runs_or_hides(opened: Browser, judged: Make, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_of(judged), "utf-8")
    opened.open(path)
    assert opened.complaints == []
    assert opened.evaluate("document.title") == HOSTILE.replace("\u202e", "\u27e8U+202E\u27e9")
    assert opened.evaluate("document.querySelectorAll('img, iframe, object, [onerror], [onload]').length") == 0
    assert opened.evaluate("document.scripts.length") == 1
    assert opened.evaluate("document.querySelectorAll('style').length") == 1
    assert opened.evaluate("getComputedStyle(document.body).display") == "block"
    said = opened.evaluate("document.querySelector('.ours .said').textContent")
    assert said == HOSTILE.replace("\u202e", "\u27e8U+202E\u27e9")


def test_details_fold_open(opened: Browser, judged: Make, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_of(judged), "utf-8")
    opened.open(path)
    seen = "document.querySelector('.example .said').checkVisibility()"
    assert opened.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert opened.evaluate(seen) is False
    opened.click("details:has(> .group) > summary")
    opened.click(".example > summary")
    assert opened.evaluate("document.querySelectorAll('details[open]').length") == 2
    assert opened.evaluate(seen) is True
    assert opened.complaints == []


def test_charts_are_drawn_in_the_page_and_nothing_is_wider_than_it(
    opened: Browser, judged: Make, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_of(judged), "utf-8")
    opened.open(path)
    assert opened.evaluate("document.querySelectorAll('svg').length") == 2
    assert opened.evaluate("document.querySelector('svg .box').getBoundingClientRect().height") > 10
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def search(opened: Browser, words: str) -> str:
    said = "document.getElementById('found').value"
    field = "const field = document.getElementById('find')"
    opened.evaluate(f"{{ {field}; field.value = {json.dumps(words)}; field.dispatchEvent(new Event('input')) }}")
    return str(opened.evaluate(said))


def test_answers_can_be_searched(opened: Browser, judged: Make, tmp_path: Path) -> None:
    needle = examples_section(
        [judged("DPR", [(1.0, 1.0)] * 3), judged("SR", [(0.0, 0.0)], words="<b>Needle</b>")], "SFT"
    )
    assert needle is not None
    path = tmp_path / "report.html"
    path.write_text(as_html(ReportTable("t", (Row("DPR", "lab", 3, 1.0, 0.0),)), [needle]), "utf-8")
    opened.open(path)
    shown = "[...document.querySelectorAll('.example')].filter((each) => each.checkVisibility()).length"
    assert (search(opened, " <B>needle "), opened.evaluate(shown)) == ("1 of 4", 1)
    assert opened.evaluate("document.querySelectorAll('details[open]').length") == 2
    assert opened.evaluate("CSS.highlights.get('found').size") == 2
    assert opened.evaluate("document.querySelectorAll('.said b').length") == 0
    assert (search(opened, "nowhere"), opened.evaluate(shown)) == ("0 of 4", 0)
    assert search(opened, "") == ""
    assert opened.evaluate("document.querySelectorAll('[data-find][hidden], details[open]').length") == 0
    assert opened.complaints == []


def test_the_credit_page_switches_between_its_values_and_is_searched(opened: Browser, tmp_path: Path) -> None:
    def text(*rewards: float) -> ScoredText:
        tokens = [
            TokenCredit(i, i, f"<i>w{i}", -(i + 1.0), -1.0, each, sum(rewards[i:])) for i, each in enumerate(rewards)
        ]
        return ScoredText(f"Why {len(rewards)}?", "", [], tokens)

    path = tmp_path / "credit.html"
    path.write_text(credit_page([text(3.0, 0.5, -2.0, 0.25), text(1.0, 0.125)], "t", {}), "utf-8")
    opened.open(path)
    colour = "getComputedStyle(document.getElementById('t0-2')).backgroundColor"
    rows = "getComputedStyle(document.getElementById('t0-2')).backgroundImage.split('linear').length - 1"
    assert "(180, 60, 8" in opened.evaluate(colour)
    opened.click("[for=by-return]")
    assert "(180, 60, 8" in opened.evaluate(colour)
    opened.click("[for=by-sft]")
    assert opened.evaluate("document.querySelector('.legend-sft').checkVisibility()") is True
    assert opened.evaluate("document.querySelector('.legend-reward').checkVisibility()") is False
    opened.click("[for=by-all]")
    assert opened.evaluate(rows) == 3
    opened.click(".lowest a")
    assert opened.evaluate("document.querySelector(':target').id") == "t0-2"
    assert search(opened, "why 2") == "1 of 2"
    assert opened.evaluate("document.getElementById('text0').checkVisibility()") is False
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.complaints == []


def page_of_pixel(images: bool) -> str:
    words = {"introduction": "", "missing": "", "claims": None, "best": [], "caption": ""}
    plots = {"A <dot>": base64.b64encode(PIXEL).decode()}
    return page("results.html", "t", images=images, table=Table(["x"], [["y"]]), plots=plots, **words)


def test_pictures_are_shown_only_where_the_page_says_so(opened: Browser, tmp_path: Path) -> None:
    width = "document.querySelector('img').naturalWidth"
    allowed, refused = tmp_path / "allowed.html", tmp_path / "refused.html"
    allowed.write_text(page_of_pixel(images=True), "utf-8")
    opened.open(allowed)
    assert (opened.evaluate(width), opened.complaints) == (1, [])
    refused.write_text(page_of_pixel(images=False), "utf-8")
    opened.open(refused)
    assert opened.evaluate(width) == 0
    assert "Content Security Policy" in opened.complaints.pop()
    opened.complaints.clear()
