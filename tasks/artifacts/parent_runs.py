"""Parent runs: what a pipeline was asked for, whether its process lives, and taking up one that was interrupted."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.identity import canonical_json
from tasks.artifacts.run_records import NOTE_LIMIT, mapping_in_tag, mlflow_name, split_tag
from tasks.locks import exclusive, is_held

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

logger = logging.getLogger("dense_path")

PAGE = 1000
ENDED = "its process ended without a word"


@dataclass(frozen=True)
class StoredRequest:
    """What has to be known to start a pipeline again."""

    what: Mapping[str, Any]
    """Equal requests ask for the same, and one goes on with what the other left."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """Such as the number of processes."""

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(dict(self.what)).encode()).hexdigest()


@dataclass(frozen=True)
class About:
    """What a parent run says of its pipeline."""

    name: str
    description: str
    settings: Mapping[str, Any]
    request: StoredRequest


@dataclass(frozen=True)
class Pipeline:
    """A parent run, as stored."""

    id: str
    name: str
    status: str
    """INTERRUPTED: MLflow has it as running, and its process is gone."""
    started: datetime
    request: StoredRequest | None
    reason: str = ""
    here: bool = True
    """Whether it was started in this `DPR_HOME` on this host, so that its process can be asked after."""

    @property
    def title(self) -> str:
        return f"{self.id[:8]} ({self.name})"

    @property
    def may_go_on(self) -> bool:
        """Whether it was begun and not brought to an end, and nobody is at it."""
        return self.here and self.request is not None and self.status not in ("RUNNING", "FINISHED")

    @property
    def interrupted(self) -> bool:
        return self.may_go_on and self.status != "FAILED"


class Pipelines:
    """The parent runs of one experiment."""

    def __init__(self, client: "MlflowClient", experiment: str, home: Path, owner: str) -> None:
        self._client = client
        self._experiment = experiment
        self._locks = home / "locks"
        self._owner = owner

    @contextmanager
    def running(self, about: About) -> Iterator[str]:
        """The ID of a parent run that this process holds inside the block: one that was interrupted, or a new one."""
        with ExitStack() as held:
            with exclusive(self._locks / "pipelines.lock"):
                found = self.left_open(about.request)
                self._end_dead()
                run_id = self.begin(about) if found is None else self._take_up(found, about)
                held.enter_context(exclusive(self._locks / f"{run_id}.lock"))
            yield run_id

    def begin(self, about: About) -> str:
        """A new parent run. Without its lock it counts as interrupted."""
        tags = {
            "dpr.pipeline": about.name,
            "dpr.owner": self._owner,
            "dpr.request": about.request.key,
            **split_tag("dpr.what", canonical_json(dict(about.request.what))),
            **split_tag("dpr.how", canonical_json(dict(about.request.how))),
            "mlflow.note.content": about.description[:NOTE_LIMIT],
        }
        run_id = str(self._client.create_run(self._experiment, tags=tags, run_name=about.name).info.run_id)
        self._client.log_config(run_id, about.settings)
        return run_id

    def _take_up(self, found: Pipeline, about: About) -> str:
        logger.info("goes on with the pipeline run %s of %s", found.title, f"{found.started:%Y-%m-%d %H:%M} UTC")
        self._client.update_run(found.id, status="RUNNING")
        self._client.log_config(found.id, about.settings)
        return found.id

    def end(
        self,
        run_id: str,
        status: str,
        document: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        reason: str = "",
    ) -> None:
        """End a parent run as FINISHED, FAILED or KILLED, with what came of every stage as a file."""
        with self._client.ending(status):
            self._client.log_text(run_id, json.dumps(document, indent=2, ensure_ascii=False), "run.json")
            now = int(datetime.now(UTC).timestamp() * 1000)
            values = [(mlflow_name(name), float(value), now, 0) for name, value in (metrics or {}).items()]
            self._client.log_metrics(run_id, values)
            self._client.set_tag(run_id, "dpr.reason", reason[:2000])
            self._client.set_terminated(run_id, status)

    def keep(self, run_id: str, folder: Path, under: str) -> None:
        """Keep the files of a folder with a parent run."""
        self._client.log_folder(run_id, folder, under)

    def all(self, *conditions: str) -> list[Pipeline]:
        """Every parent run of which MLflow's `conditions` hold, newest first."""
        found: list[Pipeline] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                " AND ".join([*conditions, "tags.`dpr.pipeline` LIKE '%'"]),
                max_results=PAGE,
                order_by=["attributes.start_time DESC", "attributes.run_id DESC"],
                page_token=token,
            )
            found += map(self._read, page)
            token = page.token
            if not token:
                return found

    def find(self, reference: str) -> Pipeline | None:
        """A parent run by its ID or a prefix of it; none if there is not exactly one."""
        asked = reference.strip().removeprefix("runs:/").lower()
        if not re.fullmatch(r"[0-9a-f]{4,32}", asked):
            return None
        found = self.all(f"attributes.run_id LIKE '{asked}%'")
        return found[0] if len(found) == 1 else None

    def to_go_on(self) -> list[Pipeline]:
        """What was begun and not brought to an end, newest first; of equal requests the newest."""
        there = self.all()
        open_ones = [pipeline for pipeline in there if pipeline.may_go_on]
        return [one for one in open_ones if one.request and newest_open(there, one.request) == one]

    def end_dead(self) -> list[Pipeline]:
        """End those whose process is gone as KILLED, and return them."""
        with exclusive(self._locks / "pipelines.lock"):
            return self._end_dead()

    def _end_dead(self) -> list[Pipeline]:
        dead = [each for each in self.all("attributes.status = 'RUNNING'") if each.status == "INTERRUPTED"]
        for pipeline in dead:
            self._client.set_tag(pipeline.id, "dpr.reason", ENDED)
            self._client.set_terminated(pipeline.id, "KILLED")
        return dead

    def since(self, request: StoredRequest) -> datetime:
        """When the work on a request began: that of one that was interrupted, or now."""
        found = self.left_open(request)
        return datetime.now(UTC) if found is None else found.started

    def left_open(self, request: StoredRequest) -> Pipeline | None:
        """The newest of this request that was not brought to an end, if none finished after it."""
        return newest_open(self.all(f"tags.`dpr.request` = '{request.key}'"), request)

    def _read(self, run: Any) -> Pipeline:
        tags = run.data.tags
        here = tags.get("dpr.owner") == self._owner
        status = str(run.info.status)
        if here and status == "RUNNING" and not is_held(self._locks / f"{run.info.run_id}.lock"):
            status = "INTERRUPTED"
        what = mapping_in_tag("dpr.what", tags)
        return Pipeline(
            id=str(run.info.run_id),
            name=tags["dpr.pipeline"],
            status=status,
            started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            request=StoredRequest(what, mapping_in_tag("dpr.how", tags)) if what else None,
            reason=tags.get("dpr.reason", ""),
            here=here,
        )


def newest_open(there: Sequence[Pipeline], request: StoredRequest) -> Pipeline | None:
    """The newest of this request that was not brought to an end, if none finished after it; newest first."""
    for pipeline in there:
        if pipeline.request is not None and pipeline.request.key == request.key:
            if pipeline.status == "FINISHED":
                return None
            if pipeline.may_go_on:
                return pipeline
    return None
