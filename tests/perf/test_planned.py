import pytest

from dpr_core.planning.architecture import architecture_from_config
from dpr_core.planning.hours import Gpu, StageWork
from perf.device_limits import Limits
from perf.planned import compared, least_seconds, scoring
from perf.sizes import SIZES, configuration, ragged

LIMITS = Limits(operations=2e12, head=1e12, read=1e9)


def test_the_time_is_the_planners_at_full_utilisation() -> None:
    work = StageWork(body=3e12, head=1e12, read=5e8)
    # A GPU whose head, in TensorFloat-32, is half as fast as the rest.
    gpu = Gpu("made up", 1, 2, 1, 1)
    assert least_seconds(work, LIMITS) == pytest.approx(3600 * work.hours(gpu, "bfloat16", 1.0))


def test_scoring_is_a_forward_pass_under_each_of_two_models() -> None:
    work, tokens = scoring(architecture_from_config(configuration("toy")), {"sequences": 3}, "toy", None)
    sequences, shape = ragged(3, "toy"), SIZES["toy"]
    width, wider = shape["hidden_size"], shape["intermediate_size"]
    assert tokens == sum(len(s.response) for s in sequences)
    assert work.head == 2 * tokens * 2 * width * shape["vocab_size"]
    matrices = 2 * (4 * width**2 + 3 * width * wider) * sum(map(len, sequences))
    assert work.body == 2 * (matrices + sum(2 * width * len(s) ** 2 for s in sequences))


def test_a_row_has_what_ours_reached_and_for_rollouts_the_shares() -> None:
    rows = [
        {"case": "toy_8", "program": program, "tokens_per_second": 1.0, "seconds_per_token": [1e-3, 2e-3, 9e-3]}
        for program in ("dense-path bfloat16", "generate bfloat16")
    ]
    (found,) = compared("real_rollouts_8", {"rows": rows, "settings": {"prompts": 9, "rows": 8}}, {"bfloat16": LIMITS})
    assert found["program"] == "dense-path bfloat16"
    assert found["utilisation"] == pytest.approx(found["planned_seconds"] / found["measured_seconds"])
    assert found["share_of_bandwidth"] + found["share_of_operations"] == pytest.approx(found["utilisation"])
