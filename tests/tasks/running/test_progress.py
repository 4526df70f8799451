import time
from io import StringIO

import pytest
from rich.console import Console

from tasks.running.progress import StageProgress, pace

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
    assert capsys.readouterr().err == f"{ODD}: 1 of 2, note [/x]\n"


@pytest.mark.parametrize(
    ("steps", "seconds", "left", "at_most", "shown"),
    [
        (0, 10.0, 5, False, ""),
        (3, 0.0, 5, False, ""),
        (20, 2.0, 50, False, "10.0/s, 5 s left"),
        (2, 124.0, 18, False, "62.0 s each, 19 min left"),
        (1, 900.0, 40, True, "900.0 s each, at most 10.0 h left"),
        (300, 250.0, 1200, True, "1.2/s, at most 17 min left"),
        (2, 4.0, 0, False, "2.0 s each"),
        (2, 4.0, None, False, "2.0 s each"),
    ],
)
def test_a_pace_is_told_in_the_unit_that_says_something(
    steps: int, seconds: float, left: int | None, at_most: bool, shown: str
) -> None:
    assert pace(steps, seconds, left, at_most) == shown


def test_inside_of_a_step_its_part_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.running.progress.SECONDS_BETWEEN_LINES", 0.0)
    progress = StageProgress("reinforce")
    progress.console = Console(file=StringIO(), force_terminal=False)
    with progress:
        progress.part("rollout", 4, 8)
        progress._last_line = 0.0
        progress.advance(0, 2, "return 0.100")
        progress._last_line = 0.0
        progress.part("update", 1, 2)
    assert capsys.readouterr().err.splitlines() == [
        "reinforce: rollout 4 of 8",
        "reinforce: 0 of 2, return 0.100",
        "reinforce: 0 of 2, return 0.100, update 1 of 2",
    ]


def test_a_bar_tells_the_same() -> None:
    progress = StageProgress("reinforce")
    progress.console = Console(file=StringIO(), force_terminal=True, width=160)
    with progress:
        progress.part("rollout", 4, 8)
        assert progress._bar is not None
        progress._bar.refresh()
        progress.advance(1, 2, "return 0.100")
        progress.part("update", 1, 2)
        progress._bar.refresh()
    drawn = progress.console.file.getvalue()  # type: ignore[attr-defined]
    assert "rollout 4 of 8" in drawn
    assert "return 0.100, update 1 of 2" in drawn


def test_a_long_silence_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.running.progress.LONGEST_BETWEEN_LINES", 0.02)
    progress = StageProgress("reinforce")
    progress.console = Console(file=StringIO(), force_terminal=False)
    said = ""
    with progress:
        progress.part("rollout", 4, 8)
        until = time.monotonic() + 30
        while "no news for" not in said and time.monotonic() < until:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert "reinforce: rollout 4 of 8, no news for 0 s\n" in said
