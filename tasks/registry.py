"""The registry of stages by name, each imported at its first use."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import cast

from dpr_core.errors import UsageError
from tasks.running.stage import Stage

NAMES = (
    "backbone",
    "subsample",
    "prompts",
    "sft",
    "reward",
    "diagnose",
    "reinforce",
    "self_play",
    "continued_sft",
    "answer",
    "judge",
    "rate",
    "report",
    "experiment",
)


class _Stages(Mapping[str, Stage]):
    def __getitem__(self, name: str) -> Stage:
        if name not in NAMES:
            raise KeyError(name)
        return cast(Stage, importlib.import_module(f"tasks.stages.{name}").STAGE)

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


STAGES: Mapping[str, Stage] = _Stages()


def stage_named(name: str) -> Stage:
    """A stage, or a UsageError that names the nearest one."""
    if name in STAGES:
        return STAGES[name]
    near = difflib.get_close_matches(name, STAGES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(STAGES)}"
    raise UsageError(f"there is no stage {name!r}; {hint}")
