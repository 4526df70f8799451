"""A stage: its body and config, the artifacts that it takes as inputs, and how torch is set up for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.errors import UsageError
from tasks.libraries import load_torch

ANY_ROLE = "*"


class Preflight(Protocol):
    def __call__(self, configs: Sequence[Any], /, planning: bool = False) -> None:
        """For a plan it asks servers what they answer for nothing, and fetches nothing."""


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline. `inputs` maps a role to the stages accepted in it; the role `*` stands for any number."""

    name: str
    version: int
    config: type[StageConfig]
    body: Callable[[StageConfig, Any], dict[str, float]]
    describe: Callable[[StageConfig], str]
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    pin: Callable[[Any], StageConfig] = lambda config: config
    """Fills in what the config refers to but does not hold, such as the hash of a file's content."""
    shared: bool = False
    """Whether several processes can do it together. Then its body works with what `Work` says, and no more."""
    missing: Callable[[Any], str | None] = lambda config: None
    """What `pin` would have to fetch first. A plan fetches nothing; `preflight` does."""
    preflight: Preflight = lambda configs, planning=False: None
    """Gets all configs that are to run, before the first stage starts, and raises what is sure to make one fail."""
    settle: Callable[[Any, Mapping[str, Mapping[str, Any]]], StageConfig] = lambda config, inputs: config
    """Fills in what the settings of its inputs decide, by role."""
    revisions: Callable[[Any], int] = lambda config: 0
    """How often what comes of this config has changed while others' results stayed: it has so much higher a version."""

    def version_of(self, config: StageConfig) -> int:
        """The version in the key, and in the manifest, of what comes of this config."""
        return self.version + self.revisions(config)

    def launch(self, config: StageConfig) -> LaunchConfig | None:
        """The processes that are to do it together; None where this one does it alone."""
        launch = getattr(getattr(config, "execution", None), "launch", None)
        if launch is None or (launch.processes is None and not self.shared):
            return None
        if not launch.is_elsewhere and launch.processes is None:
            import torch

            launch = launch.on(torch.cuda.device_count())
        return launch if launch.processes != 1 else None

    def check_roles(self, given: Iterable[str]) -> None:
        """Refuse roles that this stage does not have, and the lack of one that it needs."""
        roles = set(given)
        unknown = roles - set(self.inputs)
        if unknown and ANY_ROLE not in self.inputs:
            known = ", ".join(self.inputs) or "none"
            raise UsageError(f"{self.name} has no input called {', '.join(sorted(unknown))}; its inputs: {known}")
        missing = set(self.inputs) - roles - self.optional - {ANY_ROLE}
        if missing:
            needs = [f"{role} (an artifact of {' or '.join(self.inputs[role])})" for role in sorted(missing)]
            raise UsageError(f"{self.name} needs the input {' and '.join(needs)}")

    def accepted(self, role: str) -> tuple[str, ...]:
        """The stages whose artifacts fit a role."""
        return self.inputs.get(role, self.inputs.get(ANY_ROLE, ()))


def torch_settings(config: StageConfig) -> AbstractContextManager[None]:
    """Threads as configured, and torch's generators, which dropout draws from, as the seed has them: what else this
    process made before must not matter."""
    execution = getattr(config, "execution", None)
    if not isinstance(execution, ExecutionConfig):
        return nullcontext()
    load_torch()
    import torch

    from dpr_core.training.torch_runtime import torch_threads

    torch.manual_seed(config.seed)
    return torch_threads(execution.threads)
