"""Measured arms: what one policy did on one seed, as a small JSON file that outlives the store it was measured in."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from dpr_core.config.base import Config
from dpr_core.errors import UsageError

ByPrompt = str | list[float | None]
"""A value for each prompt, in the order of the benchmark: digits where all are 0 or 1, numbers otherwise."""


class Answers(Config):
    """The answers of an arm to one benchmark."""

    temperature: float
    prompts: int
    questions: str
    """Hash of what was asked, in order: only answers to the same questions are paired."""
    measures: dict[str, float]
    """Means over the prompts, as the stage stored them."""
    by_prompt: dict[str, ByPrompt] = Field({})
    """`right` where results can be checked, and every gold measure."""
    primary: str = ""
    """The measure that the benchmark is about."""
    seconds: float | None = None

    def values(self, measure: str) -> list[float | None]:
        """A value for each prompt; empty where this was not measured."""
        found = self.by_prompt.get(measure, [])
        return [float(digit) for digit in found] if isinstance(found, str) else list(found)

    def mean(self, measure: str) -> float | None:
        """Of `right`; of a gold measure as the stage pooled it; or what the stage stored under any other name."""
        known = [value for value in self.values(measure) if value is not None]
        names = (f"gold/{measure}", f"answer/{measure}", f"answers/{measure}", measure)
        stored = next((self.measures[name] for name in names if name in self.measures), None)
        return sum(known) / len(known) if known and (stored is None or measure == "right") else stored


class Arm(Config):
    """One policy of one pipeline run."""

    version: Literal[1] = 1
    backbone: str
    backbone_says: str = ""
    """What exactly the weights are."""
    task: str
    arm: str
    variant: str = ""
    """How the whole run differs from the recipe, in a word."""
    seed: int
    recipe: str
    changes: dict[str, Any] = Field({})
    """Settings of the pipeline that differ from those of the recipe of its name."""
    settings: dict[str, Any] = Field({})
    """Of the stages behind the arm, without those at their defaults."""
    digests: dict[str, str] = Field({})
    data: dict[str, str] = Field({})
    """Hashes of the contents of demonstrations and benchmarks."""
    results: dict[str, float] = Field({})
    """Of the stages behind the arm, and of the diagnosis of its reward."""
    training: dict[str, dict[str, list[float | None]]] = Field({})
    """`rollout` an iteration and `train` a step, each with its steps."""
    seconds: dict[str, float] = Field({})
    benchmarks: dict[str, Answers] = Field({}, min_length=1)
    started: str = ""

    @property
    def name(self) -> str:
        """The arm with its variant."""
        return f"{self.arm} {self.variant}".strip()

    @property
    def policy(self) -> str:
        """The type of the policy that answered."""
        return str(self._policy.get("type", "as_trained"))

    @property
    def kept_at(self) -> float:
        """The KL at which a policy was to be kept on its way."""
        return float(self._policy["kl"])

    @property
    def reached_its_kl(self) -> bool:
        """False for what stands in for a policy that was to be kept at a KL to which its run never came."""
        return all(each.measures.get("answer/kept_reached", 1) for each in self.benchmarks.values())

    @property
    def run(self) -> str:
        """The digest of the REINFORCE run behind it, if there is one."""
        return self.digests.get("reinforce", "")

    @property
    def iterations(self) -> int:
        """Of training that are in the policy: those up to where a guard went back to, or all."""
        kept = self.results.get("guard/kept_iteration")
        done = len({at for at in self.training.get("train", {}).get("step", []) if at is not None})
        return done if kept is None else int(kept) - 1

    @property
    def cost(self) -> float | None:
        """Seconds of training beyond the SFT run that all arms share, the recovery of a reward with it; of SFT, its
        own."""
        for stage in ("reinforce", "self_play", "continued_sft"):
            if stage in self.seconds:
                return self.seconds[stage] + (self.seconds.get("reward", 0.0) if stage == "reinforce" else 0.0)
        return self.seconds.get("sft") if self.arm == "SFT" else 0.0

    @property
    def answered(self) -> str:
        """The digests of its answers."""
        found = [digest for name, digest in sorted(self.digests.items()) if name.startswith("answers ")]
        return " ".join(found) or self.file

    @property
    def _policy(self) -> Mapping[str, Any]:
        return dict(self.settings.get("answer", {}).get("policy", {}))

    @property
    def file(self) -> str:
        return file_name(self.backbone, self.task, self.name, seed=self.seed)

    def as_json(self) -> str:
        return lines({"version": self.version} | self.model_dump(mode="json", exclude_defaults=True))


def lines(values: Mapping[str, Any]) -> str:
    """A JSON document with a line for each field, and for each part of a large one: a change is seen where it is."""

    def text(value: Any, depth: int) -> str:
        whole = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if depth > 2 or not isinstance(value, dict) or len(whole) < 120:
            return whole
        parts = (f"{json.dumps(name, ensure_ascii=False)}: {text(each, depth + 1)}" for name, each in value.items())
        return "{\n" + ",\n".join(" " * depth + part for part in parts) + "\n" + " " * (depth - 1) + "}"

    return text(dict(values), 1) + "\n"


def file_name(*parts: str, seed: int) -> str:
    """Of backbone, task and arm."""
    slugs = (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts)
    return f"{'-'.join(slugs)}-seed{seed}.json"


def by_prompt(values: Sequence[float | bool | None]) -> ByPrompt:
    """Values of prompts, as short as they can be written."""
    if all(value in (0, 1) for value in values):
        return "".join(str(int(value or 0)) for value in values)
    return [None if value is None else rounded(float(value)) for value in values]


def rounded(value: float) -> float:
    """Six digits: more would be noise, and a file three times as large."""
    return float(f"{value:.6g}")


def read(folder: Path) -> list[Arm]:
    """Every arm in a folder, in the order of their names; files that begin with _ hold something else."""
    return [read_file(file) for file in sorted(folder.glob("[!_]*.json"))]


def read_file(file: Path) -> Arm:
    try:
        arm = Arm.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        raise UsageError(f"{file.name} is no measured arm: {error}") from None
    if arm.file != file.name:
        raise UsageError(f"{file.name} holds {arm.file}: rename it, or make it again")
    return arm


def seeds_of(arms: Iterable[Arm], backbone: str, task: str, name: str) -> Mapping[int, Arm]:
    """The runs of one arm by seed."""
    same = [each for each in arms if (each.backbone, each.task, each.name) == (backbone, task, name)]
    return {each.seed: each for each in sorted(same, key=lambda each: each.seed)}


def comparable(first: Arm, second: Arm, benchmark: str) -> bool:
    """Whether two arms come from one SFT run and answered the same questions."""
    if (first.backbone, first.task, first.seed) != (second.backbone, second.task, second.seed):
        return False
    if first.digests.get("sft") != second.digests.get("sft"):
        return False
    asked = [arm.benchmarks[benchmark].questions for arm in (first, second) if benchmark in arm.benchmarks]
    return len(asked) == 2 and asked[0] == asked[1]
