"""Observations of an experiment, the quantities read off them, and means over seeds with Student's t intervals."""

import csv
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from dpr_core.stats import t_interval

BASELINE = "SFT"
"""The policy that every win rate is against."""

EVEN = 50.0
"""Win rate of a policy against itself."""


class Position(NamedTuple):
    """One position of the responses, over the answers that reach it."""

    position: int
    answers: int
    kl_to_sft: float
    """Mean KL to SFT in front of this token, in nats."""
    reward: float
    """Mean token reward."""


@dataclass(frozen=True)
class Observation:
    """One policy on one benchmark in one pipeline. Shares lie between 0 and 1, the win rate in 0-100."""

    point: str
    values: Mapping[str, Any]
    """The fields that set this pipeline apart, the seed left out."""
    seed: int
    sft: str
    """Digest of the SFT artifact. What has it in common with the seed can be compared in pairs."""
    policy: str
    benchmark: str
    prompts: int
    response_tokens: float
    cut_share: float
    accuracy: float | None = None
    win_rate: float | None = None
    """Against SFT; of SFT itself it is 50. None where no verdict could be read."""
    win_rate_interval: tuple[float, float] | None = None
    """Over prompts, within this one run."""
    kl_to_sft: float | None = None
    repetition: float | None = None
    refusals: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the reward, its diagnosis and the training behind this policy."""
    profile: tuple[Position, ...] = ()
    """By position in the response, where the exhibit needs it."""

    @property
    def unit(self) -> tuple[int, str]:
        """Observations of one unit are compared in pairs: same seed, same SFT model."""
        return self.seed, self.sft


def as_json(observations: Sequence[Observation]) -> str:
    """All of them as one JSON document."""
    values = [asdict(each) | {"profile": [at._asdict() for at in each.profile]} for each in observations]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(observations: Sequence[Observation]) -> str:
    """One line each; fields and metrics get a column of their own, profiles are left to the JSON document."""
    fields, metrics = swept(observations), sorted({name for each in observations for name in each.metrics})
    plain = ["prompts", "response_tokens", "cut_share", "accuracy", "win_rate", "kl_to_sft", "repetition", "refusals"]
    head = ["point", *fields, "seed", "sft", "policy", "benchmark", *plain, "win_rate_low", "win_rate_high", *metrics]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for each in observations:
        writer.writerow(
            [
                each.point,
                *(each.values.get(name) for name in fields),
                each.seed,
                each.sft,
                each.policy,
                each.benchmark,
                *(getattr(each, name) for name in plain),
                *(each.win_rate_interval or (None, None)),
                *(each.metrics.get(name) for name in metrics),
            ]
        )
    return text.getvalue()


def swept(observations: Sequence[Observation]) -> list[str]:
    """The fields that differ between pipelines, in the order in which they first appear."""
    return list(dict.fromkeys(name for each in observations for name in each.values))


def cells(observations: Sequence[Observation]) -> list[list[Observation]]:
    """Observations that differ in their seed alone, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[Observation]] = {}
    for each in observations:
        values = json.dumps(dict(each.values), sort_keys=True, default=str)
        groups.setdefault((values, each.policy, each.benchmark), []).append(each)
    return list(groups.values())


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
REPETITION = Quantity("repeated %", "points", lambda each: None if each.repetition is None else 100 * each.repetition)
REFUSALS = Quantity("refusals %", "points", lambda each: None if each.refusals is None else 100 * each.refusals)
KL = Quantity("KL (nats)", "nats", lambda each: each.kl_to_sft, 3)
VALUE_GAP = metric("reward/value_gap_rms", "rms of V_SFT - V_ref")
AUROC = metric("diagnose/credit_auroc", "AUROC of r")
TOP1 = metric("diagnose/credit_top1", "top-1 of r")
AUROC_LOG_SFT = metric("diagnose/credit_log_sft_auroc", "AUROC of log pi_SFT")
TOP1_LOG_SFT = metric("diagnose/credit_log_sft_top1", "top-1 of log pi_SFT")
