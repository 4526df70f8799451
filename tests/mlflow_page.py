"""The policies of a store in MLflow's UI, as a browser shows them; the picture of them in the docs.

DPR_HOME=FOLDER python -m tests.mlflow_page docs/images/mlflow.png
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from tests.browser import Browser, browser

SIZE = 1280, 480
CELLS = """[...document.querySelectorAll('[role=row] [role=gridcell][col-id*="`"]')].map((cell) => [
    cell.closest('[role=row]').getAttribute('row-index'), cell.getAttribute('col-id'), cell.innerText
])"""


@contextmanager
def served(environment: Mapping[str, str]) -> Iterator[str]:
    """The address that `dpr ui` says, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)]
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline().split()
            _until_it_answers(f"http://127.0.0.1:{port}/health")
            yield said[2]
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _until_it_answers(address: str) -> None:
    for _ in range(600):
        try:
            with urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


def table(opened: Browser, address: str) -> dict[str, dict[str, str]]:
    """What the description's link to the table shows: the metrics of each row, by its name."""
    opened.open(address)
    _follow(opened, "viewStateShareKey=policies")
    opened.wait("document.querySelectorAll('[role=gridcell][col-id=\"metrics.`win_rate`\"]').length > 0")
    rows: dict[str, dict[str, str]] = {}
    for row, column, text in opened.evaluate(CELLS):
        rows.setdefault(row, {})[column.split("`")[1]] = text.strip().split("\n")[-1]
    return {row.pop("Run Name"): row for row in rows.values()}


def charts(opened: Browser) -> set[str]:
    """The lines of what the description's link to the charts shows."""
    _follow(opened, "compareRunsMode=CHART")
    opened.wait("document.querySelectorAll('.js-plotly-plot').length >= 4")
    return set(opened.evaluate("document.body.innerText").split("\n"))


def _follow(opened: Browser, where: str) -> None:
    link = f"document.querySelector('a[href*=\"{where}\"]')"
    opened.wait(f"!!{link}")
    opened.evaluate(f"location.href = {link}.href")


def main(file: Path) -> None:
    with TemporaryDirectory() as profile, served(os.environ) as address, browser(Path(profile)) as opened:
        rows = table(opened, address)
        for beside in ("Close", "Hide banner"):
            opened.click(f"button[aria-label='{beside}']")
        file.write_bytes(opened.picture(*SIZE))
        print(f"{file}: {', '.join(rows)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
