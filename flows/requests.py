"""Requests for pipelines, as pure data: their JSON is stored with the parent run, from which they are started again."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from dpr_core.config.base import Line
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.cores import MOST_PROCESSES
from dpr_core.errors import DensePathError
from dpr_core.experiments.points import Study
from tasks.artifacts.parent_runs import ParentRun, StoredRequest

EXECUTION = {"jobs", "pool"}
"""Fields that may differ between two requests that are the same."""


Jobs = Annotated[int, Strict(), Field(ge=1, le=MOST_PROCESSES)]
"""Processes on this machine that share a sweep."""


Studies = Annotated[list[Study], Field(min_length=1, max_length=100)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    force: bool = False

    def stored(self) -> StoredRequest:
        content = self.model_dump(mode="json", exclude=EXECUTION)
        return StoredRequest(content, self.model_dump(mode="json", include=EXECUTION))


class RunRequest(_Request):
    """A whole pipeline."""

    flow: Literal["dense-path"] = "dense-path"
    config: PipelineConfig


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


class SweepRequest(_Request):
    """Many pipelines as one."""

    flow: Literal["sweep"] = "sweep"
    studies: Studies
    name: Line
    jobs: Jobs = 1
    pool: str | None = None


Request = RunRequest | RerunRequest | StageRequest | SweepRequest

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="flow")])


def read_request(run: ParentRun) -> Request:
    """The request that is stored with a parent run."""
    if run.request is None:
        raise DensePathError(f"pipeline {run.title} does not say what it was asked for; start it anew")
    try:
        return _REQUEST.validate_python({**run.request.content, **run.request.execution})
    except ValidationError as error:
        raise DensePathError(
            f"pipeline {run.title} was asked for in another version of this program, and its settings do not fit "
            f"this one: {error.errors()[0]['msg']}; start it anew"
        ) from None
