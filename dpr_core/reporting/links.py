"""Where the artifacts behind a report are found: by command, and on the MLflow server where there is one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from dpr_core.reporting.page import Html, element, join
from dpr_core.reporting.section import Section
from dpr_core.reporting.tables import Table, escaped
from dpr_core.text import escape_control

SHORT = 8
"""Characters of an ID that tell it from others."""

Address = Callable[[str], str | None]
"""Where an artifact is shown, by its ID; None where no server is known."""


@dataclass(frozen=True)
class Linked:
    """The artifacts behind one row of a report."""

    policy: str
    benchmark: str
    artifacts: Mapping[str, str]
    """IDs, by what they are of the row: its policy, its answers, its judgment."""


def section(rows: Sequence[Linked], address: Address) -> Section:
    """A row for each row of the report."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.artifacts))
    head = [element("th", escape_control(name), scope="col", class_="text") for name in ("policy", "benchmark", *kinds)]
    body = []
    for row in rows:
        cells = [_shown(row.artifacts.get(kind), address) for kind in kinds]
        names = [element("td", escape_control(name), class_="text") for name in (row.policy, row.benchmark)]
        body.append(element("tr", *names, *cells))
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    commands = [
        [row.policy, row.benchmark, *(_command(row.artifacts[k]) if k in row.artifacts else "" for k in kinds)]
        for row in rows
    ]
    texts = Table(["policy", "benchmark", *kinds], commands, texts=2 + len(kinds)).as_markdown()
    linked = [
        f"- [{escaped(f'{kind} of {row.policy} on {row.benchmark}')}](<{url}>)"
        for row in rows
        for kind, run_id in row.artifacts.items()
        if (url := web_address(address(run_id))) is not None
    ]
    return Section("Artifacts", element("div", table, class_="scroll"), "\n".join([texts, "", *linked]).rstrip())


def _command(run_id: str) -> str:
    return f"dpr show {run_id[:SHORT]}"


def _shown(run_id: str | None, address: Address) -> Html:
    if run_id is None:
        return element("td", "", class_="artifact")
    parts: list[str] = [element("code", _command(run_id), class_="copy", title=run_id)]
    if (url := web_address(address(run_id))) is not None:
        parts += [" ", element("a", "MLflow", href=url, rel="noreferrer")]
    return element("td", join(*parts), class_="artifact")


def web_address(url: str | None) -> str | None:
    """An address that a page may link to: of the web, and without a name or password."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    safe = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return None if any(sign in safe for sign in "<>\"' \n\r") else safe
