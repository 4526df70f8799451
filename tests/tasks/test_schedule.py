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

    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
        seen[node.name] = inputs
        return outcome(node.name)

    done = execute_all(DIAMOND, run, Done(), Here())
    assert list(seen) == ["base", "left", "right", "top", "alone"]
    assert seen["top"] == {"left": "id of left", "right": "id of right"}
    assert (set(done.outcomes), done.failures) == (set(seen), {})


def test_a_failure_takes_with_it_what_is_built_on_it_and_nothing_else() -> None:
    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
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

    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
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

    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
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
    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_all(DIAMOND, run, Done(), Here())


def test_what_waits_is_begun_first_and_beside_what_computes() -> None:
    """Two answers and their judges: the second is drawn while the first is judged."""
    order: list[str] = []
    judged = threading.Event()

    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
        assert aside == (threading.current_thread() is not threading.main_thread())
        order.append(node.name)
        if node.name == "judge 1":
            assert judged.wait(timeout=30), "what computes has waited for the judge"
        if node.name == "answer 2":
            judged.set()
        return outcome(node.name)

    graph = [node("answer 1"), node("answer 2"), node("judge 1", "answer 1"), node("report", "judge 1", "answer 2")]
    with ThreadPoolExecutor(2) as threads:
        done = execute_all(graph, run, Done(), Here(), waits=lambda node: "judge" in node.name, beside=threads)
    assert set(done.outcomes) == {node.name for node in graph}
    assert order[0] == "answer 1"
    assert sorted(order[1:3]) == ["answer 2", "judge 1"]


def test_where_nothing_else_can_be_done_it_is_waited_for_here() -> None:
    seen: dict[str, bool] = {}

    def run(node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
        seen[node.name] = aside
        return outcome(node.name)

    graph = [node("answer"), node("judge", "answer"), node("report", "judge")]
    with ThreadPoolExecutor(2) as threads:
        execute_all(graph, run, Done(), Here(), waits=lambda node: node.name == "judge", beside=threads)
    assert seen == {"answer": False, "judge": False, "report": False}
