"""Requests for pipelines, as pure data: their JSON is stored with the parent run, from which they are started again."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from dpr_core.config.base import Line, Name
from dpr_core.config.data import SubsampleConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.placing import OTHERS, Rules
from dpr_core.config.training import SFTConfig
from dpr_core.cores import MOST_PROCESSES
from dpr_core.errors import DensePathError
from dpr_core.experiments.points import Study
from tasks.artifacts.parent_runs import ParentRun, StoredRequest

Jobs = Annotated[int, Strict(), Field(ge=1, le=MOST_PROCESSES)]
"""Stages that are computed at once on this machine, each by a process of its own."""


Studies = Annotated[list[Study], Field(min_length=1, max_length=100)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    force: bool = False
    jobs: Jobs = 1
    place: Rules = {}
    """On top of the recipe's."""

    @property
    def places(self) -> dict[str, str]:
        """Where stages are done: no more than `jobs` does this make another request."""
        return self.place

    def placed(self, more: Mapping[str, str]) -> Self:
        """The same with other places, on top of those that it has."""
        return self.model_copy(update={"place": {**self.place, **more}})

    def stored(self) -> StoredRequest:
        of_recipes = {"config": {"place"}, "studies": {"__all__": {"config": {"place"}}}}
        content = self.model_dump(mode="json", exclude={"jobs": True, "place": True, **of_recipes})
        return StoredRequest(content, {"jobs": self.jobs, "place": self.places})


class RunRequest(_Request):
    """A whole pipeline."""

    flow: Literal["dense-path"] = "dense-path"
    config: PipelineConfig

    @property
    def places(self) -> dict[str, str]:
        return {**self.config.place, **self.place}


class RerunRequest(_Request):
    """One artifact again and, with `downstream`, what was built on it."""

    flow: Literal["rerun"] = "rerun"
    artifact: str
    overrides: list[str] = []
    downstream: bool = False


class StageRequest(_Request):
    """A single stage, as a deployment starts it."""

    flow: Literal["stage"] = "stage"
    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]


class ImportRequest(_Request):
    """An SFT artifact of checkpoints that were trained elsewhere, beside the demonstrations that they learned from."""

    flow: Literal["import"] = "import"
    name: Name
    subsample: SubsampleConfig
    sft: SFTConfig


class SweepRequest(_Request):
    """Many pipelines as one."""

    flow: Literal["sweep"] = "sweep"
    studies: Studies
    name: Line

    @property
    def places(self) -> dict[str, str]:
        recipes = (rule for study in self.studies for rule in study.config.place.items())
        return {**dict(recipes), **self.place}


Request = RunRequest | RerunRequest | StageRequest | ImportRequest | SweepRequest

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="flow")])


def read_request(run: ParentRun) -> Request:
    """The request that is stored with a parent run."""
    if run.request is None:
        raise DensePathError(f"pipeline {run.title} does not say what it was asked for; start it anew")
    execution = dict(run.request.execution)
    if pool := execution.pop("pool", None):
        execution["place"] = {OTHERS: pool}
    try:
        return _REQUEST.validate_python({**run.request.content, **execution})
    except ValidationError as error:
        raise DensePathError(
            f"pipeline {run.title} was asked for in another version of this program, and its settings do not fit "
            f"this one: {error.errors()[0]['msg']}; start it anew"
        ) from None
