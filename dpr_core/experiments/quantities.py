"""What can be read off an observation and averaged over seeds."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dpr_core.experiments.observations import BASELINE, EVEN, Observation, Position
from dpr_core.stats import t_interval


@dataclass(frozen=True)
class Quantity:
    """A number that an observation may have."""

    label: str
    unit: str
    """Of a difference of two of them."""
    read: Callable[[Observation], float | None]
    digits: int = 1


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    interval: tuple[float, float] | None
    """95% interval over seeds, by Student's t; None for fewer than two."""
    seeds: int

    def text(self, digits: int) -> str:
        """The mean, and in brackets its interval."""
        brackets = "" if self.interval is None else " [{:.{d}f}, {:.{d}f}]".format(*self.interval, d=digits)
        return f"{self.mean:.{digits}f}{brackets}"


def estimate(observations: Sequence[Observation], quantity: Quantity) -> Estimate | None:
    """Mean and interval over observations that differ in their seed; None where none of them has the quantity."""
    values = [value for each in observations if (value := quantity.read(each)) is not None]
    return estimate_of(values) if values else None


def estimate_of(values: Sequence[float]) -> Estimate:
    # Exact, so that equal values have that mean and their order does not matter.
    return Estimate(statistics.mean(values), t_interval(values), len(values))


def metric(name: str, label: str, digits: int = 3) -> Quantity:
    """A metric of the artifacts behind a policy."""
    return Quantity(label, label, lambda each: each.metrics.get(name), digits)


def fall(of: Literal["kl_to_sft", "reward"], label: str) -> Quantity:
    """How much lower a mean is in the second half of the positions that at least half of the answers reach."""

    def read(each: Observation) -> float | None:
        most = max((at.answers for at in each.profile), default=0)
        reached = [at for at in sorted(each.profile) if 2 * at.answers >= most]
        half = len(reached) // 2
        if not half:
            return None
        return _mean_over(reached[:half], of) - _mean_over(reached[-half:], of)

    return Quantity(label, "nats a token", read, 4)


def _mean_over(part: Sequence[Position], of: Literal["kl_to_sft", "reward"]) -> float:
    """Over tokens: each position counts by the answers that reach it."""
    return sum(at.answers * (at.kl_to_sft if of == "kl_to_sft" else at.reward) for at in part) / sum(
        at.answers for at in part
    )


def _win_rate(each: Observation) -> float | None:
    return EVEN if each.policy == BASELINE else each.win_rate


WIN_RATE = Quantity("win rate %", "points", _win_rate)
ACCURACY = Quantity("accuracy %", "points", lambda each: None if each.accuracy is None else 100 * each.accuracy)
TOKENS = Quantity("tokens", "tokens", lambda each: each.response_tokens)
CUT = Quantity("cut %", "points", lambda each: 100 * each.cut_share)
KL = Quantity("KL (nats)", "nats", lambda each: each.kl_to_sft, 3)
VALUE_GAP = metric("reward/value_gap_rms", "rms of V_SFT - V_ref")
AUROC = metric("diagnose/credit_auroc", "AUROC of r")
TOP1 = metric("diagnose/credit_top1", "top-1 of r")
AUROC_LOG_SFT = metric("diagnose/credit_log_sft_auroc", "AUROC of log pi_SFT")
TOP1_LOG_SFT = metric("diagnose/credit_log_sft_top1", "top-1 of log pi_SFT")
