"""The MLflow client, and the only import of MLflow: retries with back-off, its errors as ours."""

import base64
import functools
import itertools
import json
import logging
import os
import re
import secrets
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml

from dpr_core.config.base import Config, commented_yaml
from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import address, redact
from tasks.artifacts.identity import files_below
from tasks.artifacts.listed import ARTIFACT, SECONDS_TO_LIST, URI, Dataset, Model, Prompt, Trace, model_uri
from tasks.artifacts.metric_buffer import Entry
from tasks.artifacts.retrying import RetryPolicy
from tasks.artifacts.run_records import mlflow_name, params
from tasks.libraries import load
from tasks.local_home import UnwritableHomeError, disk_full_error, is_full, sync

logger = logging.getLogger("dense_path")

T = TypeVar("T")

EXPERIMENT = "dense-path"
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    # Whether and for how long to try again is decided here, and not inside of a request.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
DATABASE_MODULES = ("mlflow.store.tracking.sqlalchemy_store", "alembic.script")
LOSS = "train/loss"
_NOT_LISTED: set[tuple[str, str]] = set()
"""Where and what, so that it is told once."""
READING = ("get_", "search_", "list_", "download_")
"""How the names of the methods begin that change nothing."""
PROBE_SECONDS = 3.0
SECONDS_TO_END_KILLED = 5.0
ADVISORY_LOCK = int.from_bytes(b"dense-pa", "big", signed=True)

REQUEST_TAG = "dpr.made_by"
"""The tag by which a request finds the run that it created, if its answer was lost."""


class MlflowClient:
    """MLflow's client with explicit run IDs and batches within its limits."""

    def __init__(
        self, uri: str, home: Path, retry_seconds: float, read_only: UnwritableHomeError | None = None
    ) -> None:
        self.uri = uri
        self.read_only = read_only
        """Why the home's own store can be read and no more, if so."""
        self.where = address(uri)
        try:
            # Libraries would name half of the password as the port that is no number.
            _ = urlsplit(uri).port
        except ValueError:
            raise UsageError(
                f"MLFLOW_TRACKING_URI: {self.where} cannot be read; in a password / ? # and @ are written as %2F %3F "
                "%23 and %40, and a port is a number up to 65535"
            ) from None
        self.retry = RetryPolicy(self.where, retry_seconds, self._probe, self._error_text)
        self._home = home
        self._mlflow: Any = None
        self._fence: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._mlflow, name)
        writes = not name.startswith(READING)
        if writes:
            self.check_writable()

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            def request() -> Any:
                if writes:
                    self._fence()
                return method(*args, **kwargs)

            with self._own_errors():
                return self.retry.call(request)

        return call

    def fenced(self, fence: Callable[[], None]) -> "MlflowClient":
        """The same client, which calls `fence` right before each request that writes."""
        client = object.__new__(type(self))
        client.__dict__.update(self.__dict__, _fence=fence)
        return client

    def connect(self, database: Path | None) -> None:
        """Import MLflow and open the store; `database` is an SQLite file to make where there is none."""
        os.environ.update(SETTINGS)
        os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
        with self._own_errors():
            load("mlflow", *(DATABASE_MODULES if database is not None else ()))
            import mlflow

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            logging.getLogger("alembic").setLevel(logging.ERROR)
            if database is not None and not database.exists():
                make_database(database)
            self._probe()
            if database is not None:
                migrate(database, read_only=self.read_only is not None)
            with _schema_lock(self.uri):
                self._mlflow = mlflow.MlflowClient(self.uri)

    def check_writable(self) -> None:
        """Raise why nothing can be written, where that is so."""
        if self.read_only is not None:
            raise UnwritableHomeError(
                f"{self.read_only}. What is in {self._home} can be listed, shown, verified, exported and scored with"
            )

    def keep_files_in(self, artifacts: Path, experiment: Any) -> None:
        """Have the files of every run below `artifacts`, by its ID, wherever the home was when MLflow noted the place.

        Where it can be, MLflow's note is brought up to date too, for its own pages.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        def repository(run_id: str, **_: Any) -> Any:
            return get_artifact_repository((artifacts / run_id / "artifacts").as_uri())

        self._mlflow._tracking_client._get_artifact_repo = repository
        here, noted = artifacts.as_uri(), experiment.artifact_location
        if not noted.startswith(("file:", "/")):
            raise DensePathError(f"MLflow keeps the files of {self.where} in {noted}, not in {here}")
        if noted != here and self.read_only is None:
            with closing(sqlite3.connect(self._home / "mlflow.db", timeout=PROBE_SECONDS)) as database, database:
                change = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
                database.execute(change, (here, experiment.experiment_id))
                change = "UPDATE runs SET artifact_uri = ? || run_uuid || '/artifacts' WHERE experiment_id = ?"
                database.execute(change, (f"{here}/", experiment.experiment_id))

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

    def create_run(self, experiment: str, tags: Mapping[str, str], run_name: str) -> Any:
        """A new run, idempotently: a request whose answer was lost may have made it, so a retry looks for it first."""
        mark = secrets.token_hex(16)
        is_retry = False

        def create(client: Any) -> Any:
            nonlocal is_retry
            if is_retry and (found := client.search_runs([experiment], f"tags.`{REQUEST_TAG}` = '{mark}'")):
                return found[0]
            is_retry = True
            return client.create_run(experiment, tags=source_tags() | {**tags, REQUEST_TAG: mark}, run_name=run_name)

        return self.together(create)

    def together(self, request: Callable[[Any], T]) -> T:
        """Several calls of MLflow's own client as one: where an answer is lost all are made again, and look first what
        is there."""
        self.check_writable()

        def fenced() -> T:
            self._fence()
            return request(self._mlflow)

        with self._own_errors():
            return self.retry.call(fenced)

    def log_config(self, run_id: str, config: Config | Mapping[str, Any]) -> None:
        """A config as params to compare by, and whole as config.yaml."""
        if isinstance(config, Config):
            values, text = config.model_dump(mode="json"), commented_yaml(config)
        else:
            values, text = dict(config), yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self.log_params(run_id, values)
        self.log_text(run_id, text, "config.yaml")

    def log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Settings as flat params."""
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in params(values).items()]
        for start in range(0, len(entries), 100):
            self.log_batch(run_id, params=entries[start : start + 100])

    def insert_run(self, experiment: str, run_id: str, started: int, root: Path, tags: Mapping[str, str]) -> None:
        """A run under an ID that is given, which MLflow has no call for; in the home's own database, with its tags or
        not at all."""
        self.check_writable()
        row = {
            "run_uuid": run_id,
            "experiment_id": int(experiment),
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "source_version": "",
            "user_id": "unknown",
            "status": "RUNNING",
            "start_time": started,
            "lifecycle_stage": "active",
            "artifact_uri": root.as_uri(),
        }
        columns, values = ", ".join(row), ", ".join("?" * len(row))
        with closing(sqlite3.connect(self._home / "mlflow.db", timeout=PROBE_SECONDS)) as database, database:
            database.execute(f"INSERT INTO runs ({columns}) VALUES ({values})", tuple(row.values()))
            each = ((run_id, name, value) for name, value in tags.items())
            database.executemany("INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", each)

    def log_metrics(self, run_id: str, entries: Sequence[Entry]) -> None:
        """Log metrics, however long it takes MLflow to answer."""
        for batch in _batches(entries):
            self.log_batch(run_id, metrics=batch)

    def try_metrics(self, run_id: str, entries: Sequence[Entry]) -> bool:
        """Log metrics if MLflow answers; whether it did."""
        with self._own_errors():
            return self.retry.try_once(
                lambda: [self._mlflow.log_batch(run_id, metrics=batch) for batch in _batches(entries)]
            )

    def list_datasets(self, run_id: str, datasets: Sequence[Dataset]) -> None:
        """The datasets that a run reads; those that are listed already are not listed twice."""
        from mlflow import entities
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        listed = []
        for each in datasets:
            columns = [{"name": name, "type": "string", "required": False} for name in each.columns]
            dataset = entities.Dataset(
                each.name[:500],
                each.short,
                each.kind,
                json.dumps({**each.source, "digest": each.digest}),
                json.dumps({"mlflow_colspec": columns}) if columns else None,
                None if each.rows is None else json.dumps({"num_rows": each.rows}),
            )
            listed.append(entities.DatasetInput(dataset, [entities.InputTag(MLFLOW_DATASET_CONTEXT, each.context)]))
        self.for_people("datasets", lambda client: client.log_inputs(run_id, listed))

    def list_models(
        self, run: Any, kind: str, settings: Mapping[str, Any], models: Sequence[Model], entries: Sequence[Entry]
    ) -> None:
        """The models of a run, with those of its last `entries` that are theirs; no model is listed twice."""
        self.for_people("models", lambda client: _list_models(client, run, kind, params(settings), models, entries))

    def measure_model(self, run: Any, uri: str, dataset: Dataset, entries: Sequence[Entry]) -> None:
        """Have a listed model show what a run measured of it."""
        from mlflow.entities import Metric

        def measure(client: Any) -> None:
            where = f"tags.`{URI}` = '{uri}'"
            for model in client.search_logged_models([run.info.experiment_id], where, max_results=1):
                if run.info.run_id not in {metric.run_id for metric in model.metrics or ()}:
                    of = {"model_id": model.model_id, "dataset_name": dataset.name, "dataset_digest": dataset.short}
                    client.log_batch(run.info.run_id, [Metric(*entry, **of) for entry in entries])

        self.for_people("models", measure)

    def list_traces(self, run: Any, prompt: Prompt | None, traces: Sequence[Trace]) -> None:
        """Traces of a run, which replace themselves when they are listed again, and the prompt behind them."""

        def trace(client: Any) -> None:
            # MLflow's own methods for traces and links ask the store that is the process's default.
            tracing, there = client._tracing_client, None
            if prompt is not None:
                there = client.load_prompt(f"prompts:/{prompt.name}@{prompt.alias}", allow_missing=True)
                if there is None:
                    there = client.register_prompt(prompt.name, prompt.text)
                    client.set_prompt_alias(prompt.name, prompt.alias, there.version)
            for each in traces:
                info, span = _trace(run, each)
                tracing.start_trace(info)
                tracing.log_spans(run.info.experiment_id, [span])
                if there is not None:
                    tracing.store.link_prompts_to_trace(info.trace_id, [there])

        self.for_people("traces", trace)

    def for_people(self, what: str, request: Callable[[Any], None]) -> None:
        """What is only for people must not end a stage: an earlier MLflow knows no models, and of two runs that list
        the same dataset for the first time at once one is refused."""
        for is_last in (False, True):
            try:
                with self.retry.at_most(SECONDS_TO_LIST):
                    return self.together(request)
            except DensePathError as error:
                if is_last and (self.where, what) not in _NOT_LISTED:
                    _NOT_LISTED.add((self.where, what))
                    logger.warning("%s are not listed in MLflow: %s", what, error)

    def log_folder(self, run_id: str, folder: Path, under: str) -> None:
        """Upload every file of a folder, each as often as it takes."""
        for path, name in files_below(folder):
            self.log_artifact(run_id, str(path), "/".join([under, *Path(name).parent.parts]))

    def log_table(self, run_id: str, columns: Mapping[str, Sequence[Any]], path: str) -> None:
        """Columns as a table that MLflow compares between runs. One that is there already is replaced."""
        import pandas

        self.log_text(run_id, pandas.DataFrame(columns).to_json(orient="split", index=False, date_format="iso"), path)
        tables = json.loads(self.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in tables:
            self.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*tables, entry]))

    @contextmanager
    def ending(self, status: str) -> Iterator[None]:
        """Inside the block a run is ended. A process that is being killed has no time to wait for MLflow."""
        with self.retry.at_most(SECONDS_TO_END_KILLED if status == "KILLED" else self.retry.seconds):
            yield

    def _probe(self) -> None:
        """Fail soon where MLflow would be long about it: a server that is silent, a database in use or none at all."""
        if not self.uri.startswith("http"):
            probe(self.uri, PROBE_SECONDS, writing=self.read_only is None)
            return
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        credentials = get_default_host_creds(self.uri)  # type: ignore[no-untyped-call]
        reply = http_request(  # type: ignore[no-untyped-call]
            credentials, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False
        )
        if reply.status_code >= 500:
            raise ConnectionError(f"the server is not healthy (status {reply.status_code})")

    def _error_text(self, error: BaseException) -> str:
        """What MLflow says, without a password."""
        text = redact(" ".join(str(error).split()), self.uri)
        if any(words in text for words in ("Max retries exceeded", "timeout exception")):
            text = "the server does not answer"
        return text[:600]

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except DensePathError:
            raise
        except Exception as error:
            if is_full(error):
                raise disk_full_error(self._home) from error
            message = f"MLflow at {self.where}: {self._error_text(error)}"
            # A traceback would show what the message leaves out.
            raise DensePathError(message) from (error if self.uri == self.where else None)


def _list_models(
    client: Any, run: Any, kind: str, settings: Mapping[str, str], models: Sequence[Model], entries: Sequence[Entry]
) -> None:
    from mlflow.entities import LoggedModelOutput, Metric

    run_id, experiment = run.info.run_id, run.info.experiment_id
    listed = {
        each.tags.get(URI): each
        for each in client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=2000)
    }
    linked = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
    on_the_way = any(model.on_the_way for model in models)
    losses = client.get_metric_history(run_id, LOSS) if on_the_way else []
    outputs, metrics = [], []
    for model in models:
        uri = model_uri(run_id, model.folder)
        if (there := listed.get(uri)) is None:
            there = client.create_logged_model(
                experiment,
                re.sub(r"[/:.%\"']", "_", model.name),
                run_id,
                {ARTIFACT: run_id, URI: uri},
                dict(settings),
                kind,
            )
        if there.status != "READY":
            client.finalize_logged_model(there.model_id, "READY")
        if there.model_id not in linked:
            outputs.append(LoggedModelOutput(there.model_id, model.step))
        names = set(map(mlflow_name, model.metrics))
        own = [entry for entry in entries if entry[0] in names and not there.metrics]
        if model.on_the_way:
            own = [(each.key, each.value, each.timestamp, each.step) for each in losses if each.step == model.step]
        metrics += [Metric(*entry, model_id=there.model_id) for entry in own]
    if outputs:
        client.log_outputs(run_id, outputs)
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics[start : start + 1000])


def _trace(run: Any, trace: Trace) -> tuple[Any, Any]:
    from mlflow import entities
    from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey, TraceTagKey

    trace_id, began = f"tr-{trace.id}", run.info.start_time
    said: dict[str, Any] = {"error": "it cannot be read"} if trace.value is None else {"value": trace.value}
    source = entities.AssessmentSource("LLM_JUDGE" if trace.is_model else "CODE", trace.by)
    times = {"create_time_ms": began, "last_update_time_ms": began}
    feedback = entities.Feedback(trace.assessment, source=source, trace_id=trace_id, **said, **times)
    feedback.assessment_id = f"a-{trace.id}"
    info = entities.TraceInfo(
        trace_id,
        entities.TraceLocation.from_experiment_id(run.info.experiment_id),
        began,
        entities.TraceState.OK,
        json.dumps(trace.inputs, ensure_ascii=False)[:1000],
        trace.output[:1000],
        execution_duration=0,
        trace_metadata={TraceMetadataKey.SOURCE_RUN: run.info.run_id},
        tags={TraceTagKey.TRACE_NAME: trace.name},
        assessments=[feedback],
    )
    attributes = {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.INPUTS: trace.inputs,
        SpanAttributeKey.OUTPUTS: trace.output,
        SpanAttributeKey.SPAN_TYPE: entities.SpanType.EVALUATOR,
    }
    span = entities.Span.from_dict(
        {
            "trace_id": base64.b64encode(bytes.fromhex(trace.id)).decode(),
            "span_id": base64.b64encode(bytes.fromhex(trace.id[:16])).decode(),
            "parent_span_id": "",
            "name": trace.name,
            "start_time_unix_nano": began * 1_000_000,
            "end_time_unix_nano": began * 1_000_000,
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {name: json.dumps(value) for name, value in attributes.items()},
            "events": [],
        }
    )
    return info, span


@functools.cache
def source_tags() -> dict[str, str]:
    """Who runs what, as MLflow finds it out; the commit is that of this package, wherever the script lies.

    An installed one has none: the repository around its environment is another's.
    """
    from mlflow.tracking.context.git_context import GitRunContext
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils import git_utils
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_BRANCH, MLFLOW_GIT_COMMIT, MLFLOW_GIT_REPO_URL, MLFLOW_SOURCE_NAME

    found: dict[str, str | None] = resolve_tags(ignore=[GitRunContext])  # type: ignore[list-item]
    if not Path(sys.argv[0]).is_file():
        found[MLFLOW_SOURCE_NAME] = "dpr"
    package = str(Path(__file__).parent)
    if "site-packages" not in package and (commit := git_utils.get_git_commit(package)):
        branch, address = git_utils.get_git_branch(package), git_utils.get_git_repo_url(package)
        found |= {MLFLOW_GIT_COMMIT: commit, MLFLOW_GIT_BRANCH: branch, MLFLOW_GIT_REPO_URL: address}
    return {name: value for name, value in found.items() if value is not None}


def system_monitors() -> list[Any]:
    """What reads the load of this machine; of GPUs where there are some and their library is installed."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    everywhere: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    of_gpus: tuple[Any, ...] = (GPUMonitor, ROCMMonitor)
    monitors = [monitor() for monitor in everywhere]
    for monitor in of_gpus:
        with suppress(Exception):
            monitors.append(monitor())
    return monitors


def _batches(entries: Sequence[Entry]) -> Iterator[list[Any]]:
    from mlflow.entities import Metric

    for start in range(0, len(entries), 1000):
        yield [Metric(*entry) for entry in entries[start : start + 1000]]


@contextmanager
def _schema_lock(uri: str) -> Iterator[None]:
    """MLflow makes its tables where there are none, and fails if another machine does so in the same PostgreSQL."""
    if not uri.startswith("postgresql"):
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        # The server frees it with the connection, however that ends.
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        yield


def make_database(path: Path) -> None:
    """Create the schema by write-and-rename, so that a process killed meanwhile leaves no half of one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(path.name + ".new")
    for leftover in path.parent.glob(new.name + "*"):
        leftover.unlink()
    store = SqlAlchemyStore(f"sqlite:///{new}", (path.parent / "artifacts").as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.replace(path)


def migrate(database: Path, *, read_only: bool = False) -> None:
    """Bring the schema of an earlier MLflow up to date, with a copy kept beside it; refuse that of a later one."""
    revision = _revision(database)
    age = "current" if revision is None else _age_of_schema(revision)
    if age == "current":
        return
    import mlflow

    if age == "later":
        raise UsageError(
            f"{database} was made by a later MLflow than {mlflow.__version__}, which is installed here: "
            "install that one, or set DPR_HOME to another folder"
        )
    if read_only:
        raise UsageError(
            f"{database} was made by an earlier MLflow than {mlflow.__version__}, and cannot be migrated where it "
            "cannot be written: set DPR_HOME to a copy of its folder"
        )
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    suffixes = itertools.chain([revision], (f"{revision}.{number}" for number in itertools.count(2)))
    copy = next(path for suffix in suffixes if not (path := Path(f"{database}.{suffix}")).exists())
    _copy_database(database, copy)
    logger.warning("%s is migrated to MLflow %s; as it was, it is kept as %s", database, mlflow.__version__, copy.name)
    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{database}")  # type: ignore[no-untyped-call]
    try:
        _upgrade_db(engine)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise DensePathError(
            f"{database} could not be migrated to MLflow {mlflow.__version__} ({' '.join(str(error).split())[:300]}); "
            f"put {copy.name} back in its place, and use the MLflow that it was made by"
        ) from error
    finally:
        engine.dispose()


def _revision(database: Path) -> str | None:
    """The version of its schema; none before MLflow has made one."""
    with closing(sqlite3.connect(database, timeout=PROBE_SECONDS)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


@functools.cache
def _age_of_schema(revision: str) -> Literal["earlier", "current", "later"]:
    """How a schema compares with that of the MLflow that is installed."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(""))  # type: ignore[no-untyped-call]
    if revision in scripts.get_heads():
        return "current"
    return "earlier" if revision in {script.revision for script in scripts.walk_revisions()} else "later"


def _copy_database(source: Path, target: Path) -> None:
    new = target.with_name(target.name + ".new")
    new.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(new)) as copy:
        old.backup(copy)
    sync(new)
    new.rename(target)


def probe(uri: str, seconds: float, *, writing: bool = True) -> None:
    """Fail soon where MLflow would try again for minutes: a database that is not there, is not one, or is locked."""
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind == "sqlite":
        path = Path(uri.partition(":///")[2])
        if path.exists():
            with closing(sqlite3.connect(path, timeout=seconds, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
                connection.execute("SELECT count(*) FROM sqlite_master")
                connection.execute("ROLLBACK")
    elif parts.hostname and kind not in ("http", "https"):
        port = parts.port or {"postgresql": 5432, "mysql": 3306, "mssql": 1433}.get(kind, 0)
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
