"""Parent runs in MLflow, one a pipeline: its request, whether its process lives, and resuming an interrupted one."""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import redact
from tasks.artifacts.experiment_page import POLICY, prepare
from tasks.artifacts.identity import canonical_json
from tasks.artifacts.leases import Lease, Leases, Ledger
from tasks.artifacts.listed import only_for_people
from tasks.artifacts.run_records import ID, NOTE_LIMIT, TAG_LIMIT, mapping_in_tag, mlflow_name, split_tag
from tasks.locks import exclusive, is_held

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

logger = logging.getLogger("dense_path")

PAGE = 1000
A_FEW = 5
"""Runs that are read at once where most often the newest says it all; each comes with hundreds of settings."""
MOST_BY_ID = 100
"""Runs that are asked for by their IDs; with more, reading all takes no longer."""
PARENT = "mlflow.parentRunId"
NAME_LIMIT = 250
PROCESS_GONE = "its process ended without a word"

RESUMED: ContextVar[str | None] = ContextVar("resumed", default=None)
"""The parent run that is to be gone on with, and no other."""


@dataclass(frozen=True)
class StoredRequest:
    """The JSON of a request, from which its pipeline can be started again."""

    content: Mapping[str, Any]
    """Requests of equal content are the same, and one resumes what another left."""
    execution: Mapping[str, Any] = field(default_factory=dict)
    """Such as the number of processes."""

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(dict(self.content)).encode()).hexdigest()


@dataclass(frozen=True)
class PipelineInfo:
    """What a parent run shows of its pipeline, and the request behind it."""

    name: str
    description: str
    settings: Mapping[str, Any]
    request: StoredRequest
    changed: str = ""
    """What a rerun changes, or a sweep varies, such as `algorithm.gamma=0.95`."""
    label: str = ""
    """What a rerun changes in short: `gamma=0.95`, for the names of its policies."""
    run_name: str = ""
    """What the run is called, where that says more than the name, which pipelines of one kind have in common."""


@dataclass(frozen=True)
class PolicyRow:
    """A policy that a pipeline compared, as a row of its own."""

    policy: str
    label: str
    """What sets it apart from a policy of the same name."""
    metrics: Mapping[str, float]
    made_of: Mapping[str, str]
    """IDs of artifacts, by what they are."""
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.policy} {self.label}".strip()[:NAME_LIMIT]


@dataclass(frozen=True)
class ParentRun:
    """A parent run, as stored."""

    id: str
    name: str
    status: str
    """INTERRUPTED: MLflow has it as running, and its process is gone."""
    started: datetime
    request: StoredRequest | None
    reason: str = ""
    here: bool = True
    """Whether this home may go on with it: its own lock shows that its process is gone, or the store has leases."""
    elsewhere: str = ""
    """The other host and home that it is under way in, or was last; empty if that is this one."""

    @property
    def title(self) -> str:
        return f"{self.id[:8]} ({self.name})"

    @property
    def is_resumable(self) -> bool:
        """Whether it is unfinished, and no process is running it."""
        return self.here and self.request is not None and self.status not in ("RUNNING", "FINISHED")

    @property
    def is_interrupted(self) -> bool:
        """Whether it ended without anybody's having wanted that, or by somebody here."""
        return self.is_resumable and (self.status == "INTERRUPTED" or (self.status == "KILLED" and not self.elsewhere))


class ParentRuns:
    """The parent runs of one experiment."""

    def __init__(
        self, client: "MlflowClient", experiment: str, home: Path, owner: str, leases: Leases | None = None
    ) -> None:
        self._leases = leases
        self._held: dict[str, Lease] = {}
        self._client = client
        self._experiment = experiment
        self._locks = home / "locks"
        self._owner = owner

    @contextmanager
    def running(self, info: PipelineInfo) -> Iterator[str]:
        """The ID of a parent run that is this process's inside the block: an interrupted one, or a new one."""
        self._client.check_writable()
        self.watch(info.request)
        with ExitStack() as held:
            with exclusive(self._locks / "pipelines.lock"):
                found = self.unfinished(info.request)
                self._end_dead(but=found)
                if found is not None and not self._take(found.id):
                    found = None
                if (wanted := RESUMED.get()) and (found is None or found.id != wanted):
                    raise DensePathError(f"the pipeline {wanted[:8]} was finished, or another process goes on with it")
                run_id = self.begin(info) if found is None else self._resume(found, info)
                held.enter_context(exclusive(self._locks / f"{run_id}.lock"))
                if found is None and not self._take(run_id):
                    raise DensePathError(f"another machine took the pipeline {run_id[:8]}; give the same command again")
            if lease := self._held.get(run_id):
                held.enter_context(lease)
                held.callback(self._held.pop, run_id)
            yield run_id

    def watch(self, request: StoredRequest | None = None) -> None:
        """Find out which of those that are under way elsewhere have lapsed, of all or of one request; this may take as
        long as a lease."""
        if self._leases is not None:
            conditions = ["attributes.status != 'FINISHED'", "tags.`dpr.pipeline` LIKE '%'"]
            if request is not None:
                conditions.append(f"tags.`dpr.request` = '{request.key}'")
            self._leases.watch(lambda: self._search(*conditions))

    def _take(self, run_id: str) -> bool:
        """Whether it is this process's now; without leases its lock is all that it takes."""
        if self._leases is None:
            return True
        ledger = Ledger.of(self._client.get_run(run_id))
        lease = None if self._is_at_work(ledger) else self._leases.take(ledger)
        if lease is not None:
            self._held[run_id] = lease
        return lease is not None

    def _is_at_work(self, ledger: Ledger) -> bool:
        """Whether another home is at it, as far as is known."""
        return self._leases is not None and self._leases.is_elsewhere(ledger) and not ledger.has_lapsed

    def _client_of(self, run_id: str) -> "MlflowClient":
        lease = self._held.get(run_id)
        return self._client if lease is None else self._client.fenced(lease.confirm)

    def begin(self, info: PipelineInfo) -> str:
        """A new parent run. Without its lock it counts as interrupted."""
        tags = {
            "dpr.pipeline": info.name,
            "dpr.owner": self._owner,
            "dpr.request": info.request.key,
            **split_tag("dpr.what", canonical_json(dict(info.request.content))),
            **split_tag("dpr.how", canonical_json(dict(info.request.execution))),
            "mlflow.note.content": info.description[:NOTE_LIMIT],
            **({"dpr.changed": info.changed[:TAG_LIMIT]} if info.changed else {}),
        }
        prepare(self._client, self._experiment)
        run_name = (info.run_name or info.name)[:NAME_LIMIT]
        run_id = str(self._client.create_run(self._experiment, tags=tags, run_name=run_name).info.run_id)
        self._client.log_config(run_id, info.settings)
        return run_id

    def _resume(self, found: ParentRun, info: PipelineInfo) -> str:
        logger.info("goes on with the pipeline run %s of %s", found.title, f"{found.started:%Y-%m-%d %H:%M} UTC")
        self._client.update_run(found.id, status="RUNNING")
        if found.elsewhere:
            self._client.set_tag(found.id, "dpr.owner", self._owner)
        with only_for_people("settings"):
            self._client.log_config(found.id, info.settings)
        return found.id

    def show_policies(self, run_id: str, rows: Iterable[PolicyRow]) -> None:
        """Have exactly these rows under a parent run: runs that are no artifacts and that nothing is built on.

        What was there already stays, so that a pipeline that goes on makes none twice.
        """
        found = list(self._search(f"tags.`{PARENT}` = '{run_id}'", f"tags.`{POLICY}` LIKE '%'"))
        for row in rows:
            tags = {
                PARENT: run_id,
                POLICY: row.policy,
                **({"dpr.changed": row.label[:TAG_LIMIT]} if row.label else {}),
                **split_tag("dpr.made_of", canonical_json(dict(row.made_of))),
                "mlflow.note.content": self._links(row.made_of),
            }
            same = [run for run in found if run.info.run_name == row.name and tags.items() <= run.data.tags.items()]
            found = [each for each in found if each not in same]
            row_run = same[0] if same else self._client.create_run(self._experiment, tags=tags, run_name=row.name)
            if row_run.info.status != "FINISHED":
                self._client.log_params(row_run.info.run_id, row.settings)
                now = int(datetime.now(UTC).timestamp() * 1000)
                values = [(mlflow_name(name), value, now, 0) for name, value in row.metrics.items()]
                self._client.log_metrics(row_run.info.run_id, values)
                self._client.set_terminated(row_run.info.run_id, "FINISHED")
        for stale in found:
            self._client.delete_run(stale.info.run_id)

    def _links(self, made_of: Mapping[str, str]) -> str:
        links = [f"- [{what}](#/experiments/{self._experiment}/runs/{run_id})" for what, run_id in made_of.items()]
        return "\n".join(["Made of:", "", *links])[:NOTE_LIMIT]

    def end(self, run_id: str, status: str, document: Mapping[str, Any], reason: str = "") -> None:
        """End a parent run as FINISHED, FAILED or KILLED, with the outcome of every stage as a file."""
        client = self._client_of(run_id)
        with client.ending(status):
            client.log_text(run_id, json.dumps(document, indent=2, ensure_ascii=False), "run.json")
            client.set_tag(run_id, "dpr.reason", redact(reason)[:2000])
            client.set_terminated(run_id, status)
            if status != "FINISHED" and (lease := self._held.get(run_id)):
                lease.release(closed=False)

    def document(self, run_id: str) -> dict[str, Any]:
        """The document that a pipeline run ended with: the outcome of every stage."""
        if all(entry.path != "run.json" for entry in self._client.list_artifacts(run_id)):
            raise UsageError(
                f"the pipeline {run_id[:8]} has no results: its process ended without a word, or its files are gone; "
                f"dpr show {run_id[:8]} has its stages"
            )
        with TemporaryDirectory() as folder:
            file = Path(str(self._client.download_artifacts(run_id, "run.json", folder)))
            document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return document

    def keep(self, run_id: str, folder: Path, under: str) -> None:
        """Keep the files of a folder with a parent run."""
        self._client.log_folder(run_id, folder, under)

    def all(self, *conditions: str) -> list[ParentRun]:
        """Every parent run of which MLflow's `conditions` hold, newest first."""
        return list(self._newest_first(*conditions))

    def names(self, among: Collection[str] | None = None) -> dict[str, str]:
        """The name of every pipeline, or of some, by the ID of its parent run."""
        if among is None or len(among) > MOST_BY_ID:
            return {run.id: run.name for run in self.all()}
        ids = ", ".join(f"'{run_id}'" for run_id in sorted(among) if ID.fullmatch(run_id))
        return {run.id: run.name for run in self.all(f"attributes.run_id IN ({ids})")} if ids else {}

    def _newest_first(self, *conditions: str, at_once: int = PAGE) -> Iterator[ParentRun]:
        return map(self._read, self._search(*conditions, "tags.`dpr.pipeline` LIKE '%'", at_once=at_once))

    def _search(self, *conditions: str, at_once: int = PAGE) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                " AND ".join(conditions),
                max_results=at_once,
                order_by=["attributes.start_time DESC", "attributes.run_id DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def find(self, reference: str) -> ParentRun | None:
        """A parent run by its ID or a prefix of it; none if there is not exactly one."""
        prefix = reference.strip().removeprefix("runs:/").lower()
        if not re.fullmatch(r"[0-9a-f]{4,32}", prefix):
            return None
        found = self.all(f"attributes.run_id LIKE '{prefix}%'")
        return found[0] if len(found) == 1 else None

    def resumable(self) -> list[ParentRun]:
        """Those that are unfinished, newest first; of equal requests the newest."""
        every = self.all()
        return [run for run in every if run.is_resumable and run.request and newest_open(every, run.request) == run]

    def end_dead(self) -> list[ParentRun]:
        """End those whose process is gone as KILLED, and return them."""
        with exclusive(self._locks / "pipelines.lock"):
            return self._end_dead()

    def _end_dead(self, but: ParentRun | None = None) -> list[ParentRun]:
        running = self.all("attributes.status = 'RUNNING'")
        dead = [each for each in running if each.status == "INTERRUPTED" and not each.elsewhere]
        ended = []
        for pipeline in dead:
            if pipeline.id != (but and but.id) and self._take(pipeline.id):
                self._client.set_tag(pipeline.id, "dpr.reason", PROCESS_GONE)
                self._client.set_terminated(pipeline.id, "KILLED")
                if lease := self._held.pop(pipeline.id, None):
                    lease.release(closed=False)
                ended.append(pipeline)
        return ended

    def since(self, request: StoredRequest) -> datetime:
        """When the work on a request began: the start of an interrupted one, or now."""
        self.watch(request)
        found = self.unfinished(request)
        return datetime.now(UTC) if found is None else found.started

    def unfinished(self, request: StoredRequest) -> ParentRun | None:
        """The newest unfinished one of this request, if none finished after it."""
        return newest_open(self._newest_first(f"tags.`dpr.request` = '{request.key}'", at_once=A_FEW), request)

    def _read(self, run: Any) -> ParentRun:
        tags, ledger = run.data.tags, Ledger.of(run)
        status = str(run.info.status)
        elsewhere = ""
        here = self._leases is not None or tags.get("dpr.owner") == self._owner
        if self._leases is not None and ledger.holder.home != self._owner:
            elsewhere = ledger.holder.where
            if self._is_at_work(ledger):
                status = "RUNNING"
            elif status == "RUNNING":
                status = "INTERRUPTED"
        elif here and status == "RUNNING" and not is_held(self._locks / f"{run.info.run_id}.lock"):
            status = "INTERRUPTED"
        content = mapping_in_tag("dpr.what", tags)
        return ParentRun(
            id=str(run.info.run_id),
            name=tags["dpr.pipeline"],
            status=status,
            started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            request=StoredRequest(content, mapping_in_tag("dpr.how", tags)) if content else None,
            reason=tags.get("dpr.reason", ""),
            here=here,
            elsewhere=elsewhere,
        )


def newest_open(runs: Iterable[ParentRun], request: StoredRequest) -> ParentRun | None:
    """The newest unfinished one of this request, if none finished after it; `runs` are newest first."""
    for pipeline in runs:
        if pipeline.request is not None and pipeline.request.key == request.key:
            if pipeline.status == "FINISHED":
                return None
            if pipeline.is_resumable:
                return pipeline
    return None
