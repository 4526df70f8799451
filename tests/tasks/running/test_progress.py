from io import StringIO

import pytest
from rich.console import Console

from tasks.running.progress import StageProgress

ODD = "answer [/b] k[b]"


def test_square_brackets_in_a_name_or_note_are_no_markup() -> None:
    progress = StageProgress(ODD)
    progress.console = Console(file=StringIO(), force_terminal=True, width=160)
    with progress:
        progress.advance(1, 2, "note [/x]")
        assert progress._bar is not None
        progress._bar.refresh()
    drawn = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert ODD in drawn
    assert "note [/x]" in drawn


def test_elsewhere_than_in_a_terminal_a_line_is_plain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.running.progress.SECONDS_BETWEEN_LINES", 0.0)
    progress = StageProgress(ODD)
    progress.console = Console(file=StringIO(), force_terminal=False)
    with progress:
        progress.advance(1, 2, "note [/x]")
    assert capsys.readouterr().err == f"{ODD}: 1 of 2 note [/x]\n"
