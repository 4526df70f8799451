"""Names are text: whatever stands in them is shown as it is, at any width."""

from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from dpr_core.text import escape_control
from flows.cli import inspect_view, run_view
from tasks.artifacts.run_records import Record
from tasks.graph import Planned

ODD = "answer [/b] k[b] :smile: \u202e\x9b on lab"
WHY = 'algorithm.gamma: 1.0 -> 0.9; source.path: "/a/folder/with/a/long/name/rows.jsonl" -> "[/x]"'


def shown(view: RenderableType, width: int = 200) -> str:
    console = Console(width=width, file=StringIO())
    console.print(view, overflow="ignore", crop=False)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": "ab" * 16,
        "stage": "answer",
        "name": ODD,
        "status": "FINISHED",
        "key": "k",
        "digest": "d",
        "inputs": {},
        "config": {ODD: [ODD]},
        "started": datetime(2026, 1, 2, tzinfo=UTC),
        "seconds": 1.5,
        "parent": None,
    }
    return Record(**(values | changes))


class OneRecord:
    """As much of a store as a view asks for."""

    def records(self) -> list[Record]:
        return [record()]

    def record(self, run_id: str) -> Record:
        return record()


def test_square_brackets_in_names_are_no_markup() -> None:
    store: Any = OneRecord()
    made = record(inputs={ODD: "cd" * 16}, reason=ODD)
    document = inspect_view.record_document(made) | {
        "reason": ODD,
        "registered": [],
        "used_by": ["ab" * 16],
        "metrics": {ODD: 0.5},
        "files": [{"path": ODD, "size": 1, "sha256": "0" * 64}],
    }
    run = {
        "stages": [{"stage": "answer", "name": ODD, "id": "ab" * 16, "status": "reused", "seconds": 0.0}],
        "results": {ODD: 0.5},
    }
    views = {
        "plan": (run_view.plan_table([Planned(ODD, "answer", "run", None, ODD)]), 2),
        "records": (inspect_view.record_table([made]), 1),
        "checked": (inspect_view.verification_table([inspect_view.Checked(made.id, made.stage, made.name, [ODD])]), 2),
        "run": (run_view.run_summary(store, run), 2),
        "artifact": (inspect_view.artifact_view(store, made, document), 9),
    }
    for name, (view, times) in views.items():
        assert shown(view).count(escape_control(ODD)) == times, name
        assert ODD not in shown(view), name


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 200])
def test_a_plan_gives_its_reasons_in_full_at_any_width(width: int) -> None:
    planned = [
        Planned("backbone", "backbone", "reuse", "0123456789abcdef", "nothing changed"),
        Planned("answer extrapolated on lab", "answer", "run", None, WHY),
    ]
    text = shown(run_view.plan_table(planned), width)
    lines = [line.rstrip() for line in text.splitlines()]
    reasons = "".join(line[line.index("algorithm") :] if "algorithm" in line else line for line in lines)
    assert WHY.replace(" ", "") in reasons.replace(" ", "")
    if width in (40, 60, 79):
        assert "  algorithm.gamma: 1.0 -> 0.9;" in text
