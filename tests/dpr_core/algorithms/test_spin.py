import math

import pytest
import torch

from dpr_core.algorithms import self_play_loss
from dpr_core.config.base import parse
from dpr_core.config.imitation import SelfPlayConfig, SpinConfig


def _spin(beta: float, demonstration: float, generated: float) -> float:
    return float(self_play_loss(SpinConfig(beta=beta))(torch.tensor([demonstration]), torch.tensor([generated]))[0])


def test_against_itself_the_loss_is_log_2() -> None:
    assert _spin(0.1, 0, 0) == pytest.approx(math.log(2))
    assert _spin(0.1, -4, -4) == pytest.approx(math.log(2)), "only the difference counts"


def test_literals() -> None:
    """-log sigmoid(0.1 (12 - 2)) = log(1 + e^-1), and the other way round log(1 + e)."""
    assert _spin(0.1, 12, 2) == pytest.approx(0.313262, abs=1e-6)
    assert _spin(0.1, 2, 12) == pytest.approx(1.313262, abs=1e-6)
    assert _spin(1.0, 2, 12) == pytest.approx(10.0000454, abs=1e-6)


def test_a_hopeless_pair_has_a_finite_loss() -> None:
    assert _spin(1.0, -1000, 1000) == 2000


def test_settings_choose_it_with_or_without_their_type() -> None:
    for method in ({"beta": 0.2}, {"type": "spin", "beta": 0.2}):
        settings = parse(SelfPlayConfig, {"method": method}, "x")
        assert settings.method == SpinConfig(beta=0.2)
    assert SelfPlayConfig().method == SpinConfig(beta=0.1)
