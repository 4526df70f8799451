"""Datasets and models as MLflow lists them beside runs: names, hashes and places, never what they hold."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tasks.artifacts.retrying import UnansweredError
from tasks.artifacts.run_records import PAYLOAD

logger = logging.getLogger("dense_path")

ARTIFACT, URI = "dpr.artifact", "dpr.uri"
"""The tags of a listed model: the artifact whose payload has its weights, and their place in it."""

SECONDS_TO_LIST = 60.0
"""A server may answer with an error to lists alone, however often they are sent."""


@dataclass(frozen=True)
class Dataset:
    """Rows that a stage reads."""

    name: str
    digest: str
    """A hash of the rows or, where they are written or fetched, of the settings that say which they are."""
    kind: str
    """MLflow's word for where they come from."""
    source: Mapping[str, Any]
    context: Literal["training", "evaluation"]
    columns: tuple[str, ...] = ()
    rows: int | None = None

    @property
    def short(self) -> str:
        """As much of the digest as MLflow takes."""
        return self.digest[:36]


@dataclass(frozen=True)
class Model:
    """Weights in a payload."""

    name: str
    folder: str
    """In the payload."""
    step: int
    metrics: Collection[str] = ()
    """Of the stage's results, those that are of these weights."""
    on_the_way: bool = False
    """Whether training went on, so that its loss is what was logged at `step`."""


@dataclass(frozen=True)
class Prompt:
    """A text that models are asked with; `{{name}}` stands for what is filled in."""

    name: str
    text: str
    alias: str
    """Names this text among the versions of the prompt."""


@dataclass(frozen=True)
class Trace:
    """One question to a judge, its answer, and what that was worth."""

    id: str
    """32 hexadecimal digits, the same however often it is listed."""
    name: str
    inputs: Mapping[str, Any]
    output: str
    assessment: str
    value: float | None
    """None: it cannot be read."""
    by: str
    is_model: bool


@contextmanager
def only_for_people(what: str) -> Iterator[None]:
    """What fails in the block is told, and ends nothing: no result needs it."""
    try:
        yield
    except UnansweredError:
        raise
    except Exception as error:
        logger.warning("%s are not listed in MLflow: %s", what, error)


def model_uri(run_id: str, folder: str) -> str:
    """Where the weights of an artifact lie, as MLflow finds them."""
    return f"runs:/{run_id}/{PAYLOAD}/{folder}"
