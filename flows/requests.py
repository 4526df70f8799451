"""What a pipeline was asked for: stored with its parent run, so that it can be started again from there."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dpr_core.config.base import parse
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import DensePathError
from dpr_core.experiments.points import Study
from flows import wiring
from flows.merging import Experiment
from tasks.artifacts.parent_runs import About, Pipeline, StoredRequest
from tasks.graph import Node, rerun_nodes
from tasks.registry import stage_named

if TYPE_CHECKING:
    from tasks.artifacts.store import Store

HOW = {"jobs", "pool"}
"""What may differ between two commands that ask for the same."""


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    force: bool = False

    def request(self) -> StoredRequest:
        return StoredRequest(self.model_dump(mode="json", exclude=HOW), self.model_dump(mode="json", include=HOW))


class Whole(_Asked):
    """The whole pipeline."""

    flow: Literal["dense-path"] = "dense-path"
    config: PipelineConfig

    def nodes(self, store: "Store") -> list[Node]:
        return wiring.nodes(self.config)

    def about(self, store: "Store") -> About:
        settings = self.config.model_dump(mode="json")
        return About(self.config.name, self.config.description, settings, self.request())

    def start(self) -> dict[str, Any]:
        from flows.pipeline import dense_path

        return dense_path(self.config, self.force)


class Rerun(_Asked):
    """One artifact again, perhaps with what was built on it."""

    flow: Literal["rerun"] = "rerun"
    artifact: str
    overrides: list[str] = []
    downstream: bool = False

    def nodes(self, store: "Store") -> list[Node]:
        return rerun_nodes(store, self.artifact, self.overrides, self.downstream)

    def about(self, store: "Store") -> About:
        target = store.record(self.artifact)
        changes = f" with {', '.join(self.overrides)}" if self.overrides else ""
        settings = self.model_dump(mode="json", include={"artifact", "overrides", "downstream"})
        return About(f"rerun {target.stage}", f"{target.title} again{changes}.", settings, self.request())

    def start(self) -> dict[str, Any]:
        from flows.pipeline import rerun

        return rerun(self.artifact, self.overrides, self.downstream, self.force)


class Alone(_Asked):
    """A single stage, as a deployment starts it."""

    flow: Literal["stage"] = "stage"
    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]

    def nodes(self, store: "Store") -> list[Node]:
        config = parse(stage_named(self.stage).config, self.config, self.stage)
        return [Node(self.stage, self.stage, config, self.inputs)]

    def about(self, store: "Store") -> About:
        return About(self.stage, f"{self.stage} alone.", self.config, self.request())

    def start(self) -> dict[str, Any]:
        from flows.pipeline import alone

        return alone(self)


class Sweep(_Asked):
    """Many pipelines as one."""

    flow: Literal["sweep"] = "sweep"
    studies: list[Study]
    name: str
    jobs: int = 1
    pool: str | None = None

    def nodes(self, store: "Store") -> list[Node]:
        asked = Experiment.of(self.studies)
        return [*asked.merged.nodes, *asked.tables()]

    def about(self, store: "Store") -> About:
        asked = Experiment.of(self.studies)
        return About(self.name, asked.description, asked.settings, self.request())

    def start(self) -> dict[str, Any]:
        from flows.sweep import sweep

        return sweep(self.studies, self.name, self.jobs, self.pool)


Asked = Whole | Rerun | Alone | Sweep

_READ: TypeAdapter[Asked] = TypeAdapter(Annotated[Asked, Field(discriminator="flow")])


def asked_of(pipeline: Pipeline) -> Asked:
    """What a stored pipeline was asked for."""
    if pipeline.request is None:
        raise DensePathError(f"pipeline {pipeline.title} does not say what it was asked for; start it anew")
    try:
        return _READ.validate_python({**pipeline.request.what, **pipeline.request.how})
    except ValidationError as error:
        raise DensePathError(
            f"pipeline {pipeline.title} was asked for in another version of this program, and its settings do not fit "
            f"this one: {error.errors()[0]['msg']}; start it anew"
        ) from None
