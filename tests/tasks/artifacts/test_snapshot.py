"""A snapshot says of the store what the store says itself, and keeps to its moment."""

from collections.abc import Callable

from tasks.artifacts.store import Store
from tasks.run_stage import Outcome

Make = Callable[..., Outcome]


def test_it_answers_as_the_store_does(store: Store, make: Make) -> None:
    first = make("number", value=1)
    again = make("number", value=1, force=True)
    double = make("double", {"number": first.id})
    snapshot = store.snapshot()
    for made in (first, again, double):
        assert snapshot.record(made.id) == store.record(made.id)
        assert snapshot.problems(made.id) == []
    assert snapshot.record(first.id[:8]) is None
    key = store.record(first.id).key
    assert [record.id for record in snapshot.finished(key)] == [first.id, again.id]
    assert snapshot.finished(key) == store.finished(key)
    assert snapshot.named("number", "number", None) == store.records("number", "number")
    assert [record.id for record in snapshot.named("number", "number", None)] == [again.id, first.id]
    assert snapshot.named("number", "double", None) == store.records("number", "double") == []
    assert snapshot.digests == store.digests([first.id, again.id, double.id])


def test_what_comes_later_is_not_in_it_but_damage_is_seen(store: Store, make: Make) -> None:
    first = make("number", value=1)
    snapshot = store.snapshot()
    later = make("number", value=2)
    assert snapshot.record(later.id) is None
    (store.fetch(first.id).path / "weights.bin").unlink()
    assert snapshot.problems(first.id) == ["weights.bin: missing"]


def test_digests_of_nothing_ask_nothing(store: Store) -> None:
    assert store.digests([]) == {}
    assert store.records("number", "it's") == []
