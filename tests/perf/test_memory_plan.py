import pytest

from perf.memory_plan import Shape, compared, markdown

SMALL = Shape(width=256, layers=3, vocabulary=8192, tokens=512, rows=16, prompt=32, response=32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype", "checkpointing"),
    [
        ("sft", "float32", False),
        ("sft", "float32", True),
        ("sft", "bfloat16", False),
        ("score", "float32", False),
        ("score", "bfloat16", False),
        ("rollout", "float32", False),
        ("rollout", "bfloat16", False),
        ("reinforce", "float32", False),
    ],
)
def test_what_is_planned_is_what_is_measured(case: str, dtype: str, checkpointing: bool) -> None:
    _compare(case, SMALL, dtype, checkpointing)


def test_the_gradient_of_a_tied_head_waits_for_that_of_the_embedding() -> None:
    shape = Shape(width=256, layers=3, vocabulary=16384, tokens=256, rows=16, prompt=32, response=32, tied=True)
    _compare("sft", shape, "float32", checkpointing=True)


def test_slots_that_have_grown_to_long_responses_are_counted() -> None:
    shape = Shape(width=256, layers=3, vocabulary=512, tokens=512, rows=16, prompt=8, response=120)
    _compare("rollout", shape, "float32", checkpointing=False)


def _compare(case: str, shape: Shape, dtype: str, checkpointing: bool) -> None:
    row = compared(case, shape, dtype, checkpointing)
    assert row["planned_lasting"] == pytest.approx(row["measured_lasting"], rel=0.001)
    assert row["ratio_beyond"] == pytest.approx(1, abs=0.15)
    assert row["ratio"] == pytest.approx(1, abs=0.15)
    assert f"| {row['ratio_beyond']:.2f} | {row['ratio']:.2f} |" in markdown([row])
