"""The simulation of work pools against cases that can be counted by hand, and the page against its results."""

import json
from collections.abc import Sequence

import pytest

from dpr_core.config.base import StageConfig
from perf import idle_gpus
from perf.idle_gpus import CPU, GPU, Stage, compared, critical_path, row, simulated
from tasks.graph import Node


def stage(name: str, pool: str, hours: float, needs: Sequence[str] = ()) -> Stage:
    return Stage(Node(name, "stage", StageConfig(), {name: f"@{name}" for name in needs}), pool, hours)


def pipeline(name: str = "") -> list[Stage]:
    """A policy is trained for two hours and answers two benchmarks, an hour each; each judge takes three."""
    return [
        stage(f"train{name}", GPU, 2),
        stage(f"answer 1{name}", GPU, 1, [f"train{name}"]),
        stage(f"judge 1{name}", CPU, 3, [f"answer 1{name}"]),
        stage(f"answer 2{name}", GPU, 1, [f"train{name}"]),
        stage(f"judge 2{name}", CPU, 3, [f"answer 2{name}"]),
    ]


def test_judges_that_are_waited_for_leave_the_gpu_to_others() -> None:
    """One GPU worker: 2 to train, answers at 3 and 4, judges at 6 and 7; before 2 + 1 + 3 + 1 + 3."""
    before, after = compared({"one": pipeline()}, pipeline(), workers=1, cpu_slots=2)
    assert (before["hours"], before["gpu_hours_held"], before["held_idle_share"]) == (10, 10, pytest.approx(0.6))
    assert (after["hours"], after["gpu_workers_free_after"], after["gpu_hours_held"]) == (7, 4, 4)
    assert after["idle_share"] == after["held_idle_share"] == 0


def test_a_single_slot_for_judges_has_them_wait_for_each_other() -> None:
    assert simulated(pipeline(), {GPU: 1, CPU: 1}).now == 9  # judges from 3 to 6 to 9
    assert critical_path(pipeline()) == 6


def test_what_is_ready_first_is_begun_first_and_workers_without_work_idle() -> None:
    """Two pipelines on three GPU workers: both train till 2, three of four answers till 3 and the last till 4."""
    pools = simulated([*pipeline(), *pipeline(" b")], {GPU: 3, CPU: 9})
    assert (pools.now, pools.last[GPU]) == (7, 4)
    assert row("placed", pools, 8)["idle_share"] == pytest.approx(1 - 8 / 12)


def test_no_gpu_waits_for_a_crowd_of_judges() -> None:
    """More judges than are waited for at once, a day each: all 99 answers are made meanwhile, in 9.9 hours."""
    many = [stage("sft", GPU, 0)]
    for i in range(99):
        answer = stage(f"answer {i}", GPU, 0.1, ["sft"])
        judged = Node(f"judge {i}", "judge", StageConfig(), {"answer": f"@answer {i}"})
        many += [answer, Stage(judged, CPU, 24)]
    assert simulated(many, {GPU: 1, CPU: 99}).last[GPU] == pytest.approx(9.9)


def test_the_page_says_what_the_results_are() -> None:
    page, results = idle_gpus.PAGE.read_text("utf-8"), json.loads(idle_gpus.RESULTS.read_text("utf-8"))
    assert idle_gpus.with_section(page, results) == page
