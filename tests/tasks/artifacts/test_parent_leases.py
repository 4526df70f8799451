"""Pipelines of several homes in one store: what one left is taken over by one other, and by no more."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier, Event

import pytest

from dpr_core.errors import DensePathError
from tasks.artifacts.leases import Lease
from tasks.artifacts.parent_runs import RESUMED, PipelineInfo
from tasks.artifacts.retrying import LeaseLostError
from tasks.artifacts.store import Store
from tests.tasks.conftest import LAPSE, Homes, silence

Asked = Callable[..., PipelineInfo]


def left(store: Store, info: PipelineInfo, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pipeline whose process was killed."""
    with monkeypatch.context() as patched, suppress(ZeroDivisionError):
        patched.setattr(Lease, "_beat", lambda lease: None)
        with store.parent_runs.running(info) as run_id:
            raise ZeroDivisionError
    return run_id


@contextmanager
def gone_on_with(run_id: str) -> Iterator[None]:
    before = RESUMED.set(run_id)
    try:
        yield
    finally:
        RESUMED.reset(before)


def states(store: Store) -> list[tuple[str, str, str]]:
    return [(each.id, each.status, each.elsewhere.rpartition("/")[2]) for each in store.parent_runs.all()]


def test_what_another_home_left_goes_on_in_its_run(at: Homes, about: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    one, another = at("one"), at("another")
    run_id = left(one, about(), monkeypatch)
    assert states(one) == [(run_id, "INTERRUPTED", "")]
    assert states(another) == [(run_id, "RUNNING", "one")], "nobody knows yet"
    assert another.parent_runs.resumable() == []
    another.parent_runs.watch()
    assert states(another) == [(run_id, "INTERRUPTED", "one")]
    assert [each.is_interrupted for each in another.parent_runs.resumable()] == [True]
    with another.parent_runs.running(about()) as again:
        assert again == run_id
        assert states(one) == [(run_id, "RUNNING", "another")]
        assert one.parent_runs.end_dead() == []
        another.parent_runs.end(again, "FINISHED", {})
    assert states(one)[0][:2] == (run_id, "FINISHED")


def test_one_that_lives_is_left_alone(at: Homes, about: Asked) -> None:
    one, another = at("one"), at("another")
    with one.parent_runs.running(about()) as first:
        time.sleep(2 * LAPSE)
        began = time.monotonic()
        with another.parent_runs.running(about()) as second:
            assert first != second
        assert time.monotonic() - began < 20
        with (
            gone_on_with(first),
            pytest.raises(DensePathError, match=f"{first[:8]} was finished, or another process goes on with it"),
            another.parent_runs.running(about()),
        ):
            pass
        one.parent_runs.end(first, "FINISHED", {})


def test_of_two_that_resume_at_once_one_has_it(at: Homes, about: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = left(at("dead"), about(), monkeypatch)
    both, done = Barrier(2), Event()

    def resume(store: Store) -> str:
        store.parent_runs.watch()
        both.wait(30)
        with gone_on_with(run_id):
            try:
                with store.parent_runs.running(about()) as taken:
                    assert done.wait(30)
                    store.parent_runs.end(taken, "FINISHED", {})
                    return taken
            except DensePathError as error:
                done.set()
                return str(error)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(resume, [at("one"), at("another")]))
    assert said == sorted([run_id, f"the pipeline {run_id[:8]} was finished, or another process goes on with it"])
    assert [(each.id, each.status) for each in at("one").parent_runs.all()] == [(run_id, "FINISHED")]


def test_one_that_was_stopped_and_wakes_up_ends_nothing(
    at: Homes, about: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, another = at("one"), at("another")
    silence(monkeypatch, one)
    with one.parent_runs.running(about()) as run_id, another.parent_runs.running(about()) as taken:
        assert taken == run_id
        with pytest.raises(LeaseLostError, match="another took it over"):
            one.parent_runs.end(run_id, "FAILED", {}, "it is late")
        assert states(another) == [(run_id, "RUNNING", "")]
        another.parent_runs.end(taken, "FINISHED", {})


def test_what_was_stopped_elsewhere_can_be_gone_on_with_and_is_not_ours(at: Homes, about: Asked) -> None:
    one, another = at("one"), at("another")
    with one.parent_runs.running(about()) as run_id:
        one.parent_runs.end(run_id, "KILLED", {}, "KeyboardInterrupt: ")
    [found] = another.parent_runs.resumable()
    assert (found.id, found.status, found.is_interrupted) == (run_id, "KILLED", False)
    assert [each.is_interrupted for each in one.parent_runs.resumable()] == [True]
    with another.parent_runs.running(about()) as again:
        assert again == run_id


def test_since_is_when_the_one_began_that_goes_on(at: Homes, about: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    one, another = at("one"), at("another")
    left(one, about(), monkeypatch)
    assert another.parent_runs.since(about().request) == one.parent_runs.all()[0].started
