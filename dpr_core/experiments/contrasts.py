"""Primary contrasts: written down in a file before the runs; paired by seed, Student's t, Holm over the contrasts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Config, FromList, Line, Name, Temperature, parse, read_yaml
from dpr_core.errors import UsageError
from dpr_core.experiments.measured import Answers, Arm, seeds_of
from dpr_core.stats import holm, mean_and_error, t_interval, t_test

UNEQUAL = 0.1
"""A measure that two arms should have in common may differ by this share of it."""

Seeds = Annotated[tuple[int, ...], FromList, Field(min_length=2)]


class Backbone(Config):
    """A pretrained model, and the seeds that count."""

    says: Line
    """What exactly the weights are."""

    seeds: Seeds


class ChosenOn(Config):
    """Where the setting of DPR was chosen."""

    seed: int
    benchmark: Name


class Setting(Config):
    """The one setting of DPR."""

    chosen_on: ChosenOn
    reinforce: dict[str, Any] | None = None
    """Fields of its section by their dotted names; null: not chosen yet."""


class Contrast(Config):
    """One arm minus another."""

    name: Name
    says: Line
    """In words."""

    first: Name = "DPR"
    second: Name
    matched: Name | None = None
    """A measure of the answers in which both arms were made equal; it is shown how well that came out."""


class Contrasts(Config):
    """What is asked, of what, and how it is decided."""

    version: Literal[1] = 1
    task: Name
    benchmark: Name
    measure: Name
    temperature: Temperature
    """Of the first arm; the second may be matched by another."""

    level: float = Field(0.05, gt=0, lt=1)
    backbones: dict[Name, Backbone] = Field(min_length=1)
    setting: Setting
    primary: Annotated[tuple[Contrast, ...], FromList, Field(min_length=1)]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [each.name for each in self.primary]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two contrasts are called {twice[0]}")
        if equal := [each.name for each in self.primary if each.first == each.second]:
            raise ValueError(f"{equal[0]}: an arm is compared with itself")
        for name, backbone in self.backbones.items():
            if len(set(backbone.seeds)) < len(backbone.seeds):
                raise ValueError(f"{name}: a seed is named twice, and would count twice")
            if self.setting.chosen_on.seed in backbone.seeds:
                raise ValueError(f"{name}: seed {self.setting.chosen_on.seed} chose the setting, and cannot count")
        return self


def load(file: Path) -> Contrasts:
    """The contrasts in a YAML file."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    return parse(Contrasts, read_yaml(text, file.name), file.name)


@dataclass(frozen=True)
class Outcome:
    """A contrast on one backbone, as far as its seeds have been run."""

    contrast: Contrast
    backbone: str
    differences: Mapping[int, float]
    """By seed, in points."""
    matches: Mapping[int, tuple[float, float]]
    """What was made equal, by seed: what was to be reached and what was, by the matching's own measure if known."""
    strengths: Mapping[int, float]
    """By what the second arm was made equal: its temperature, or how far it is extrapolated."""
    unmoved: tuple[int, ...]
    """Seeds on which the first arm kept nothing of its training."""
    missing: tuple[int, ...]
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    adjusted: float | None = None
    """By Holm, once every contrast of this backbone has a p-value."""

    @property
    def unequal(self) -> tuple[int, ...]:
        """Seeds whose arms came out so unequal in it that the contrast is not the one that was asked for."""
        return tuple(seed for seed, both in self.matches.items() if abs(both[0] - both[1]) > UNEQUAL * max(both))

    def verdict(self, level: float) -> Literal["ahead", "behind", "no difference seen", "not yet run", "unfinished"]:
        """Of the first arm, by the adjusted p-value."""
        if self.effect is None or self.adjusted is None:
            return "unfinished" if self.differences else "not yet run"
        if self.missing:
            return "unfinished"
        if self.adjusted >= level:
            return "no difference seen"
        return "ahead" if self.effect > 0 else "behind"


def outcomes(contrasts: Contrasts, arms: Sequence[Arm]) -> list[Outcome]:
    """Every contrast on every backbone."""
    found = []
    for backbone in contrasts.backbones:
        of_backbone = [_outcome(contrasts, each, backbone, arms) for each in contrasts.primary]
        p_values = [each.p_value for each in of_backbone if each.p_value is not None]
        if len(p_values) == len(of_backbone):
            adjusted = holm(p_values)
            of_backbone = [replace(each, adjusted=p) for each, p in zip(of_backbone, adjusted, strict=True)]
        found += of_backbone
    return found


def _outcome(contrasts: Contrasts, contrast: Contrast, backbone: str, arms: Sequence[Arm]) -> Outcome:
    planned = contrasts.backbones[backbone].seeds
    first, second = (
        {seed: arm for seed, arm in seeds_of(arms, backbone, contrasts.task, name).items() if seed in planned}
        for name in (contrast.first, contrast.second)
    )
    differences: dict[int, float] = {}
    matches: dict[int, tuple[float, float]] = {}
    strengths: dict[int, float] = {}
    for seed in sorted(first.keys() & second.keys()):
        check_setting(contrasts.setting, first[seed])
        mine, other = _paired(contrasts, first[seed], second[seed])
        if (a := mine.mean(contrasts.measure)) is not None and (b := other.mean(contrasts.measure)) is not None:
            differences[seed] = 100 * (a - b)
        found = {name: other.measures.get(f"match/{name}") for name in ("target", "reached", "temperature", "k")}
        # Means over all answers are estimated otherwise in an arm that is matched than in one that is not.
        both = [found["target"], found["reached"]]
        if contrast.matched and None in both:
            both = [mine.mean(contrast.matched), other.mean(contrast.matched)]
        if (a := both[0]) is not None and (b := both[1]) is not None:
            matches[seed] = a, b
        strength = found["temperature"] if found["k"] is None else found["k"]
        if strength is not None:
            strengths[seed] = strength
    missing = tuple(seed for seed in planned if seed not in differences)
    unmoved = tuple(seed for seed in differences if first[seed].run and not first[seed].iterations)
    outcome = Outcome(contrast, backbone, differences, matches, strengths, unmoved, missing)
    if len(differences) < 2:
        return outcome
    values = list(differences.values())
    mean, error = mean_and_error(values)
    return replace(outcome, effect=mean, interval=t_interval(values), p_value=t_test(mean, error, len(values)))


def _paired(contrasts: Contrasts, first: Arm, second: Arm) -> tuple[Answers, Answers]:
    """The answers of two arms, once they may be compared."""
    both = []
    for arm in (first, second):
        if contrasts.benchmark not in arm.benchmarks:
            raise UsageError(f"{arm.file} has no answers to {contrasts.benchmark}")
        both.append(arm.benchmarks[contrasts.benchmark])
    mine, other = both
    if mine.questions != other.questions or first.digests.get("sft") != second.digests.get("sft"):
        raise UsageError(f"{first.file} and {second.file} are of other questions or another SFT run: make one again")
    if mine.temperature != contrasts.temperature:
        raise UsageError(f"{first.file} was drawn at {mine.temperature:g}, not at {contrasts.temperature:g}")
    return mine, other


def check_setting(setting: Setting, arm: Arm) -> None:
    """Refuse a run of DPR at another setting than the one that was chosen."""
    from dpr_core.config.reinforce import ReinforceConfig

    if setting.reinforce is None or "reinforce" not in arm.settings:
        return
    values = parse(ReinforceConfig, arm.settings["reinforce"], arm.file).model_dump(mode="json")
    for name, chosen in setting.reinforce.items():
        found: Any = values
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found != chosen:
            raise UsageError(f"{arm.file}: reinforce.{name} is {found}, but {chosen} was chosen")
