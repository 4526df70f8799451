"""MLflow's UI in a browser: the policies of a pipeline are rows with a column for each quantity, and bars."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import CHROMIUM, Browser, browser
from tests.flows.conftest import run_tiny
from tests.mlflow_page import charts, served, table

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path) as ready:
        yield ready


def test_policies_are_rows_with_their_win_rates(
    opened: Browser,
    tmp_path: Path,
    dpr_process: Callable[..., Any],
    process_environment: Callable[..., dict[str, str]],
) -> None:
    # In a store of its own: a second pipeline of the same policies would be rows of the same names.
    made = run_tiny(tmp_path / "home", dpr_process)
    reported = {row["policy"]: row["win_rate"] for row in made.result.json["results"]["rows"]}
    wanted = {policy: 0.5 if rate is None else rate / 100 for policy, rate in reported.items()}
    assert set(wanted) == {"SFT", "DPR", "extrapolated"}
    with served(process_environment(made.home)) as address:
        rows = table(opened, address)
        assert "Model training" in opened.evaluate("document.body.innerText")
        assert {policy: float(row["win_rate"]) for policy, row in rows.items()} == pytest.approx(wanted)
        metrics = {"win_rate", "accuracy", "kl", "tokens"}
        assert all(row.keys() == metrics for row in rows.values())
        assert charts(opened) >= metrics
