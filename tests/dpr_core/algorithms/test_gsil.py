import math
from collections.abc import Callable

import pytest
import torch

from dpr_core.algorithms import self_play_loss
from dpr_core.algorithms.gsil import LOSSES
from dpr_core.algorithms.pair_loss import losses_and_slopes
from dpr_core.config.base import parse
from dpr_core.config.imitation import GsilConfig, SelfPlayConfig
from dpr_core.errors import UsageError


def _sigmoid(u: float) -> float:
    return 1 / (1 + math.exp(-u))


BY_HAND: dict[str, Callable[[float, float], float]] = {
    "bernoulli": lambda real, own: math.log(1 + math.exp(-real)) + math.log(1 + math.exp(own)),
    "brier": lambda real, own: (1 - _sigmoid(real)) ** 2 + _sigmoid(own) ** 2,
    "hinge": lambda real, own: max(0.0, 1 - real) + max(0.0, 1 + own),
    "kliep": lambda real, own: math.exp(own) - real,
    "lsif": lambda real, own: 0.5 * math.exp(own) ** 2 - math.exp(real),
}


def _loss(name: str, demonstration: float, generated: float, **settings: float) -> float:
    method = self_play_loss(GsilConfig.model_validate({"loss": name, **settings}))
    both = (torch.tensor([value], dtype=torch.float64) for value in (demonstration, generated))
    return float(method(*both)[0])


def test_every_loss_that_can_be_set_is_there() -> None:
    assert set(LOSSES) == set(BY_HAND) == set(GsilConfig.model_fields["loss"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("demonstration", "generated"), [(0.0, 0.0), (30.0, -20.0), (-150.0, 40.0), (-400.0, -350.0)])
def test_each_loss_against_its_formula(name: str, demonstration: float, generated: float) -> None:
    u = [0.01 * d + 2 for d in (demonstration, generated)]
    assert _loss(name, demonstration, generated) == pytest.approx(BY_HAND[name](*u), rel=1e-12)
    u = [0.5 * d - 1 for d in (demonstration / 10, generated / 10)]
    found = _loss(name, demonstration / 10, generated / 10, scale=0.5, shift=-1)
    assert found == pytest.approx(BY_HAND[name](*u), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bernoulli", 2.253856), ("brier", 0.790013), ("hinge", 3.0), ("kliep", 5.389056), ("lsif", 19.910019)],
)
def test_literals_at_the_start_where_u_is_the_shift(name: str, expected: float) -> None:
    """u = 2: log(1 + e^-2) + log(1 + e^2); 0.119203^2 + 0.880797^2; 0 + 3; e^2 - 2; e^4 / 2 - e^2."""
    assert _loss(name, 0, 0) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_slopes_are_finite_however_far_the_policy_is_from_its_opponent(name: str) -> None:
    """Summed log-ratios of 10,000 nats make u 102, whose exponential no float32 holds."""
    method = self_play_loss(GsilConfig.model_validate({"loss": name}))
    losses, slopes = losses_and_slopes(method, torch.tensor([[1e4, -1e4], [1e4, -1e4]]))
    assert losses.isfinite().all()
    assert slopes.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_minimised_where_the_ratio_is_that_of_the_densities(name: str) -> None:
    """Of two outcomes, demonstrations show the first in 0.6 of cases and the opponent in 0.2: a ratio of 3. At the
    best u, sigmoid(u) or e^u is what the loss estimates of it; the hinge only tells the sign of log 3."""
    estimate = {"bernoulli": math.log(3), "brier": math.log(3), "kliep": math.log(3), "lsif": math.log(3), "hinge": 1.0}
    grid = [i / 1000 for i in range(-3000, 3001)]
    method = LOSSES[name]
    u, half = torch.tensor(grid, dtype=torch.float64), torch.zeros(len(grid), dtype=torch.float64)
    # The loss is a sum of a part of each kind of response; what the other part contributes is taken off again.
    expected = 0.6 * (method(u, half) - method(half, half)) + 0.2 * (method(half, u) - method(half, half))
    assert grid[int(expected.argmin())] == pytest.approx(estimate[name], abs=2e-3)


def test_settings() -> None:
    settings = parse(SelfPlayConfig, {"method": {"type": "gsil"}}, "x")
    assert settings.method == GsilConfig(loss="bernoulli", scale=0.01, shift=2)
    with pytest.raises(UsageError, match=r"method\.loss"):
        parse(SelfPlayConfig, {"method": {"type": "gsil", "loss": "square"}}, "x")
