"""The registry of stages by name, each imported at its first use."""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import cast

from dpr_core.config.placing import STAGE_NAMES
from dpr_core.errors import UsageError
from tasks.running.stage import Stage


class _Stages(Mapping[str, Stage]):
    def __getitem__(self, name: str) -> Stage:
        if name not in STAGE_NAMES:
            raise KeyError(name)
        return cast(Stage, importlib.import_module(f"tasks.stages.{name}").STAGE)

    def __contains__(self, name: object) -> bool:
        return name in STAGE_NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(STAGE_NAMES)

    def __len__(self) -> int:
        return len(STAGE_NAMES)


STAGES: Mapping[str, Stage] = _Stages()


def stage_named(name: str) -> Stage:
    """A stage, or a UsageError that names the nearest one."""
    if name in STAGES:
        return STAGES[name]
    near = difflib.get_close_matches(name, STAGES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(STAGES)}"
    raise UsageError(f"there is no stage {name!r}; {hint}")
