import pytest

from benchmarks.memory_plan import Shape, compared, markdown

SMALL = Shape(width=256, layers=3, vocabulary=8192, tokens=512, rows=16, prompt=32, response=32)


@pytest.mark.parametrize(
    ("case", "dtype", "checkpointing"),
    [
        ("sft", "float32", False),
        ("sft", "float32", True),
        ("sft", "bfloat16", False),
        ("score", "float32", False),
        ("score", "bfloat16", False),
        ("rollout", "float32", False),
        ("reinforce", "float32", False),
    ],
)
def test_what_is_planned_is_what_is_measured(case: str, dtype: str, checkpointing: bool) -> None:
    row = compared(case, SMALL, dtype, checkpointing)
    assert row["planned_lasting"] == pytest.approx(row["measured_lasting"], rel=0.001)
    assert row["ratio_beyond"] == pytest.approx(1, abs=0.15)
    assert row["ratio"] == pytest.approx(1, abs=0.15)
    assert f"| {row['ratio_beyond']:.2f} | {row['ratio']:.2f} |" in markdown([row])
