"""A graph whose nodes fail, wait for each other, and run at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dpr_core.config.base import StageConfig
from dpr_core.errors import DensePathError
from tasks.graph import Node
from tasks.run_stage import Outcome
from tasks.schedule import Done, Failure, Here, execute_all


def node(name: str, *needs: str) -> Node:
    return Node(name, "stage", StageConfig(), {need: f"@{need}" for need in needs})


DIAMOND = [node("top", "left", "right"), node("left", "base"), node("right", "base"), node("base"), node("alone")]


def outcome(name: str) -> Outcome:
    return Outcome("stage", name, f"id of {name}", "ran", 0.0, {})


def test_inputs_come_first_and_are_handed_on_by_id() -> None:
    seen: dict[str, dict[str, str]] = {}

    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        seen[node.name] = inputs
        return outcome(node.name)

    done = execute_all(DIAMOND, run, Done(), Here())
    assert list(seen) == ["base", "left", "right", "top", "alone"]
    assert seen["top"] == {"left": "id of left", "right": "id of right"}
    assert (set(done.outcomes), done.failures) == (set(seen), {})


def test_a_failure_takes_with_it_what_is_built_on_it_and_nothing_else() -> None:
    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        if node.name == "left":
            raise DensePathError("broken")
        return outcome(node.name)

    told: list[Failure] = []
    done = execute_all(DIAMOND, run, Done(), Here(), on_failure=told.append)
    assert set(done.outcomes) == {"base", "right", "alone"}
    assert {name: (failure.node, str(failure.error)) for name, failure in done.failures.items()} == {
        "left": ("left", "broken"),
        "top": ("left", "broken"),
    }
    assert [failure.node for failure in told] == ["left"]


def test_what_was_done_or_failed_before_is_not_tried_again() -> None:
    ran = []

    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        ran.append((node.name, inputs))
        return outcome(node.name)

    before = Done({"base": outcome("base")}, {"right": Failure("right", DensePathError("earlier"))})
    done = execute_all(DIAMOND, run, before, Here())
    assert ran == [("left", {"base": "id of base"}), ("alone", {})]
    assert set(done.failures) == {"right", "top"}
    assert set(before.outcomes) == {"base"}


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_more_than_the_jobs_run_at_once(jobs: int) -> None:
    together = threading.Barrier(jobs)
    guard = threading.Lock()
    running, most = 0, 0

    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        if node.name.startswith("free"):
            together.wait(timeout=30)
        with guard:
            running -= 1
        return outcome(node.name)

    free = [node(f"free {number}") for number in range(2 * jobs)]
    with ThreadPoolExecutor(8) as threads:
        done = execute_all([*free, node("last", "free 0")], run, Done(), threads, jobs)
    assert (most, len(done.outcomes)) == (jobs, 2 * jobs + 1)


def test_an_interrupt_ends_all() -> None:
    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_all(DIAMOND, run, Done(), Here())
