"""Everything kept in MLflow, and the only import of it: runs, artifacts, lineage, verified reads."""

import functools
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml

from dpr_core.config.base import Config, commented_yaml
from dpr_core.errors import DensePathError, UsageError
from tasks.attempt import StageRun
from tasks.home import is_full, no_space, open_home
from tasks.identity import Manifest, canonical_json
from tasks.locks import exclusive
from tasks.payloads import Payloads
from tasks.records import Artifact, Record, mlflow_name, params, record_of, run_name, split_tag, usable_as
from tasks.snapshot import Snapshot
from tasks.uris import knock, local_path, scrub, without_password

__all__ = ["Artifact", "Record", "StageRun", "Store"]

EXPERIMENT = "dense-path"
UI_PORT = 5000
PAGE = 1000
SHORTEST_PREFIX = 4
NOTE_LIMIT = 7500
FIRST_CHECK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
}


class Store:
    """Artifacts by ID. Safe to use from several threads and processes at once."""

    def __init__(self, home: Path, client: "Client", experiment: str, *, embedded: bool) -> None:
        self.home = home
        self.where = client.where
        self._client = client
        self._experiment = experiment
        self._embedded = embedded
        self._payloads = Payloads(client, home)
        self._owner = f"{socket.gethostname()}:{home}"

    @classmethod
    def open(cls) -> Self:
        """Open the store of this environment: `MLFLOW_TRACKING_URI` if set, else SQLite and files in `DPR_HOME`."""
        home = open_home()
        setting = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        client = Client(setting or f"sqlite:///{home / 'mlflow.db'}", home)
        artifacts = home / "artifacts"
        with exclusive(home / "locks" / "store.lock"):
            try:
                client.connect(database=None if setting else home / "mlflow.db")
                with _environment(FIRST_CHECK):
                    experiment = client.experiment(None if setting.startswith("http") else artifacts.as_uri())
            except DensePathError as error:
                hint = (
                    "check MLFLOW_TRACKING_URI, or unset it to use the embedded default: SQLite and files in DPR_HOME"
                    if setting
                    else "if another process is using it, try again; else set DPR_HOME to another folder"
                )
                raise DensePathError(f"cannot open the store of runs. {error}\n{hint}") from error.__cause__
        made_at = local_path(experiment.artifact_location)
        if not setting and (made_at is None or made_at.resolve() != artifacts.resolve()):
            raise DensePathError(
                f"{home} has been moved: its files were kept in {experiment.artifact_location}; "
                "move it back there, or set DPR_HOME to a new folder"
            )
        return cls(home, client, experiment.experiment_id, embedded=not setting)

    def begin_pipeline(self, name: str, description: str, config: Config | Mapping[str, Any]) -> str:
        """Start the parent run of a pipeline; returns its ID."""
        tags = {"dpr.pipeline": name, "mlflow.note.content": description[:NOTE_LIMIT]}
        run_id = str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)
        self._client.log_config(run_id, config)
        return run_id

    def end_pipeline(
        self, run_id: str, status: str, document: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """End a parent run as FINISHED, FAILED or KILLED, with what came of every stage as a file."""
        self._client.log_text(run_id, json.dumps(document, indent=2, ensure_ascii=False), "run.json")
        now = int(datetime.now(UTC).timestamp() * 1000)
        values = [(mlflow_name(name), float(value), now, 0) for name, value in (metrics or {}).items()]
        self._client.log_metrics(run_id, values)
        self._client.set_terminated(run_id, status)

    def keep(self, run_id: str, folder: Path, under: str) -> None:
        """Keep the files of a folder with a parent run."""
        self._client.log_artifacts(run_id, str(folder), under)

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
    ) -> StageRun:
        """Start an attempt at a stage."""
        tags = {
            "dpr.stage": stage,
            "dpr.name": name,
            "dpr.version": str(version),
            "dpr.key": key,
            "dpr.owner": self._owner,
            "mlflow.note.content": description[:NOTE_LIMIT],
            **split_tag("dpr.inputs", canonical_json(dict(inputs))),
            **split_tag("dpr.config", canonical_json(config.model_dump(mode="json"))),
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
        run = self._client.create_run(self._experiment, tags=tags, run_name=run_name(stage, name))
        attempt = StageRun(run.info.run_id, self._client, local_path(run.info.artifact_uri))
        try:
            self._client.log_config(attempt.id, config)
        except BaseException as error:
            attempt.end("FAILED" if isinstance(error, Exception) else "KILLED", "its config could not be logged")
            raise
        return attempt

    def finished(self, key: str) -> list[Record]:
        """The finished artifacts with this key, earliest first."""
        runs = self._search(f"tags.`dpr.key` = '{key}'", "attributes.status = 'FINISHED'", order="ASC")
        return [record for record in map(record_of, runs) if record.finished]

    def take_up(self, run_id: str, key: str, parent: str | None) -> StageRun | None:
        """An attempt that was interrupted, as running again. Only for the holder of the key's lock."""
        found = list(self._search(f"attributes.run_id = '{run_id}'", f"tags.`dpr.key` = '{key}'"))
        if not found or record_of(found[0]).finished:
            return None
        self._client.update_run(run_id, status="RUNNING")
        if parent is not None:
            self._client.set_tag(run_id, "mlflow.parentRunId", parent)
        return StageRun(run_id, self._client, local_path(found[0].info.artifact_uri))

    def end_stale(self, key: str, but: StageRun | None = None) -> list[str]:
        """End the attempts at this key whose process is gone. Only for the holder of the key's lock."""
        ended = []
        for run in self._search(f"tags.`dpr.key` = '{key}'", "attributes.status = 'RUNNING'"):
            if run.data.tags.get("dpr.owner") == self._owner and (but is None or run.info.run_id != but.id):
                StageRun(run.info.run_id, self._client, None).end("KILLED", "its process ended without a word")
                ended.append(str(run.info.run_id))
        return ended

    def resolve(self, reference: str) -> str:
        """The full ID behind a unique prefix, a full ID or a `runs:/` URI."""
        return str(self._run(reference).info.run_id)

    def record(self, run_id: str) -> Record:
        """What is stored about one artifact or attempt, by any form of its ID."""
        return record_of(self._run(run_id))

    def records(self, stage: str | None = None, name: str | None = None) -> list[Record]:
        """All artifacts and attempts, or those of one stage or name, newest first."""
        asked = [("stage", stage), ("name", name)]
        conditions = [f"tags.`dpr.{tag}` = '{text}'" for tag, text in asked if text is not None and "'" not in text]
        found = map(record_of, self._search(*conditions))
        return [record for record in found if stage in (None, record.stage) and name in (None, record.name)]

    def digests(self, run_ids: Collection[str]) -> dict[str, str | None]:
        """The digests of artifacts, by their full IDs."""
        if not run_ids:
            return {}
        listed = ", ".join(f"'{run_id}'" for run_id in sorted(run_ids))
        return {run.info.run_id: record_of(run).digest for run in self._search(f"attributes.run_id IN ({listed})")}

    def snapshot(self) -> Snapshot:
        """All artifacts and attempts as they are now, for many questions at once."""
        return Snapshot(self._search(), lambda run: self._problems(run, quick=True))

    def metrics(self, run_id: str) -> dict[str, float]:
        """The latest value of each metric."""
        return dict(self._run(run_id).data.metrics)

    def users(self, run_id: str) -> list[Record]:
        """Artifacts and attempts that have this one as an input, newest first."""
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
        return Artifact(record.id, record.stage, manifest.digest(), manifest.config, record.inputs, payload), []

    def _twin(self, damaged: Record) -> Artifact | None:
        """A sound artifact with the digest of a damaged one is the same to the byte, and stands in for it."""
        for run in self._search(f"tags.`dpr.digest` = '{damaged.digest}'", "attributes.status = 'FINISHED'"):
            artifact = self._sound(run)[0]
            if artifact is not None and (artifact.stage, artifact.digest) == (damaged.stage, damaged.digest):
                return artifact
        return None

    def verify(self, run_id: str, *, quick: bool = False) -> list[str]:
        """Every reason not to trust an artifact; empty means sound.

        `quick` downloads nothing, and trusts the hashes that this process has made of unchanged files.
        """
        return self._problems(self._run(run_id), quick)

    def _problems(self, run: Any, quick: bool) -> list[str]:
        record = record_of(run)
        if not record.finished:
            return [f"never finished (its status is {record.status})"]
        if quick and local_path(run.info.artifact_uri) is None:
            return self._payloads.manifest(run)[1]
        return self._payloads.inspect(run, cached=quick)[2]

    def manifest(self, run_id: str) -> Manifest:
        """What a finished artifact says that it holds; its files are not looked at."""
        run = self._run(run_id)
        manifest, problems = self._payloads.manifest(run)
        if manifest is None or problems:
            raise DensePathError(f"artifact {record_of(run).title} has no sound manifest: {'; '.join(problems)}")
        return manifest

    def run_url(self, run_id: str) -> str:
        """Where a run is shown: on the MLflow server, or where `dpr ui` will show it."""
        base = self.where if self.where.startswith("http") else f"http://127.0.0.1:{UI_PORT}"
        return f"{base.rstrip('/')}/#/experiments/{self._experiment}/runs/{run_id}"

    def ui_command(self, port: int) -> list[str]:
        """The command that shows this store in MLflow's web interface."""
        if self.where.startswith("http"):
            raise UsageError(f"the MLflow server shows these runs itself: open {self.where} in a browser")
        settings = {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = ["env", *(f"{name}={value}" for name, value in settings.items())]
        serve = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
        if self._embedded:
            artifacts = (self.home / "artifacts").as_uri()
            return [*quiet, *serve, "--backend-store-uri", self.where, "--default-artifact-root", artifacts]
        return ["sh", "-c", f'exec {" ".join([*quiet, *serve])} --backend-store-uri "$MLFLOW_TRACKING_URI"']

    def _search(self, *conditions: str, order: str = "DESC") -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                " AND ".join([*conditions, "tags.`dpr.stage` LIKE '%'"]),
                max_results=PAGE,
                order_by=[f"attributes.start_time {order}", f"attributes.run_id {order}"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _run(self, reference: str) -> Any:
        asked = reference.strip().removeprefix("runs:/").split("/")[0].lower()
        if not re.fullmatch(r"[0-9a-f]{1,32}", asked):
            raise UsageError(f"{reference!r} is not an artifact ID; `dpr artifacts` lists them")
        if len(asked) < SHORTEST_PREFIX:
            raise UsageError(f"{reference!r} is too short for an ID; give at least {SHORTEST_PREFIX} characters")
        found = list(self._search(f"attributes.run_id LIKE '{asked}%'"))
        if not found:
            raise UsageError(f"there is no artifact {reference!r} in {self.where}; `dpr artifacts` lists what there is")
        if len(found) > 1:
            candidates = [
                f"  {r.id}  {run_name(r.stage, r.name)}  {r.status}  {r.started:%Y-%m-%d %H:%M}"
                for r in map(record_of, found[:10])
            ]
            raise UsageError("\n".join([f"{reference!r} is ambiguous; it could be", *candidates]))
        return found[0]


class Client:
    """MLflow's client with explicit run IDs, batches within its limits, and its errors as ours."""

    def __init__(self, uri: str, home: Path) -> None:
        self.uri = uri
        self.where = without_password(uri)
        self._home = home
        self._mlflow: Any = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._mlflow, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._own_errors():
                return method(*args, **kwargs)

        return call

    def connect(self, database: Path | None) -> None:
        """Import MLflow and open the store; `database` is an SQLite file to make where there is none."""
        os.environ.update(QUIET)
        with self._own_errors():
            import mlflow

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            logging.getLogger("alembic").setLevel(logging.ERROR)
            if database is not None and not database.exists():
                make_database(database)
            knock(self.uri)
            self._mlflow = mlflow.MlflowClient(self.uri)

    def experiment(self, artifacts: str | None) -> Any:
        """The one experiment of this project, made where there is none."""
        found = self.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return self.get_experiment(self.create_experiment(EXPERIMENT, artifact_location=artifacts))
            except DensePathError:
                found = self.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise DensePathError(
                f"the experiment {EXPERIMENT} in {self.where} was deleted; bring it back with: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return found

    def log_config(self, run_id: str, config: Config | Mapping[str, Any]) -> None:
        """A config as params to compare by, and whole as config.yaml."""
        if isinstance(config, Config):
            values, text = config.model_dump(mode="json"), commented_yaml(config)
        else:
            values, text = dict(config), yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in params(values).items()]
        for start in range(0, len(entries), 100):
            self.log_batch(run_id, params=entries[start : start + 100])
        self.log_text(run_id, text, "config.yaml")

    def log_metrics(self, run_id: str, entries: Sequence[tuple[str, float, int, int]]) -> None:
        """Name, value, milliseconds and step of each."""
        from mlflow.entities import Metric

        for start in range(0, len(entries), 1000):
            self.log_batch(run_id, metrics=[Metric(*entry) for entry in entries[start : start + 1000]])

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except DensePathError:
            raise
        except Exception as error:
            if is_full(error):
                raise no_space(self._home) from error
            text = scrub(" ".join(str(error).split()), self.uri)
            if "Max retries exceeded" in text or "timeout exception" in text:
                text = "the server does not answer"
            message = f"MLflow at {self.where}: {text[:600]}"
            # A traceback would show what the message leaves out.
            raise DensePathError(message) from (error if self.uri == self.where else None)


def make_database(path: Path) -> None:
    """Make the whole schema in a file of another name, so that a process killed meanwhile leaves no half of one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(path.name + ".new")
    for leftover in path.parent.glob(new.name + "*"):
        leftover.unlink()
    store = SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "artifacts").as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.replace(path)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})
