import json
from pathlib import Path

import pytest

from perf.checkpointing import main, markdown


def test_a_row_says_what_a_state_costs() -> None:
    row = {
        "processes": 2,
        "parameters": 10_480_000,
        "bytes": 126_000_000,
        "seconds_to_keep": 1.5,
        "own_to_keep": 1_000_000,
        "mapped_to_keep": 2_000_000,
        "seconds_to_read": 0.25,
        "own_to_read": 42_000_000,
        "mapped_to_read": 63_000_000,
        "minutes_between": 10.0,
        "share": 0.0025,
    }
    assert markdown([row]).splitlines() == [
        "| processes | parameters | a state | seconds to keep it | memory | seconds to read it | memory "
        "| of the time, every 10 min |",
        "| --: | --: | --: | --: | --: | --: | --: | --: |",
        "| 2 | 10.5M | 126 MB | 1.50 | 1 MB (2 MB) | 0.25 | 42 MB (63 MB) | 0.25% |",
    ]


@pytest.mark.slow
def test_a_state_holds_the_weights_and_two_moments_of_each_in_however_many_shares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = ["--width", "32", "--layers", "1", "--vocabulary", "64", "--repeats", "2", "--minutes", "5"]
    more = ["--processes", "1", "2", "--folder", str(tmp_path), "--json"]
    monkeypatch.setattr("sys.argv", ["checkpointing.py", *small, *more])
    main()
    rows = json.loads(capsys.readouterr().out)
    parameters = 64 * 32 + 4 * 32**2 + 3 * 32 * 128 + 3 * 32
    for row, processes in zip(rows, (1, 2), strict=True):
        assert (row["processes"], row["parameters"]) == (processes, parameters)
        assert 3 * 4 * parameters < row["bytes"] < 3 * 4 * parameters + 40_000
        assert row["share"] == pytest.approx(row["seconds_to_keep"] / 300)
    assert list(tmp_path.iterdir()) == []
