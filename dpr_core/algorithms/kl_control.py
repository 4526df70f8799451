"""KL control: the weight of the KL to SFT as a constant, on a linear schedule, or steered to a target."""

from typing import Protocol

from dpr_core.config.reinforce import KLLinearConfig, KLTargetConfig
from dpr_core.state import State


class KLControl(Protocol):
    weight: float
    """For the coming iteration."""

    def update(self, sequence_kl: float) -> None:
        """Go on to the next iteration; `sequence_kl` was measured in this one."""

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...


class Constant:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def update(self, sequence_kl: float) -> None:
        pass

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        pass


class Linear:
    """Along a line from the first iteration's weight to the last one's, and no further."""

    def __init__(self, first: float, settings: KLLinearConfig, iterations: int) -> None:
        self.weight = first
        self._first, self._last = first, settings.final_weight
        self._done, self._steps = 0, max(1, iterations - 1)

    def update(self, sequence_kl: float) -> None:
        self._done = min(self._done + 1, self._steps)
        self.weight = self._first + (self._last - self._first) * self._done / self._steps

    def state(self) -> State:
        return {"weight": self.weight, "done": self._done}

    def load_state(self, state: State) -> None:
        self.weight, self._done = state["weight"], state["done"]


class Target:
    """Proportional control (Ziegler et al., 2019): weight *= 1 + clamp(KL / target - 1, -gain, gain)."""

    def __init__(self, first: float, settings: KLTargetConfig) -> None:
        self.weight = first
        self._target, self._gain = settings.sequence_kl, settings.gain

    def update(self, sequence_kl: float) -> None:
        error = sequence_kl / self._target - 1
        self.weight *= 1 + min(self._gain, max(-self._gain, error))

    def state(self) -> State:
        return {"weight": self.weight}

    def load_state(self, state: State) -> None:
        self.weight = state["weight"]


def kl_control(weight: float, schedule: KLLinearConfig | KLTargetConfig | None, iterations: int) -> KLControl:
    """The controller that a method's settings ask for."""
    if schedule is None:
        return Constant(weight)
    if schedule.type == "linear":
        return Linear(weight, schedule, iterations)
    return Target(weight, schedule)
