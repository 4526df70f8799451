"""Made-up observations: what the claims are judged on in these tests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from dpr_core.experiments.observations import EVEN, Observation

Runs = Callable[..., list[Observation]]


def _runs(
    policy: str, win_rates: Sequence[float | None], values: Mapping[str, Any] | None = None, **more: Any
) -> list[Observation]:
    """One observation a seed. A sequence among `more` holds one value a seed."""
    found = []
    for seed, win_rate in enumerate(win_rates):
        own = {name: value[seed] if isinstance(value, list) else value for name, value in more.items()}
        defaults = {"benchmark": "lab", "prompts": 600, "response_tokens": 40.0, "cut_share": 0.0, "sft": f"sft{seed}"}
        values_ = dict(values or {})
        point = " ".join([*(f"{k}={v}" for k, v in values_.items()), f"seed={seed}"])
        found.append(
            Observation(point=point, values=values_, seed=seed, policy=policy, win_rate=win_rate, **{**defaults, **own})
        )
    return found


@pytest.fixture(scope="session")
def runs() -> Runs:
    """`runs("DPR", [61.0, 63.0], {"reward.reference": 0.5}, accuracy=[0.8, 0.9])`: a policy in two seeds."""
    return _runs


@pytest.fixture(scope="session")
def sft() -> Callable[..., list[Observation]]:
    """`sft(2, accuracy=0.6)`: the baseline in two seeds."""
    return lambda seeds, values=None, **more: _runs("SFT", [EVEN] * seeds, values, **more)
