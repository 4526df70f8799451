import pytest

from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.training.schedule import iterations, prompt_batches


@pytest.mark.parametrize(
    ("prompts", "changes", "expected"),
    [
        (100_000, {"rollout_batch_size": 1024}, 98),
        (8, {"rollout_batch_size": 8}, 1),
        (9, {"rollout_batch_size": 8}, 2),
        (3, {"rollout_batch_size": 8}, 1),
        (1000, {"rollout_batch_size": 8, "iterations": 5}, 5),
    ],
)
def test_one_pass_over_the_prompts_unless_told_otherwise(prompts: int, changes: dict[str, int], expected: int) -> None:
    assert iterations(prompts, ReinforceConfig(**changes)) == expected


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (4, 10), (6, 3)])
def test_every_pass_holds_every_prompt_once_in_a_fresh_order(count: int, batch: int) -> None:
    prompts = [(i,) for i in range(count)]
    stream = prompt_batches(prompts, ReinforceConfig(rollout_batch_size=batch))
    drawn = [next(stream) for _ in range(20)]
    assert {len(rows) for rows in drawn} == {batch}
    flat = [prompt for rows in drawn for prompt in rows]
    passes = [flat[i : i + count] for i in range(0, len(flat) - count + 1, count)]
    assert all(sorted(rows) == prompts for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 1
    again = prompt_batches(prompts, ReinforceConfig(rollout_batch_size=batch))
    assert [next(again) for _ in range(20)] == drawn
    other = prompt_batches(prompts, ReinforceConfig(rollout_batch_size=batch, seed=1))
    assert [next(other) for _ in range(20)] != drawn
