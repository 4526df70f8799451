import json
from pathlib import Path

import pytest

from perf.checkpointing import main, markdown


def test_a_row_says_what_a_state_costs() -> None:
    row = {
        "parameters": 10_480_000,
        "bytes": 126_000_000,
        "seconds_to_keep": 1.5,
        "seconds_to_read": 0.25,
        "minutes_between": 10.0,
        "share": 0.0025,
    }
    assert markdown(row).splitlines() == [
        "| parameters | a state | seconds to keep it | seconds to read it | of the time, every 10 min |",
        "|--:|--:|--:|--:|--:|",
        "| 10.5M | 126 MB | 1.50 | 0.25 | 0.25% |",
    ]


def test_a_state_holds_the_weights_and_two_moments_of_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = ["--width", "32", "--layers", "1", "--vocabulary", "64", "--repeats", "2", "--minutes", "5"]
    monkeypatch.setattr("sys.argv", ["checkpointing.py", *small, "--folder", str(tmp_path), "--json"])
    main()
    row = json.loads(capsys.readouterr().out)
    parameters = 64 * 32 + 4 * 32**2 + 3 * 32 * 128 + 3 * 32
    assert row["parameters"] == parameters
    assert 3 * 4 * parameters < row["bytes"] < 3 * 4 * parameters + 20_000
    assert row["share"] == pytest.approx(row["seconds_to_keep"] / 300)
    assert list(tmp_path.iterdir()) == []
