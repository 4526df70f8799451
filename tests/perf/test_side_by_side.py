import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from perf import side_by_side
from perf.side_by_side import (
    OURS,
    Timed,
    Turn,
    Work,
    beside,
    check_equal_lengths,
    dtype_of,
    in_turn,
    named,
    saying_who_ended,
    taken,
)

MEGABYTE = 10**6
ROOT = Path(__file__).parents[2]
SPIN = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"


def test_programs_that_do_other_work_are_not_compared() -> None:
    check_equal_lengths({})
    check_equal_lengths({OURS: [40, 60], "other": [60, 40]})
    with pytest.raises(AssertionError, match="other did 2 responses of 101 tokens and dense-path 2 of 100"):
        check_equal_lengths({OURS: [40, 60], "other": [41, 60]})
    with pytest.raises(AssertionError, match="or of other lengths"):
        check_equal_lengths({OURS: [40, 60], "other": [50, 50]})


def turns(*seconds: float, above: Sequence[int] = (0, 0)) -> list[Turn]:
    return [Turn(each, [3, 5], 100 * MEGABYTE, over) for each, over in zip(seconds, above, strict=True)]


def test_a_ratio_is_to_the_fastest_of_the_others_by_medians() -> None:
    timed = Timed({OURS: turns(1, 3), "slow": turns(9, 9), "fast": turns(5, 2, above=(7, 2))})
    assert timed.ratio("slow", "fast") == 1.75
    assert timed.fastest("slow", "fast") == "fast"
    assert timed.above("fast") == 7
    row = timed.rows("toy")[2]
    assert (row["ours_over_it"], row["ours_over_it_at_best"]) == (1.75, 2)
    assert (row["peak_megabytes"], row["seconds_per_token"]) == (100, [0.625, 0.25])


def test_bfloat16_is_compared_with_the_faster_type_of_the_other_and_float32_with_its_own() -> None:
    assert [named("TRL", dtype) for dtype in ("float32", "bfloat16")] == ["TRL", "TRL bfloat16"]
    assert [dtype_of(name) for name in ("TRL tuned", "TRL tuned bfloat16")] == ["float32", "bfloat16"]
    both = ["float32", "bfloat16"]
    assert beside("TRL", "float32", both) == {"TRL"}
    assert beside("TRL", "bfloat16", both) == {"TRL", "TRL bfloat16"}
    timed = Timed({OURS: turns(2, 2), "dense-path bfloat16": turns(1, 1), "TRL bfloat16": turns(4, 4)})
    assert [row["ours_over_it"] for row in timed.rows("toy")] == [1, 1, 4]


def holding(megabytes: int, log: Path, turn: int) -> Work:
    held = bytearray(20 * MEGABYTE)

    def work() -> list[int]:
        with log.open("a") as file:
            print(turn, megabytes, file=file)
        return [len(held) and len(bytearray(b"x") * (megabytes * MEGABYTE)) // MEGABYTE]

    return work


def spinning(by_children: bool, monkeypatch: pytest.MonkeyPatch) -> Turn:
    """A child takes time and ends, while another idles. What else was started by the tests is left aside."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as idle:
        family = [Path("/proc/self"), Path(f"/proc/{idle.pid}")]
        monkeypatch.setattr(side_by_side, "family", lambda: family)
        return taken(lambda turn: lambda: [subprocess.run(["sh", "-c", SPIN]).returncode], 1, by_children)


@pytest.mark.slow
def test_memory_is_of_whom_is_said_to_work_and_time_of_all_whether_they_live_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, childs = (spinning(by_children, monkeypatch) for by_children in (False, True))
    assert own.peak > 50 * MEGABYTE > childs.peak > 0
    assert own.seconds >= 0.02


@pytest.mark.slow
def test_programs_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    timed = in_turn({OURS: partial(holding, 50, log), "other": partial(holding, 50, log)}, repeats=2)
    assert log.read_text() == "".join(f"{turn} 50\n" for turn in (0, 0, 1, 1, 2, 2))
    for name in (OURS, "other"):
        assert len(timed.seconds(name)) == 2
        assert 49 * MEGABYTE < timed.above(name) < 60 * MEGABYTE


@pytest.mark.slow
def test_a_process_ends_with_its_script_even_when_that_is_killed() -> None:
    words = [
        "import os, time",
        "from perf.side_by_side import _process",
        "print(_process().submit(os.getpid).result(), flush=True)",
        "time.sleep(600)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(words)], stdout=subprocess.PIPE, cwd=ROOT) as script:
        assert script.stdout
        process = Path("/proc") / script.stdout.readline().decode().strip()
        assert process.is_dir()
        script.kill()
    deadline = time.monotonic() + 30
    while process.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not process.is_dir()


def test_who_ended_is_said() -> None:
    with pytest.raises(SystemExit, match=r"^the process of TRL was ended .* memory"), saying_who_ended("TRL"):
        raise BrokenProcessPool("abruptly")
