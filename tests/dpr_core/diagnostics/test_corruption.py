from collections import Counter

import pytest
import torch

from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics.corruption import corrupt, detection
from dpr_core.masking import response_mask

END = 0


def rows(*responses: tuple[int, ...]) -> list[TokenSequence]:
    return [TokenSequence((9, 8), response) for response in responses]


def test_one_token_is_replaced_and_the_rest_stays() -> None:
    sequences = rows((1, 2, 3, END), (1, 4, 3, END), (5, 2, 6, END)) * 20
    made = corrupt(sequences, seed=0)
    assert len(made) == len(sequences)
    for before, after in zip(sequences, made, strict=True):
        assert after.sequence.prompt == before.prompt
        changed = [
            t for t, pair in enumerate(zip(before.response, after.sequence.response, strict=True)) if len({*pair}) > 1
        ]
        assert changed == [after.position]
        assert after.sequence.response[-1] == END
        assert END not in after.sequence.response[:-1]


def test_a_slip_was_seen_between_the_same_neighbours() -> None:
    """In + a = v, the sums 7 and 8 stand for each other; the signs 1 and 2 do not, though both stand between digits."""
    chains = rows((5, 1, 6, 2, 7, 1, 6, 2, 8, END), (5, 1, 6, 2, 8, 1, 6, 2, 7, END)) * 50
    slips = Counter((c.position, c.sequence.response[c.position]) for c in corrupt(chains, seed=1))
    assert set(slips) == {(4, 7), (4, 8), (8, 7), (8, 8)}
    assert min(slips.values()) > 10


def test_where_neighbours_differ_fewer_of_them_have_to_be_the_same() -> None:
    [first, second] = corrupt(rows((1, 2, END), (1, 3, 4, END)), seed=0)
    # Only the 1 stands in front of both: 2 may become 3, and 3 may become 2.
    assert first.sequence.response == (1, 3, END)
    assert second.sequence.response == (1, 2, 4, END)
    lone = corrupt(rows((1, 2, END)), seed=0)
    assert lone[0].sequence.response in {(2, 2, END), (1, 1, END)}


def test_responses_without_anything_to_replace_are_left_out() -> None:
    assert corrupt(rows((END,), (1, END)), seed=0) == []
    assert len(corrupt(rows((END,), (1, END), (2, END)), seed=0)) == 2


def test_the_seed_decides() -> None:
    sequences = rows((1, 2, 3, 4, END), (4, 3, 2, 1, END), (2, 4, 1, 3, END)) * 5
    assert corrupt(sequences, 3) == corrupt(sequences, 3)
    assert corrupt(sequences, 3) != corrupt(sequences, 4)


def test_detection_by_hand() -> None:
    mask = response_mask([3, 2])
    scores = torch.tensor([[0.1, -1.0, 0.3], [0.0, -0.5, -99.0]])
    found = detection(scores, mask, [1, 0])
    # -1 lies below 0.1, 0.3 and -0.5; 0 lies below 0.1 and 0.3. The first response's lowest is the corrupted one.
    assert found.auroc == pytest.approx(5 / 6)
    assert found.top1 == 0.5


def test_scores_that_are_all_the_same_find_nothing() -> None:
    found = detection(torch.zeros(2, 4), response_mask([4, 2]), [0, 1])
    assert found == (0.5, pytest.approx((1 / 4 + 1 / 2) / 2))
