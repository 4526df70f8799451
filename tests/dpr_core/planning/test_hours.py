import pytest

from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.errors import UsageError
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.hours import GPUS, Gpu, Sequences, StageWork, drawing, forward, gpu_named, training
from dpr_core.planning.stages import PlanInputs, estimate

TOY = Architecture("llama", 10, 4, 2, 2, 1, 2, 8, 64, False)
"""A layer's matrices: q 4x4, k 4x2, v 4x2, o 4x4, and three of 4x8: 144 weights."""


def test_a_forward_pass_is_counted_by_hand() -> None:
    work = forward(TOY, Sequences(count=3, prompt=4, response=2))
    matrices = 2 * 144 * 2 * 6
    attention = 2 * 4 * 4 * (6 * 6 / 2)
    assert (work.tokens, work.body, work.head) == (18, 3 * (matrices + attention), 3 * 2 * 40 * 2)


def test_learning_is_three_passes_and_what_was_not_saved_a_fourth() -> None:
    sequences = Sequences(1, 4, 2)
    once = forward(TOY, sequences)
    plain, again = training(TOY, sequences, False, False), training(TOY, sequences, True, True)
    assert (plain.body, plain.head) == (3 * once.body, 3 * once.head)
    assert (again.body, again.head) == (4 * once.body, 4 * once.head)


def test_drawing_reads_the_weights_once_for_all_rows_of_a_batch() -> None:
    work = drawing(TOY, Sequences(count=5, prompt=4, response=2), rows=4, steps=3, halved=False)
    weights = 4 * 2 * 144 + 4 * 40
    keys_and_values = 8 * (2 * 2 * 5) * 2 * 5
    assert work.read == 2 * 3 * weights + keys_and_values
    assert work.body == forward(TOY, Sequences(5, 4, 2)).body


def test_hours_follow_from_the_peaks_and_the_share_of_them() -> None:
    gpu = Gpu("toy", 1, bfloat16_teraflops=100, float32_teraflops=10, gigabytes_per_second=1000)
    work = StageWork(body=100e12 * 1800, head=10e12 * 900, read=1000e9 * 900)
    assert work.hours(gpu, "bfloat16", 1.0) == pytest.approx((1800 + 900 + 900) / 3600)
    assert work.hours(gpu, "bfloat16", 0.5) == pytest.approx(2 * (1800 + 900 + 900) / 3600)
    assert work.hours(gpu, "float32", 1.0) == pytest.approx((18000 + 900 + 900) / 3600)
    # TensorFloat-32 is half as fast as bfloat16.
    assert work.hours(gpu, "bfloat16", 1.0, tf32_head=True) == pytest.approx((1800 + 180 + 900) / 3600)
    assert work.hours(gpu, "float32", 1.0, tf32_head=True) == work.hours(gpu, "float32", 1.0)


def test_one_update_in_float32_saves_the_policy_a_pass_of_each_rollout_that_is_learned_from() -> None:
    def body(dtype: str, **changes: object) -> float:
        config = ReinforceConfig.model_validate({"rollout_batch_size": 8, "iterations": 3, **changes})
        return estimate(config, PlanInputs(TOY, dtype, "sdpa", 8, config, 4, 2)).work.body

    once = forward(TOY, Sequences(8, 4, 2)).body
    assert body("float32", batch_size=4) - body("float32", batch_size=8) == 3 * once
    assert body("bfloat16", batch_size=4) == body("bfloat16", batch_size=8)
    assert body("float32", rollouts={"type": "vllm"}) == body("float32", batch_size=4)


def test_an_unknown_gpu_is_refused_with_the_table() -> None:
    assert gpu_named("H100") is GPUS["h100"]
    with pytest.raises(UsageError, match=r"no GPU 'h10'.*did you mean h100.*4090"):
        gpu_named("h10")
