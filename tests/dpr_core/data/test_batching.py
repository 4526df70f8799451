import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr_core.data.batching import collate, micro_batches
from dpr_core.data.encoding import TokenSequence

sequences = st.builds(
    TokenSequence,
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple),
    response=st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple),
)


def test_a_batch_by_hand() -> None:
    """Two prompts of different lengths; a 0 that is a token looks like the padding and is still predicted."""
    batch = collate([TokenSequence((5, 6), (7, 0)), TokenSequence((8,), (9, 1, 0, 2))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 0, 0], [8, 9, 1, 0, 2]]
    assert batch.predicts.int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert batch.targets.tolist() == [7, 0, 9, 1, 0, 2]


def test_a_packed_batch_by_hand() -> None:
    batch = collate([TokenSequence((5, 6), (7, 0)), TokenSequence((8,), (9, 1, 0, 2))], packed=True)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0, 8, 9, 1, 0, 2]]
    assert batch.predicts.int().tolist() == [[0, 1, 1, 0, 1, 1, 1, 1, 0]]
    assert batch.targets.tolist() == [7, 0, 9, 1, 0, 2]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert batch.to(torch.device("cpu")).positions is not None


@given(st.lists(sequences, min_size=1, max_size=6))
def test_every_prediction_position_stands_right_before_its_target(rows: list[TokenSequence]) -> None:
    batch = collate(rows)
    next_tokens = torch.cat([batch.input_ids[:, 1:], torch.full((len(rows), 1), -1)], dim=1)
    assert next_tokens[batch.predicts].tolist() == batch.targets.tolist()
    assert batch.predicts.sum(dim=1).tolist() == [len(s.response) for s in rows]
    for ids, s in zip(batch.input_ids.tolist(), rows, strict=True):
        assert tuple(ids[: len(s)]) == s.prompt + s.response


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 60))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(in_order)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(1, 60))
def test_packed_micro_batches_hold_every_sequence_once_and_as_many_as_fit(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget, packed=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
    for size, following in zip(sizes, batches[1:], strict=False):
        assert size + lengths[following[0]] > budget


def test_what_is_packed_needs_no_room_for_padding() -> None:
    lengths = [1, 2, 3, 4, 10]
    assert micro_batches(lengths, 20, packed=True) == [[0, 1, 2, 3, 4]]
    assert micro_batches(lengths, 20) == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, [[1], [3], [0], [2]]), (6, [[1, 3], [0], [2]]), (9, [[1, 3, 0], [2]]), (1000, [[1, 3, 0, 2]])],
)
def test_micro_batches_by_hand(budget: int, expected: list[list[int]]) -> None:
    assert micro_batches([3, 1, 10, 2], budget) == expected
