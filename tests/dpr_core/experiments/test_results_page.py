"""The page of an experiment in a browser: nothing that stands in a name, a setting or a caption runs there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dpr_core.experiments import results
from dpr_core.experiments.exhibits import EXHIBITS, SWEEP
from dpr_core.experiments.observations import Observation
from tests.browser import CHROMIUM, browser
from tests.dpr_core.reporting.test_report_page import HOSTILE, PIXEL

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def test_nothing_that_stands_in_an_experiment_runs(runs: Callable[..., list[Observation]], tmp_path: Path) -> None:
    seen = [
        each for name in (HOSTILE, "DPR") for each in runs(name, [60.0, 62.0], {HOSTILE: HOSTILE}, benchmark=HOSTILE)
    ]
    verdicts = EXHIBITS["table1"].verdicts(seen)
    text = results.as_html(HOSTILE, SWEEP, seen, verdicts, {HOSTILE: PIXEL}, [HOSTILE])
    (tmp_path / "results.html").write_text(text, "utf-8")
    with browser(tmp_path / "profile") as opened:
        opened.open(tmp_path / "results.html")
        assert opened.complaints == []
        assert opened.evaluate("document.title") == HOSTILE.replace("\u202e", "\u27e8U+202E\u27e9")
        assert opened.evaluate("document.querySelectorAll('img').length") == 1
        assert opened.evaluate("document.querySelectorAll('script, svg, iframe, [onerror], [onload]').length") == 0
        assert opened.evaluate("document.querySelectorAll('style').length") == 1
        assert "\u202e" not in opened.evaluate("document.body.textContent")
