import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dpr_core import hashing
from dpr_core.config.base import StageConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts import mlflow_client, system_metrics
from tasks.artifacts.listed import Model, Prompt, Trace
from tasks.artifacts.mlflow_client import MlflowClient
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.run_records import flatten, join_tag, mlflow_name, params, split_tag
from tasks.artifacts.store import Store
from tests.forked import Forked
from tests.interruption import Killed

REPOSITORY = Path(__file__).parents[3]
ABSENT = "0" * 32


def attempt(store: Store, config: StageConfig | None = None, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "stage": "number",
        "name": "number",
        "version": 1,
        "key": "e" * 64,
        "config": config or StageConfig(),
        "inputs": {},
        "parent": None,
        "description": "A number.",
    }
    return store.begin(**(values | changes))


def payload(store: Store, run_id: str) -> Path:
    return store.home / "artifacts" / run_id / "artifacts" / "output"


# Opening


def test_what_one_store_has_hashed_another_need_not(
    store: Store, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = make("number")
    files = [path for path in payload(store, number.id).rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, (1_000_000_000, 1_000_000_000))
    # What changed within a tick of the file system's clock is hashed anew each time.
    time.sleep(2 * hashing.CLOCK_NS / 1e9)
    hashed: list[Path] = []
    hash_file = hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    for _ in range(2):
        Store.open().fetch(number.id)
    assert sorted(hashed) == sorted(files)
    assert store.verify(number.id) == []
    assert sorted(hashed[len(files) :]) == sorted([*files, payload(store, number.id).parent / "config.yaml"])


def test_home_is_absolute_and_defaults_to_the_working_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPR_HOME")
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / ".dpr")
    assert Store.open().home == tmp_path / ".dpr"


@pytest.mark.parametrize("name", ["with space", "größe & co"])
def test_unusual_names_of_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    home.rename(tmp_path / name)
    monkeypatch.setenv("DPR_HOME", str(tmp_path / name))
    store = Store.open()
    run = attempt(store)
    run.text("notes.txt", "hello")
    assert (tmp_path / name / "artifacts" / run.id / "artifacts" / "notes.txt").read_text() == "hello"


def test_home_below_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(UsageError, match=r"DPR_HOME: cannot write to .*file/home \(Not a directory\); set DPR_HOME"):
        Store.open()


@pytest.mark.parametrize("name", ["what?", "100%", "#1"])
def test_names_of_home_that_mlflow_cannot_take_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DPR_HOME", str(tmp_path / name))
    with pytest.raises(UsageError, match="which MLflow cannot take"):
        Store.open()


def test_a_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_HOME", "~nobody-here/home")
    with pytest.raises(UsageError, match="~nobody-here/home: there is no such user here"):
        Store.open()


def test_read_only_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_HOME", "/proc/dpr")
    with pytest.raises(UsageError, match="cannot write to /proc/dpr"):
        Store.open()


def test_full_home_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DensePathError, match=f"no space left in {home}; free some"):
        Store.open()


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_home_works_wherever_it_lies(
    home: Path, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    number, elsewhere = make("number"), tmp_path / "elsewhere"
    key = Store.open().record(number.id).key
    if how == "moved":
        home.rename(elsewhere)
    else:
        shutil.copytree(home, elsewhere)
        shutil.rmtree(home / "artifacts" / number.id)
    monkeypatch.setenv("DPR_HOME", str(elsewhere))
    store = Store.open()
    assert store.fetch(number.id).path == elsewhere / "artifacts" / number.id / "artifacts" / "output"
    assert store.verify(number.id) == []
    assert [record.id for record in store.finished(key)] == [number.id]
    new = attempt(store, key="d" * 64)
    new.text("note.txt", "written there")
    assert (elsewhere / "artifacts" / new.id / "artifacts" / "note.txt").is_file()
    assert not home.exists() or not (home / "artifacts" / new.id).exists()
    uri = (elsewhere / "artifacts" / number.id / "artifacts").as_uri()
    assert store._client.get_run(number.id).info.artifact_uri == uri, "as MLflow's own pages need it"


def test_a_home_seen_under_two_paths_at_once(
    home: Path, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = Store.open(), tmp_path / "mounted"
    other.symlink_to(home)
    monkeypatch.setenv("DPR_HOME", str(other))
    second = Store.open()
    other.unlink()
    run = attempt(first)
    run.text("note.txt", "by the first")
    assert (home / "artifacts" / run.id / "artifacts" / "note.txt").is_file()
    assert not other.exists()
    assert second.record(run.id).status == "RUNNING"


@pytest.fixture
def read_only(home: Path, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, str]]:
    """A home on which nothing can be written, as the kernel says of a file system that is mounted so."""
    number = make("number")
    before = snapshot_of(home)

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tasks.local_home.tempfile.TemporaryFile", refused)
    monkeypatch.setattr("tasks.artifacts.store.exclusive", refused)
    store = Store.open()
    yield store, number.id
    assert snapshot_of(home) == before


def snapshot_of(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file() and "locks" not in path.parts}


def test_a_read_only_home_is_read(read_only: tuple[Store, str]) -> None:
    store, number = read_only
    assert [record.id for record in store.records()] == [number]
    assert store.verify(number) == []
    assert store.fetch(number).path.is_dir()
    assert store.metrics(number)["value"] == 1.0


def test_a_read_only_home_refuses_in_a_sentence_what_would_write(
    read_only: tuple[Store, str], about: Callable[..., PipelineInfo]
) -> None:
    store, number = read_only
    writes: list[Callable[[], object]] = [
        store.check_writable,
        lambda: attempt(store),
        lambda: store.parent_runs.running(about()).__enter__(),
        lambda: store._client.set_tag(number, "a", "b"),
        lambda: store._client.delete_run(number),
    ]
    for write in writes:
        with pytest.raises(UsageError, match=r"cannot write to .* \(Read-only file system\); set DPR_HOME .* exported"):
            write()


def test_a_database_that_may_not_be_written_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("mlflow.db") and access(path, mode))
    store = Store.open()
    assert store.records() == []
    with pytest.raises(UsageError, match=r"mlflow\.db is write-protected"):
        store.check_writable()


@pytest.fixture(scope="session")
def earlier_database(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A database as MLflow made it one migration ago, and the version of its schema."""
    import alembic.command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path_factory.mktemp("earlier") / "mlflow.db"
    config = utils._get_alembic_config(f"sqlite:///{path}")
    _, before, *_ = list(ScriptDirectory.from_config(config).walk_revisions())
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, before.revision)
    engine.dispose()
    return path, before.revision


def schema_of(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_a_database_of_an_earlier_mlflow_is_copied_before_it_is_migrated(
    home: Path, earlier_database: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    path, revision = earlier_database
    current = schema_of(home / "mlflow.db")
    for copy in (f"mlflow.db.{revision}", f"mlflow.db.{revision}.2"):
        shutil.copy(path, home / "mlflow.db")
        caplog.clear()
        assert Store.open().records() == []
        assert (schema_of(home / "mlflow.db"), schema_of(home / copy)) == (current, revision)
        [said] = [record.getMessage() for record in caplog.records if record.name == "dense_path"]
        assert said.endswith(f"as it was, it is kept as {copy}")
    Store.open()
    assert len(list(home.glob("mlflow.db*"))) == 3


def test_a_migration_that_fails_says_where_the_copy_is(
    home: Path, earlier_database: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.db import utils

    def fails(engine: Any) -> None:
        raise RuntimeError("no such table")

    shutil.copy(earlier_database[0], home / "mlflow.db")
    monkeypatch.setattr(utils, "_upgrade_db", fails)
    with pytest.raises(DensePathError, match=rf"no such table\); put mlflow.db.{earlier_database[1]} back"):
        Store.open()


def test_a_database_of_a_later_mlflow_is_refused_and_left_alone(home: Path) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffff00000000'")
    before = (home / "mlflow.db").read_bytes()
    with pytest.raises(UsageError, match=r"was made by a later MLflow than \d.*: install that one"):
        Store.open()
    assert (home / "mlflow.db").read_bytes() == before


def test_an_earlier_database_that_is_read_only_is_refused(
    home: Path, earlier_database: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(earlier_database[0], home / "mlflow.db")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("mlflow.db") and access(path, mode))
    with pytest.raises(UsageError, match="cannot be migrated where it cannot be written: set DPR_HOME to a copy"):
        Store.open()


def test_a_file_that_is_no_database_is_named(home: Path) -> None:
    (home / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DensePathError, match=r"cannot open the store of runs.*mlflow.db: file is not a database"):
        Store.open()


@pytest.mark.slow
def test_processes_may_start_at_once_on_a_home_left_half_made(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mlflow.db.new").write_bytes(b"SQLite format 3\0 and then the process was killed")
    code = "from tasks.artifacts.store import Store; s = Store.open(); print(len(s.records()), 'ready')"
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {
        "DPR_HOME": str(tmp_path / "h")
    }
    processes = [Forked(["-c", code], environment, REPOSITORY) for _ in range(3)]
    assert [(*process.communicate(timeout=120), process.returncode) for process in processes] == [
        ("0 ready\n", "", 0)
    ] * 3


def test_importing_graph_or_identity_imports_no_mlflow() -> None:
    code = "import sys, tasks.graph, tasks.artifacts.identity; print({'mlflow', 'prefect', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_is_not_there_is_named_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://someone:hunter%212@{address}/runs")
    before = dict(os.environ)
    with pytest.raises(DensePathError) as caught:
        Store.open()
    message = str(caught.value)
    assert f"{scheme}://someone:***@{address}" in message
    assert "unset it to use the embedded default" in message
    assert "hunter" not in message + "".join(capfd.readouterr())
    assert caught.value.__cause__ is None
    assert dict(os.environ) == before


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_silent_server_is_given_up_on(home: Path, monkeypatch: pytest.MonkeyPatch, silent_server: int) -> None:
    monkeypatch.setattr("tasks.artifacts.mlflow_client.PROBE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent_server}")
    with pytest.raises(DensePathError, match=f"MLflow at http://127.0.0.1:{silent_server}: the server does not answer"):
        Store.open()


def test_another_database_of_the_user_is_used(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.db").write_bytes((home / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'theirs.db'}")
    attempt(Store.open())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Store.open().records() == []


def test_ui_command_names_this_store(store: Store) -> None:
    command, environment = store.ui_command(5000)
    assert command[-2:] == ["--default-artifact-root", (store.home / "artifacts").as_uri()]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{store.home}/mlflow.db"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_the_web_interface_gets_an_address_with_a_password_where_other_users_do_not_see_it(store: Store) -> None:
    uri = "postgresql://someone:hunter%212@127.0.0.1/runs?password=hunter22"
    command, environment = Store(store.home, MlflowClient(uri, store.home, 0), "1", embedded=False).ui_command(5000)
    assert "hunter" not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://127.0.0.1:1/runs?user=someone&password=hunter22",
        "http://hunter22@127.0.0.1:1",
        "http://127.0.0.1:1/?token=hunter22",
        "postgresql://someone:hunter/22@127.0.0.1:1/runs",
    ],
)
def test_no_form_of_an_address_shows_its_password(home: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(DensePathError, match="MLFLOW_TRACKING_URI") as caught:
        Store.open()
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter" not in shown
    assert "127.0.0.1:1" in shown


# Names, tags and params


def test_long_tags_are_split_and_joined() -> None:
    text = "x" * 7500 + "y" * 7500 + "z"
    tags = split_tag("dpr.inputs", text)
    assert {name: len(piece) for name, piece in tags.items()} == {
        "dpr.inputs": 7500,
        "dpr.inputs.1": 7500,
        "dpr.inputs.2": 1,
    }
    assert join_tag("dpr.inputs", tags) == text


def test_flatten_names_leaves_with_dots() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": None}
    assert dict(flatten(nested)) == {"a.b": 1, "a.c": {}, "d": [1, {"e": 2}], "f": None}
    assert list(flatten({})) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("reward/mean", "reward/mean"),
        ("report/dpr on lab/win_rate", "report/dpr on lab/win_rate"),
        ("größe (tokens)", "größe _tokens_"),
        ("../../x", "x"),
        ("/x//y", "x/y"),
        ("", "_"),
    ],
)
def test_names_that_mlflow_would_refuse_are_made_fit(name: str, kept: str) -> None:
    assert mlflow_name(name) == kept


def test_params_are_text_of_limited_length() -> None:
    assert params({"a": {"b": 1e-05, "c": None, "d": "text", "e": [1, 2]}, "long": "x" * 9000}) == {
        "a.b": "1e-05",
        "a.c": "null",
        "a.d": "text",
        "a.e": "[1, 2]",
        "long": "x" * 2000 + "...",
    }


# Runs


def test_an_attempt_is_recorded_whole(store: Store, toys: Any, about: Callable[..., PipelineInfo]) -> None:
    config = toys["number"].config(value=4, note="n" * 20_000, execution=3)
    pipeline = store.parent_runs.begin(about())
    run = attempt(store, config, name="first", inputs={"a": ABSENT}, parent=pipeline)
    record = store.record(run.id)
    assert (record.stage, record.name, record.status, record.key) == ("number", "first", "RUNNING", "e" * 64)
    assert (record.digest, record.finished, record.seconds, record.parent) == (None, False, None, pipeline)
    assert record.inputs == {"a": ABSENT}
    assert record.config == {"seed": 0, "value": 4, "note": "n" * 20_000, "execution": 3}
    assert abs((datetime.now(UTC) - record.started).total_seconds()) < 60
    stored = store._client.get_run(run.id)
    assert stored.info.run_name == "number · first"
    assert stored.data.tags["mlflow.note.content"] == "A number."
    assert stored.data.params["value"] == "4"
    assert "value: 4" in (payload(store, run.id).parent / "config.yaml").read_text()


def test_a_run_says_who_made_it_with_which_code(store: Store) -> None:
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    run = attempt(store)
    tags = store._client.get_run(run.id).data.tags
    assert store.record(run.id).commit == commit
    assert tags["mlflow.user"]
    assert tags["mlflow.source.name"]


def test_models_are_listed_once_however_often_a_run_is_cut_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient as Mlflow

    run = attempt(store)
    models = [Model("sft 0.5", "checkpoints/0.5", 1, on_the_way=True), Model("sft 1.0", "checkpoints/1.0", 2, {"loss"})]

    def listed() -> Any:
        run.results({"loss": 0.5})
        client = store._client
        client.list_models(client.get_run(run.id), "sft", {"a": {"b": 1}}, models, run._results)
        return client.get_run(run.id), client.search_logged_models([store._experiment])

    def killed(*_: Any) -> None:
        raise Killed

    for call in ("finalize_logged_model", "log_outputs"):
        with monkeypatch.context() as patch:
            patch.setattr(Mlflow, call, killed)
            with pytest.raises(Killed):
                listed()
    for _ in range(2):
        shown, found = listed()
        assert sorted(each.name for each in found) == ["sft 0_5", "sft 1_0"]
        assert {each.status for each in found} == {"READY"}
        assert sorted(output.step for output in shown.outputs.model_outputs) == [1, 2]
        assert [[(m.key, m.value) for m in each.metrics] for each in found if each.metrics] == [[("loss", 0.5)]]


def test_a_trace_and_the_prompt_behind_it_are_listed_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run, client = attempt(store), store._client
    prompt = Prompt("dense-path-judge", "Texts stand between {{mark}}.", "sha256-1")
    asked = {"question": ["Start at 1."], "first": ["It is 1."], "second": ["It is 2."]}
    read, unread = (
        Trace(digit * 32, "judged", asked, "VERDICT: A", "candidate", value, "gpt-4o", True)
        for digit, value in (("a", 1.0), ("b", None))
    )
    for _ in range(2):
        client.list_traces(client.get_run(run.id), prompt, [read, unread])
    traces = client.search_traces(locations=[store._experiment])
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces} == {run.id}
    told = {trace.info.trace_id: [each.feedback for each in trace.info.assessments] for trace in traces}
    assert [len(each) for each in told.values()] == [1, 1]
    assert told[f"tr-{read.id}"][0].value == 1.0
    assert told[f"tr-{unread.id}"][0].error is not None
    assert [len(trace.data.spans) for trace in traces] == [1, 1]
    behind = "prompt = 'dense-path-judge/1'"
    assert len(client.search_traces(locations=[store._experiment], filter_string=behind)) == 2
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("status", [404, 500])
def test_an_mlflow_that_cannot_list_models_is_told_of_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    from mlflow.exceptions import MlflowException

    def unknown(*_: Any, **__: Any) -> None:
        raise MlflowException(
            f"API request to endpoint /logged-models failed with error code {status} != 200 ({status})"
        )

    monkeypatch.setattr("mlflow.MlflowClient.search_logged_models", unknown)
    monkeypatch.setattr(mlflow_client, "_NOT_LISTED", set())
    monkeypatch.setattr(mlflow_client, "SECONDS_TO_LIST", 0.1)
    monkeypatch.setattr(store._client.retry, "seconds", 30.0)
    run = attempt(store)
    for _ in range(2):
        store._client.list_models(store._client.get_run(run.id), "sft", {}, [Model("sft", "policy", 1)], [])
    told = [record.message.partition(": ")[0] for record in caplog.records if "MLflow at" not in record.message[:9]]
    assert told == ["models are not listed in MLflow"]


def test_the_load_of_the_machine_is_logged_while_a_stage_trains(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = attempt(store), threading.Event()

    def record(values: Any) -> None:
        run.system_metrics(values)
        seen.set()

    monkeypatch.setenv(system_metrics.INTERVAL, "0.01")
    with system_metrics.watched(record):
        assert seen.wait(30)
    run.results({"loss": 1.0})
    run.flush()
    assert {"loss", "system/cpu_utilization_percentage"} <= set(store.metrics(run.id))
    assert run.last_step == 0
    monkeypatch.setenv(system_metrics.SWITCH, "false")
    threads = threading.active_count()
    with system_metrics.watched(record):
        assert threading.active_count() == threads
    monkeypatch.setenv(system_metrics.SWITCH, "true")
    monkeypatch.setenv(system_metrics.INTERVAL, "soon")
    with pytest.raises(UsageError, match="'soon' is no number of seconds"), system_metrics.watched(record):
        pass


def test_metrics_keep_their_steps_and_times(store: Store) -> None:
    run = attempt(store)
    started = time.time_ns() // 1_000_000
    for step in range(1200):
        run.metrics({"loss": step / 2}, step)
    run.results({"accuracy": 0.75})
    run.flush()
    history = store._client.get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, step / 2) for step in range(1200)]
    assert all(started <= m.timestamp <= time.time_ns() // 1_000_000 for m in history)
    assert [(m.step, m.value) for m in store._client.get_metric_history(run.id, "accuracy")] == [(1199, 0.75)]
    assert store.record(run.id).results == {"accuracy": 0.75}


def test_the_history_of_a_run_has_what_its_steps_logged_and_not_what_came_out(store: Store) -> None:
    run = attempt(store)
    for step, kl in enumerate([0.0, 0.1, 0.7]):
        run.metrics({"rollout/kl": kl}, step)
    run.flush()
    run.results({"rollout/kl": 0.1})
    run.flush()
    assert store.history(run.id, "rollout/") == {step: {"rollout/kl": kl} for step, kl in enumerate([0.0, 0.1, 0.7])}


def test_metrics_are_sent_in_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = attempt(store)
    sent: list[int] = []
    monkeypatch.setattr(store._client, "try_metrics", lambda run_id, entries: sent.append(len(entries)) or True)
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", float("inf"))
    for step in range(260):
        run.metrics({"a": 1.0, "b": 2.0}, step)
    run.flush()
    assert sent == [500, 20]


def test_metrics_reach_the_store_after_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = attempt(store)
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", 0.0)
    run.metrics({"loss": 3.0}, 0)
    assert store.metrics(run.id) == {"loss": 3.0}


def test_numbers_that_are_none_do_not_stop_a_run(store: Store) -> None:
    run = attempt(store)
    run.metrics({"nan": float("nan"), "inf": float("inf"), "fine": 1.0}, 5)
    run.flush()
    assert store.metrics(run.id)["fine"] == 1.0


def test_texts_files_and_tables_lie_beside_the_payload(store: Store, tmp_path: Path) -> None:
    run = attempt(store)
    (tmp_path / "plot.png").write_bytes(b"png")
    run.text("notes/first.txt", "hello")
    run.file(tmp_path / "plot.png", "plots")
    run.table("samples.json", [{"prompt": "p", "n": 1}, {"prompt": "q", "more": "x"}])
    folder = payload(store, run.id).parent
    assert (folder / "notes" / "first.txt").read_text() == "hello"
    assert (folder / "plots" / "plot.png").read_bytes() == b"png"
    assert json.loads((folder / "samples.json").read_text())["columns"] == ["prompt", "n", "more"]


@pytest.mark.parametrize("path", ["output/x", "../x", "/x", "a/../../x", "MANIFEST.json", ""])
def test_nothing_else_is_written_into_the_payload(store: Store, path: str) -> None:
    run = attempt(store)
    with pytest.raises(ValueError, match="no place beside the payload"):
        run.text(path, "x")


def test_a_pipeline_ends_with_its_document(store: Store, about: Callable[..., PipelineInfo]) -> None:
    pipeline = store.parent_runs.begin(about("demo", {"a": {"b": 1}}))
    store.parent_runs.end(pipeline, "FINISHED", {"stages": []})
    run = store._client.get_run(pipeline)
    assert run.info.status == "FINISHED"
    assert "run.json" in [entry.path for entry in store._client.list_artifacts(pipeline)]
    assert run.data.params == {"a.b": "1"}


def test_threads_share_a_store(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            run = attempt(store, key=str(number) * 64)
            for step in range(50):
                run.metrics({"loss": 1.0}, step)
            run.end("FAILED")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {(r.key[0], r.status) for r in store.records()} == {(n, "FAILED") for n in "0123"}


# Finding


def test_ids_by_prefix_and_uri(store: Store) -> None:
    run_id = attempt(store).id
    for form in (
        run_id,
        run_id[:8],
        run_id[:4],
        f"runs:/{run_id}",
        f"runs:/{run_id}/output/policy",
        f" {run_id.upper()} ",
    ):
        assert store.resolve(form) == run_id


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (ABSENT, "there is no artifact '0{32}'"),
        ("00000", "there is no artifact '00000'"),
        ("000", "too short for an ID"),
        ("", "is not an artifact ID"),
        ("x' OR '1", "is not an artifact ID"),
        ("00%0", "is not an artifact ID"),
        ("../../etc", "is not an artifact ID"),
        ("0" * 33, "is not an artifact ID"),
    ],
)
def test_references_that_mean_nothing(store: Store, reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.resolve(reference)


def test_an_ambiguous_prefix_lists_what_it_could_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import uuid

    ids = iter(["abcd1" + "0" * 27, "abcd2" + "0" * 27])
    original = uuid.uuid4
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(next(ids)) if ids else original())
    first, second = attempt(store, name="one").id, attempt(store, name="two").id
    monkeypatch.setattr(uuid, "uuid4", original)
    with pytest.raises(UsageError) as caught:
        store.resolve("abcd")
    message = str(caught.value)
    assert message.startswith("'abcd' is ambiguous")
    assert f"{first}  number · one  RUNNING" in message
    assert f"{second}  number · two  RUNNING" in message
    assert store.resolve("abcd2") == second


def test_the_earliest_finished_artifact_of_a_key_is_found(store: Store, make: Callable[..., Any]) -> None:
    first = make("number")
    second = make("number", force=True)
    key = store.record(first.id).key
    attempt(store, key=key)
    attempt(store, key=key).end("FAILED")
    assert [record.id for record in store.finished(key)] == [first.id, second.id]
    assert store.finished("0" * 64) == []


def test_finished_without_a_digest_is_not_an_artifact(store: Store) -> None:
    run = attempt(store)
    store._client.set_terminated(run.id, "FINISHED")
    assert store.finished("e" * 64) == []
    assert not store.record(run.id).finished


def test_records_go_through_all_pages_newest_first(
    store: Store, about: Callable[..., PipelineInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.artifacts.store.PAGE", 2)
    made = [attempt(store, stage=stage).id for stage in ("number", "double", "number", "number", "double")]
    store.parent_runs.begin(about())
    assert {record.id for record in store.records()} == set(made)
    starts = [record.started for record in store.records()]
    assert starts == sorted(starts, reverse=True)
    assert {record.id for record in store.records("double")} == {made[1], made[4]}


def test_users_of_an_artifact(store: Store, make: Callable[..., Any]) -> None:
    number = make("number")
    double = make("double", {"number": number.id})
    both = make("add", {"number": number.id, "double": double.id})
    assert {record.id for record in store.users(number.id)} == {double.id, both.id}
    assert [record.id for record in store.users(double.id[:8])] == [both.id]
    assert store.users(both.id) == []


# Reading


def test_an_artifact_is_read_in_place(store: Store, make: Callable[..., Any]) -> None:
    number = make("number", value=5)
    artifact = store.fetch(number.id[:6], stages=("number",))
    assert artifact.id == number.id
    assert artifact.path == payload(store, number.id)
    assert artifact.config == {"seed": 0, "value": 5, "note": ""}
    assert artifact.digest == store.record(number.id).digest == store.manifest(number.id).digest()
    assert store.verify(number.id) == []


def swapped_files(store: Store, run_id: str) -> None:
    (payload(store, run_id) / "weights.bin").write_bytes(bytes(reversed(range(256))) * 40)


def cut_short(store: Store, run_id: str) -> None:
    with (payload(store, run_id) / "weights.bin").open("r+b") as file:
        file.truncate(100)


def deleted_file(store: Store, run_id: str) -> None:
    (payload(store, run_id) / "deep" / "value.json").unlink()


def added_file(store: Store, run_id: str) -> None:
    (payload(store, run_id) / "deep" / "more.json").write_text("1")


def deleted_manifest(store: Store, run_id: str) -> None:
    (payload(store, run_id).parent / "MANIFEST.json").unlink()


def linked_manifest(store: Store, run_id: str) -> None:
    manifest = payload(store, run_id).parent / "MANIFEST.json"
    manifest.rename(store.home / "elsewhere.json")
    manifest.symlink_to(store.home / "elsewhere.json")


def edited_manifest(store: Store, run_id: str) -> None:
    manifest = payload(store, run_id).parent / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))


def escaping_manifest(store: Store, run_id: str) -> None:
    manifest = payload(store, run_id).parent / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("weights.bin", "../../../secret"))


def nan_manifest(store: Store, run_id: str) -> None:
    manifest = payload(store, run_id).parent / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"value": 1\n', '"value": NaN\n'))


def tag_edit(name: str, value: str) -> Callable[[Store, str], None]:
    return lambda store, run_id: store._client.set_tag(run_id, name, value)


DAMAGES: list[tuple[Callable[[Store, str], None], str]] = [
    (swapped_files, "weights.bin: its content has changed"),
    (cut_short, "weights.bin: 100 bytes, expected 10240"),
    (deleted_file, "deep/value.json: missing"),
    (added_file, "deep/more.json: not in the manifest"),
    (deleted_manifest, "MANIFEST.json: missing"),
    (linked_manifest, "MANIFEST.json: not a plain file"),
    (edited_manifest, "MANIFEST.json: does not agree with the tag dpr.digest"),
    (escaping_manifest, "'../../../secret' would leave the artifact"),
    (nan_manifest, "MANIFEST.json: Out of range float"),
    (tag_edit("dpr.digest", "0" * 64), "does not agree with the tag dpr.digest"),
    (tag_edit("dpr.key", "0" * 64), "does not agree with the tag dpr.key"),
    (tag_edit("dpr.stage", "other"), "does not agree with the tag dpr.stage"),
    (tag_edit("dpr.version", "x"), "does not agree with the tag dpr.version"),
    (tag_edit("dpr.inputs", '{"number":"' + ABSENT + '"}'), "does not agree with the tag dpr.inputs"),
    (tag_edit("dpr.config", '{"seed":0,"value":2,"note":""}'), "does not agree with the tag dpr.config"),
    (tag_edit("dpr.config", "{broken"), "does not agree with the tag dpr.config"),
]


@pytest.mark.parametrize(("damage", "named"), DAMAGES)
def test_damage_is_refused_by_name(
    store: Store, make: Callable[..., Any], damage: Callable[[Store, str], None], named: str
) -> None:
    run_id = make("number").id
    damage(store, run_id)
    assert named in "; ".join(store.verify(run_id))
    with pytest.raises(DensePathError, match="is damaged") as caught:
        store.fetch(run_id)
    assert named in str(caught.value)
    assert not isinstance(caught.value, UsageError)


def test_another_artifacts_manifest_and_files_are_refused(store: Store, make: Callable[..., Any]) -> None:
    mine, theirs = make("number", value=1).id, make("number", value=2).id
    for name in ("MANIFEST.json", "output/weights.bin", "output/deep/value.json"):
        source, target = (payload(store, run_id).parent / name for run_id in (theirs, mine))
        target.write_bytes(source.read_bytes())
    assert store.verify(mine) == [
        "MANIFEST.json: does not agree with the tag dpr.digest",
        "MANIFEST.json: does not agree with the tag dpr.key",
        "MANIFEST.json: does not agree with the tag dpr.config",
        "MANIFEST.json: does not agree with the tag dpr.run",
        "MANIFEST.json: does not agree with the tag dpr.results",
    ]


def test_listing_survives_broken_tags(store: Store, make: Callable[..., Any]) -> None:
    run_id = make("number").id
    store._client.set_tag(run_id, "dpr.inputs", "[1")
    assert [record.inputs for record in store.records()] == [{}]


def test_what_was_never_finished_cannot_be_read(store: Store) -> None:
    run = attempt(store)
    run.end("FAILED", "it broke")
    with pytest.raises(UsageError, match=r"never finished \(its status is FAILED\)"):
        store.fetch(run.id)
    assert store.verify(run.id) == ["never finished (its status is FAILED)"]
    assert store.record(run.id).reason == "it broke"


def test_the_wrong_stage_is_named_with_the_right_one(store: Store, make: Callable[..., Any]) -> None:
    run_id = make("number").id
    with pytest.raises(
        UsageError, match=r"is an artifact of stage number; one of stage double or add is needed. .*--stage double"
    ):
        store.fetch(run_id, stages=("double", "add"))


def test_what_is_finished_cannot_be_ended_otherwise(store: Store, make: Callable[..., Any]) -> None:
    from tasks.artifacts.stage_run import StageRun

    run_id = make("number").id
    StageRun(run_id, store._client, None).end("KILLED")
    assert store.record(run_id).finished


# A store on another machine


@pytest.fixture
def remote(store: Store, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Store, str]:
    """An artifact whose files cannot be read in place."""
    run_id = make("number", value=8).id
    monkeypatch.setattr("tasks.artifacts.payloads.Payloads.root", lambda payloads, run: None)
    return store, run_id


def test_remote_files_are_downloaded_once_and_verified_each_time(
    remote: tuple[Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run_id = remote
    downloads: list[str] = []
    original = store._client._mlflow.download_artifacts
    monkeypatch.setattr(
        store._client._mlflow,
        "download_artifacts",
        lambda run, path, target=None: downloads.append(path) or _copied(original(run, path), target),
    )
    artifact = store.fetch(run_id)
    assert artifact.path == store.home / "cache" / run_id / "output"
    assert json.loads((artifact.path / "deep" / "value.json").read_text()) == 8
    store.fetch(run_id)
    assert downloads.count("output") == 1
    (artifact.path / "weights.bin").write_bytes(b"")
    store.fetch(run_id)
    assert downloads.count("output") == 2
    assert store.verify(run_id) == []
    assert downloads.count("output") == 3
    assert store.verify(run_id, quick=True) == []
    assert downloads.count("output") == 3


def _copied(source: str, target: str) -> str:
    """What MLflow does with a remote store, and leaves out with a local one."""
    import shutil

    destination = Path(target) / Path(source).name
    if Path(source).is_dir():
        shutil.copytree(source, destination)
    else:
        shutil.copy(source, destination)
    return str(destination)


def test_damage_in_a_remote_store_is_refused(remote: tuple[Store, str], monkeypatch: pytest.MonkeyPatch) -> None:
    store, run_id = remote
    original = store._client._mlflow.download_artifacts
    monkeypatch.setattr(
        store._client._mlflow,
        "download_artifacts",
        lambda run, path, target=None: _copied(original(run, path), target),
    )
    swapped_files(store, run_id)
    with pytest.raises(DensePathError, match=r"weights\.bin: its content has changed"):
        store.fetch(run_id)
