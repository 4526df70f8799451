"""The artifact store on MLflow: stage runs, lineage, look-up by key, verified reads."""

import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from dpr_core.config.base import Config
from dpr_core.errors import DensePathError, UsageError
from dpr_core.hashing import HashCache
from tasks.artifacts import unregistered
from tasks.artifacts.experiment_page import AS_TRAINING
from tasks.artifacts.identity import Manifest, RunEntry, check_file
from tasks.artifacts.leases import BEAT, UNTOUCHED, Leases
from tasks.artifacts.mlflow_client import SETTINGS, MlflowClient
from tasks.artifacts.parent_runs import ParentRuns
from tasks.artifacts.payloads import Payloads
from tasks.artifacts.registered_models import RegisteredModels
from tasks.artifacts.retrying import retry_seconds
from tasks.artifacts.run_records import (
    ID,
    KEY,
    Artifact,
    Record,
    Snapshot,
    disagreements,
    moment,
    record_of,
    run_name,
    usable_as,
)
from tasks.artifacts.stage_run import StageRun
from tasks.artifacts.turns import HomeTurns, SharedTurns
from tasks.artifacts.unregistered import Unregistered, run_tags
from tasks.local_home import ATTEMPT, UnwritableHomeError, home_folder, identity_of, open_home, unwritable
from tasks.locks import exclusive, is_held

__all__ = ["Artifact", "Record", "StageRun", "Store"]

UI_PORT = 5000
PAGE = 1000
ACTIVE, DELETED, ALL = 1, 2, 3
"""MLflow's `ViewType`."""
SHORTEST_PREFIX = 4


class Store:
    """Artifacts by ID. Safe to use from several threads and processes at once."""

    def __init__(self, home: Path, client: MlflowClient, experiment: str, *, embedded: bool) -> None:
        self.home = home
        self.where = client.where
        self._client = client
        self._experiment = experiment
        self.embedded = embedded
        """Whether it is this home's own: SQLite and files in it."""
        self._payloads = Payloads(client, home, home / "artifacts" if embedded else None)
        self._owner = identity_of(home) if client.read_only is None or (home / "ID").exists() else ""
        leases = None if embedded else Leases(client, home, self._owner)
        how = (client, self._owner, self._search, self._payloads.root)
        self.turns = HomeTurns(*how) if leases is None else SharedTurns(*how, leases)
        self.parent_runs = ParentRuns(client, experiment, home, self._owner, leases)
        self.registered_models = RegisteredModels(client)
        self._input_digests: dict[str, str] = {}
        """Of the inputs of artifacts that were read: what has been lost is the same as another of its digest."""

    @classmethod
    def open(cls, *, retry: bool = False) -> Self:
        """Open the store of this environment: `MLFLOW_TRACKING_URI` if set, else SQLite and files in `DPR_HOME`.

        Where nothing answers, the address may be wrong, so that it is tried again only with `retry`.
        """
        home = home_folder()
        setting = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        database, artifacts = home / "mlflow.db", home / "artifacts"
        read_only: UnwritableHomeError | None = None
        try:
            open_home()
            if not setting and database.exists() and not os.access(database, os.W_OK):
                raise unwritable(home, f"{database.name} is write-protected")
        except UnwritableHomeError as error:
            if setting or not database.is_file():
                raise
            read_only = error
        client = MlflowClient(setting or f"sqlite:///{database}", home, retry_seconds(), read_only)

        def connect() -> Any:
            lock = nullcontext() if read_only else exclusive(home / "locks" / "store.lock")
            with lock, client.retry.at_most(0):
                client.connect(database=None if setting else database)
                experiment = client.experiment(None if setting.startswith("http") else artifacts.as_uri())
                if not setting:
                    client.keep_files_in(artifacts, experiment)
                return experiment

        try:
            experiment = client.retry.call(connect) if retry else connect()
        except UsageError:
            raise
        except DensePathError as error:
            if setting:
                hint = (
                    "check MLFLOW_TRACKING_URI, or unset it to use the embedded default: SQLite and files in DPR_HOME"
                )
            elif read_only:
                hint = "it cannot be written to; set DPR_HOME to a copy of it that can be"
            else:
                hint = "if another process is using it, try again; else set DPR_HOME to another folder"
            raise DensePathError(f"cannot open the store of runs. {error}\n{hint}") from error.__cause__
        return cls(home, client, experiment.experiment_id, embedded=not setting)

    def check_writable(self) -> None:
        """Refuse here, in a sentence, what would write to a home that can only be read."""
        self._client.check_writable()

    def begin(
        self,
        *,
        stage: str,
        name: str,
        version: int,
        key: str,
        config: Config,
        inputs: Mapping[str, str],
        parent: str | None,
        description: str,
        not_before: datetime | None = None,
    ) -> StageRun:
        """Start the MLflow run of a stage. Where hosts share a store, whoever gets hold of it has its config shown."""
        tags = run_tags(
            stage=stage,
            name=name,
            version=version,
            key=key,
            owner=self._owner,
            description=description,
            inputs=inputs,
            config=config.model_dump(mode="json"),
            parent=parent,
        )
        if not_before is not None:
            tags["dpr.since"] = moment(not_before)
        if not self.embedded:
            tags[BEAT] = UNTOUCHED
        run = self._client.create_run(self._experiment, tags=tags, run_name=run_name(stage, name))
        stage_run = StageRun(run.info.run_id, self._client, self._payloads.root(run), run.info.start_time)
        if not self.embedded:
            return stage_run
        try:
            self._client.log_config(stage_run.id, config)
        except BaseException as error:
            stage_run.end("FAILED" if isinstance(error, Exception) else "KILLED", "its config could not be logged")
            raise
        return stage_run

    def finished(self, key: str) -> list[Record]:
        """The finished artifacts with this key, earliest first."""
        runs = self._search(f"tags.`dpr.key` = '{key}'", "attributes.status = 'FINISHED'", order="ASC")
        return [record for record in map(record_of, runs) if record.finished]

    def end(self, run_id: str, status: str, reason: str) -> None:
        """End a run whose own process could not. What is finished, or another host's by now, stays so."""
        if self.turns.is_left_to_us(self.record(run_id)):
            StageRun(run_id, self._client, None).end(status, reason)

    def resolve(self, reference: str) -> str:
        """The full ID behind a unique prefix, a full ID or a `runs:/` URI."""
        return str(self._run(reference).info.run_id)

    def record(self, run_id: str) -> Record:
        """What is stored about one artifact or run, by any form of its ID."""
        return record_of(self._run(run_id))

    def records(self, stage: str | None = None, name: str | None = None) -> list[Record]:
        """All artifacts and unfinished runs, or those of one stage or name, newest first."""
        tags = [("stage", stage), ("name", name)]
        conditions = [f"tags.`dpr.{tag}` = '{text}'" for tag, text in tags if text is not None and "'" not in text]
        found = map(record_of, self._search(*conditions))
        return [record for record in found if stage in (None, record.stage) and name in (None, record.name)]

    def digests(self, run_ids: Collection[str]) -> dict[str, str | None]:
        """The digests of artifacts, by their full IDs."""
        if not run_ids:
            return {}
        listed = ", ".join(f"'{run_id}'" for run_id in sorted(run_ids))
        return {run.info.run_id: record_of(run).digest for run in self._search(f"attributes.run_id IN ({listed})")}

    def snapshot(self) -> Snapshot:
        """All artifacts and runs as they are now, for many look-ups at once."""
        return Snapshot(self._search(), lambda run: self._problems(run, quick=True), self.parent_runs.names())

    def made_before(self, stage: str, name: str, parent: str | None) -> list[Record]:
        """The runs of a stage under this name in the pipelines that are called as the one of this parent run."""
        records = self.records(stage, name)
        pipelines = self.parent_runs.names({run.parent or "" for run in records} | {parent or ""}) if records else {}
        pipeline = pipelines.get(parent or "")
        return [record for record in records if pipelines.get(record.parent or "") == pipeline]

    def metrics(self, run_id: str) -> dict[str, float]:
        """The latest value of each metric; of an artifact, as it was published."""
        run = self._run(run_id)
        as_published = self._as_published(run) if record_of(run).finished else None
        return dict(as_published["metrics"] if as_published else run.data.metrics)

    def history(self, run_id: str, prefix: str) -> dict[int, dict[str, float]]:
        """What was logged over steps, of the metrics whose names begin like this: values by name, by step.

        What comes out of a stage is logged at its last step once more, and may be of an earlier one: the first counts.
        """
        run = self._run(run_id)
        found: dict[int, dict[str, float]] = {}
        for name in sorted(name for name in run.data.metrics if name.startswith(prefix)):
            for entry in sorted(
                self._client.get_metric_history(run.info.run_id, name), key=lambda each: each.timestamp
            ):
                found.setdefault(int(entry.step), {}).setdefault(name, float(entry.value))
        return dict(sorted(found.items()))

    def beside(self, run_id: str, name: str) -> Path | None:
        """A file beside the payload of an artifact, if it lies on this machine as it was published."""
        run = self._run(run_id)
        root = self._payloads.root(run)
        if root is not None and (as_published := self._as_published(run)):
            for entry in as_published["files"]:
                if entry["path"] == name and not check_file(root / name, entry, HashCache()):
                    return root / name
        return None

    def _as_published(self, run: Any) -> RunEntry | None:
        """What the manifest says of a run, if it is to be believed."""
        manifest, problems = self._payloads.manifest(run)
        return None if manifest is None or problems else manifest.run

    def users(self, run_id: str) -> list[Record]:
        """Artifacts and runs that have this one as an input, newest first."""
        full = self.resolve(run_id)
        return [record for record in self.records() if full in record.inputs.values()]

    def fetch(self, run_id: str, *, stages: tuple[str, ...] = ()) -> Artifact:
        """A finished artifact of one of `stages`, re-hashed before it is handed out."""
        run = self._run(run_id)
        record = record_of(run)
        if problem := usable_as(record, stages):
            raise UsageError(problem)
        artifact, problems = self._sound(run)
        if artifact is None:
            artifact = self._twin(record)
        if artifact is None:
            raise DensePathError(
                f"artifact {record.title} is damaged: {'; '.join(problems[:5])}\n"
                f"make it again with: dpr rerun {record.id[:8]} --force"
            )
        return artifact

    def _sound(self, run: Any) -> tuple[Artifact | None, list[str]]:
        record = record_of(run)
        manifest, payload, problems = self._payloads.inspect(run)
        if manifest is None or problems:
            return None, problems
        self._remember_inputs(manifest)
        return Artifact(record.id, record.stage, manifest.digest(), manifest.config, record.inputs, payload), []

    def _remember_inputs(self, manifest: Manifest) -> None:
        entries = manifest.inputs.values()
        self._input_digests |= {each["id"]: each["digest"] for each in entries if KEY.fullmatch(each["digest"])}

    def _twin(self, damaged: Record) -> Artifact | None:
        """A sound artifact with the digest of a damaged one is the same to the byte, and stands in for it."""
        for run in self._with_digest(damaged.digest):
            artifact = self._sound(run)[0]
            if artifact is not None and (artifact.stage, artifact.digest) == (damaged.stage, damaged.digest):
                return artifact
        return None

    def _with_digest(self, digest: str | None) -> Iterator[Any]:
        return self._search(f"tags.`dpr.digest` = '{digest}'", "attributes.status = 'FINISHED'")

    def verify(self, run_id: str, *, quick: bool = False) -> list[str]:
        """Every reason not to trust an artifact; empty means sound.

        `quick` downloads nothing, and trusts the hashes that this process has made of unchanged files.
        """
        return self._problems(self._run(run_id), quick)

    def _problems(self, run: Any, quick: bool) -> list[str]:
        record = record_of(run)
        if record.status == "FINISHED" and record.digest is None:
            return ["the tag dpr.digest: missing"]
        if not record.finished:
            return [f"never finished (its status is {record.status})"]
        if quick and self._payloads.root(run) is None:
            return self._payloads.manifest(run)[1]
        try:
            manifest, _, problems = self._payloads.inspect(run, cached=quick)
            return problems if quick or manifest is None else problems + self._payloads.shown(run, manifest)
        except DensePathError as error:
            if self._client.retry.exhausted:
                raise
            return [f"its files cannot be had: {error}"]

    def published(self, run_id: str) -> Record:
        """The record of an artifact, once it agrees with the manifest, or that of a twin; files are not checked."""
        run = self._run(run_id)
        manifest, problems = self._payloads.manifest(run)
        if manifest is not None and not problems:
            self._remember_inputs(manifest)
            return record_of(run)
        for twin in self._with_digest(record_of(run).digest):
            if not self._payloads.manifest(twin)[1]:
                return record_of(twin)
        raise DensePathError(f"artifact {record_of(run).title} has no sound manifest: {'; '.join(problems)}")

    def manifest(self, run_id: str) -> Manifest:
        """The manifest of a finished artifact; its files are not checked."""
        run = self._run(run_id)
        manifest, problems = self._payloads.manifest(run)
        if manifest is None or problems:
            raise DensePathError(f"artifact {record_of(run).title} has no sound manifest: {'; '.join(problems)}")
        return manifest

    def contradictions(self, run_id: str) -> list[str]:
        """The tags of an artifact that say another work than its manifest, where the digest vouches for that."""
        run = self._run(run_id)
        record, manifest = record_of(run), self._payloads.manifest(run)[0]
        if not record.finished or manifest is None or manifest.digest() != record.digest:
            return []
        return disagreements(replace(record, run_digest=None), replace(manifest, run=None))

    def run_url(self, run_id: str) -> str:
        """Where a run is shown: on the MLflow server, or where `dpr ui` will show it."""
        base = self.where.partition("?")[0] if self.where.startswith("http") else f"http://127.0.0.1:{UI_PORT}"
        return f"{base.rstrip('/')}/#/experiments/{self._experiment}/runs/{run_id}"

    @property
    def page(self) -> str:
        """Of all runs, below the address of MLflow's web interface."""
        return f"#/experiments/{self._experiment}?{AS_TRAINING}"

    def folder(self, run_id: str) -> Path | None:
        """Where the files of a run lie, if it is on this machine."""
        return self._payloads.root(self._run(run_id))

    def ui_command(self, port: int, host: str = "127.0.0.1") -> tuple[list[str], dict[str, str]]:
        """The command that shows this store in MLflow's web interface, and its environment: others see arguments."""
        if self.where.startswith("http"):
            raise UsageError(f"the MLflow server shows these runs itself: open {self.where} in a browser")
        serve = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)]
        if self.embedded:
            serve += ["--default-artifact-root", (self.home / "artifacts").as_uri()]
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_BACKEND_STORE_URI": self._client.uri}
        return serve, {**os.environ, **SETTINGS, **own}

    def is_own(self, record: Record) -> bool:
        """Whether it was made in this home on this host, so that its lock says whether its process lives."""
        return record.owner == self._owner

    def with_live_status(self, record: Record) -> Record:
        """The record with INTERRUPTED in place of RUNNING where the process that made it is gone."""
        held = not self.is_own(record) or is_held(self.home / "locks" / f"{record.key}.lock")
        return record if record.status != "RUNNING" or held else replace(record, status="INTERRUPTED")

    def claims(self, run_id: str | None = None) -> list[tuple[Record, Callable[[], list[str]]]]:
        """Runs tagged as finished artifacts, or the one with this ID, with a check of each.

        One that has lost some of its tags is among them.
        """
        if run_id is not None:
            runs = [self._run(run_id)]
        else:
            finished = self._pages(["attributes.status = 'FINISHED'"])
            runs = [run for run in finished if {"dpr.stage", "dpr.key", "dpr.digest"} & set(run.data.tags)]
        return [(record_of(run), functools.partial(self._problems, run, False)) for run in runs]

    def unregistered(self) -> list[Unregistered]:
        """Whole artifacts in this home's own folder that the database does not know, or only as unfinished runs.

        Those that a process is publishing, or can go on to publish, are none.
        """
        artifacts = self.home / "artifacts"
        if not self.embedded or not artifacts.is_dir():
            return []
        records = {record.id: record for record in self.records()}
        unfinished = {record.id for record in records.values() if not record.finished and not self._is_at_work(record)}
        runs = set(self.folders()) | set(self.folders(deleted=True))
        return [
            lost
            for lost in unregistered.find(artifacts, runs - unfinished, runs)
            if not lost.in_database or records[lost.id].key == lost.manifest.key
        ]

    def _is_at_work(self, record: Record) -> bool:
        """Whether a process works on a run, or will go on with it."""
        if is_held(self.home / "locks" / f"{record.key}.lock"):
            return True
        try:
            return (self.home / "work" / record.key / ATTEMPT).read_text(encoding="ascii") == record.id
        except (OSError, UnicodeDecodeError):
            return False

    def register(self, lost: Unregistered) -> list[str]:
        """Take an artifact back into the database; returns what is wrong with it, and then it is not taken."""
        self.check_writable()
        with exclusive(self.home / "locks" / f"{lost.manifest.key}.lock"):
            problems = lost.problems()
            if not problems and (lost.in_database or not self.has_run(lost.id)):
                unregistered.register(self._client, self._experiment, self._owner, lost)
            return problems or self.verify(lost.id)

    def folders(self, *, deleted: bool = False) -> dict[str, Path | None]:
        """Where the files of every run lie, or of those that were deleted in MLflow; None: not on this machine."""
        found = self._pages([], view=DELETED if deleted else ACTIVE)
        return {str(run.info.run_id): self._payloads.root(run) for run in found}

    def has_run(self, run_id: str) -> bool:
        """Whether MLflow has a run of this full ID, deleted or not."""
        return any(self._pages([f"attributes.run_id = '{run_id}'"], view=ALL))

    def _search(self, *conditions: str, order: str = "DESC") -> Iterator[Any]:
        return self._pages([*conditions, "tags.`dpr.stage` LIKE '%'"], order)

    def _pages(self, conditions: Collection[str], order: str = "DESC", view: int = ACTIVE) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                " AND ".join(conditions),
                run_view_type=view,
                max_results=PAGE,
                order_by=[f"attributes.start_time {order}", f"attributes.run_id {order}"],
                page_token=token,
            )
            yield from (run for run in page if ID.fullmatch(run.info.run_id))
            token = page.token
            if not token:
                return

    def _run(self, reference: str) -> Any:
        prefix = reference.strip().removeprefix("runs:/").split("/")[0].lower()
        if not re.fullmatch(r"[0-9a-f]{1,32}", prefix):
            raise UsageError(f"{reference!r} is not an artifact ID; `dpr artifacts` lists them")
        if len(prefix) < SHORTEST_PREFIX:
            raise UsageError(f"{reference!r} is too short for an ID; give at least {SHORTEST_PREFIX} characters")
        found = list(self._search(f"attributes.run_id LIKE '{prefix}%'"))
        if not found and (digest := self._input_digests.get(reference)) is not None:
            found = list(self._with_digest(digest))[:1]
        if not found:
            raise UsageError(f"there is no artifact {reference!r} in {self.where}; `dpr artifacts` lists what there is")
        if len(found) > 1:
            candidates = [
                f"  {r.id}  {run_name(r.stage, r.name)}  {r.status}  {r.started:%Y-%m-%d %H:%M}"
                for r in map(record_of, found[:10])
            ]
            raise UsageError("\n".join([f"{reference!r} is ambiguous; it could be", *candidates]))
        return found[0]
