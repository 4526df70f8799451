import pytest

from dpr_core.algorithms.kl_control import KLControl, kl_control
from dpr_core.config.reinforce import KLLinearConfig, KLTargetConfig, ReinforcePlusPlusConfig


def _weights(control: KLControl, kls: list[float]) -> list[float]:
    weights = [control.weight]
    for kl in kls:
        control.update(kl)
        weights.append(control.weight)
    return weights


def test_without_a_schedule_the_weight_stays() -> None:
    assert _weights(kl_control(0.1, None, 3), [0.0, 9.0]) == [0.1, 0.1, 0.1]


@pytest.mark.parametrize(("last", "expected"), [(0.5, [0.1, 0.3, 0.5, 0.5]), (0.0, [0.1, 0.05, 0.0, 0.0])])
def test_a_line_from_the_first_iteration_to_the_last_and_no_further(last: float, expected: list[float]) -> None:
    control = kl_control(0.1, KLLinearConfig(final_weight=last), 3)
    assert _weights(control, [7.0, 7.0, 7.0]) == pytest.approx(expected)


def test_a_line_of_one_iteration_is_its_beginning() -> None:
    assert kl_control(0.1, KLLinearConfig(final_weight=0.5), 1).weight == 0.1


def test_the_proportional_controller_by_hand() -> None:
    """Errors 0.1, 1 (clamped to 0.2), -0.05 and -1.5, which a noisy estimate below 0 gives (clamped to -0.2)."""
    control = kl_control(1.0, KLTargetConfig(sequence_kl=2.0, gain=0.2), 9)
    expected = [1.0, 1.1, 1.1 * 1.2, 1.1 * 1.2 * 0.95, 1.1 * 1.2 * 0.95 * 0.8]
    assert _weights(control, [2.2, 4.0, 1.9, -1.0]) == pytest.approx(expected)


def test_the_target_is_held_where_kl_answers_to_the_weight() -> None:
    """A toy policy whose KL is 1 / weight: the controller finds weight 2 for a target of 0.5, from either side."""
    for first in (0.1, 40.0):
        control = kl_control(first, KLTargetConfig(sequence_kl=0.5), 100)
        for _ in range(100):
            control.update(1 / control.weight)
        assert control.weight == pytest.approx(2, rel=1e-3)


def test_a_controller_that_could_never_move_its_weight_is_refused() -> None:
    """It multiplies. The first KL is 0, so with a gain of 1 the weight would be 0 from the second iteration on."""
    with pytest.raises(ValueError, match="kl_weight, which must be above 0"):
        ReinforcePlusPlusConfig(kl_weight=0.0, kl_schedule=KLTargetConfig(sequence_kl=0.5))
    with pytest.raises(ValueError, match="less than 1"):
        KLTargetConfig(sequence_kl=0.5, gain=1.0)
    assert ReinforcePlusPlusConfig(kl_weight=0.0, kl_schedule=KLLinearConfig(final_weight=0.1)).kl_weight == 0
