"""What was seen of one policy on one benchmark, in one of the pipelines of an experiment."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

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
    """Shares lie between 0 and 1, the win rate in 0-100."""

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
    plain = ["prompts", "response_tokens", "cut_share", "accuracy", "win_rate", "kl_to_sft"]
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
