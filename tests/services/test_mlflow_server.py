"""An MLflow server that is stopped, hangs or is killed amid a stage: afterwards everything is there."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.servers import Server, mlflow_server, running
from dpr_core.errors import DensePathError
from tasks.artifacts.listed import Dataset, Model, Prompt, Trace, model_uri
from tasks.artifacts.parent_runs import PipelineInfo, PolicyRow, StoredRequest
from tasks.artifacts.store import Store
from tasks.run_stage import run_stage
from tests.services.conftest import UNDISTURBED, Steps, history, training

pytestmark = pytest.mark.services


@pytest.fixture
def server(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "server"
    found, address = mlflow_server(
        folder,
        "--backend-store-uri",
        f"sqlite:///{folder}/runs.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with running(found):
        yield found


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP])
def test_an_outage_amid_a_stage_loses_nothing(
    server: Server, how: signal.Signals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.artifacts.mlflow_client.PROBE_SECONDS", 0.3)
    store = Store.open()

    def event(step: int) -> None:
        if step == 10:
            server.send(how) if how == signal.SIGSTOP else server.stop(how)
        if step == 40:
            server.send(signal.SIGCONT) if how == signal.SIGSTOP else server.start()

    outcome = run_stage(training(event), Steps(), {}, store=store)
    assert "does not answer" in caplog.text
    assert history(store, outcome.id) == UNDISTURBED
    assert store.verify(outcome.id) == []
    assert len(store.records()) == 1


def test_it_may_be_away_for_a_minute(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Training goes on, and ends while it is away."""
    store = Store.open()
    trained: list[float] = []

    def event(step: int) -> None:
        if step == 10:
            server.stop(signal.SIGKILL)
            again.start()
        if step == 59:
            trained.append(time.monotonic() - started)

    again = threading.Timer(60.0, server.start)
    started = time.monotonic()
    outcome = run_stage(training(event), Steps(), {}, store=store)
    again.join()
    assert trained[0] < 30, "the loop was not held up"
    assert time.monotonic() - started > 60
    assert history(store, outcome.id) == UNDISTURBED
    assert store.verify(outcome.id) == []
    assert "answers again" in caplog.text


def test_away_for_too_long_it_goes_on_by_the_same_command(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DPR_PATIENCE_SECONDS", "1")
    began: list[int] = []

    def event(step: int) -> None:
        began.append(step)
        if began == list(range(11)):
            server.stop(signal.SIGKILL)

    stage = training(event, seconds=0.1)
    with pytest.raises(DensePathError, match="has not answered for"):
        run_stage(stage, Steps(), {}, store=Store.open())
    assert began[-1] < 59, "it ended amid the loop"
    last = began[-1]
    server.start()
    store = Store.open()
    outcome = run_stage(stage, Steps(), {}, store=store)
    assert began[last + 1] == last + 1, "it went on where it had ended"
    assert history(store, outcome.id) == UNDISTURBED
    assert [record.id for record in store.records()] == [outcome.id]


def test_what_is_listed_for_people_is_listed_by_a_server_too(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open()
    outcome = run_stage(training(seconds=0), Steps(), {}, store=store)
    client, data = store._client, Dataset("lab", "c" * 64, "code", {"seed": 0}, "training", ("prompt",), 8)
    trace = Trace("d" * 32, "judged", {"question": ["1?"]}, "VERDICT: A", "candidate", 1.0, "gpt-4o", True)
    parent = store.parent_runs.begin(PipelineInfo("demo", "What it is.", {}, StoredRequest({"flow": "toy"})))
    row = PolicyRow("DPR", "", {"win_rate": 0.75}, {"training": outcome.id}, {})
    source = model_uri(outcome.id, "deep")
    for _ in range(2):
        run = client.get_run(outcome.id)
        measured = [("accuracy", 0.5, 1, 1)]
        client.list_datasets(outcome.id, [data])
        client.list_models(run, "training", {"steps": 60}, [Model("training", "deep", 60, {"accuracy"})], measured)
        client.measure_model(run, source, data, measured)
        client.list_traces(run, Prompt("dense-path-judge", "Between {{mark}}.", "sha256-1"), [trace])
        store.parent_runs.show_policies(parent, [row])
        store.registered_models.promote(outcome.id, source, "steps", "champion", {}, "")
    assert not [record.message for record in caplog.records if "not listed" in record.message]
    run = client.get_run(outcome.id)
    [listed] = client.search_logged_models([store._experiment])
    assert [listed.model_id] == [output.model_id for output in run.outputs.model_outputs]
    assert {(metric.key, metric.value) for metric in listed.metrics} == {("accuracy", 0.5)}
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["lab"]
    assert [len(each.info.assessments) for each in client.search_traces(locations=[store._experiment])] == [1]
    assert [each.title for each in store.registered_models.of(outcome.id)] == ["steps version 1 @champion"]
    assert [each.info.run_name for each in client.search_runs([store._experiment], "tags.`dpr.policy` = 'DPR'")] == [
        "DPR"
    ]
    assert store.verify(outcome.id) == []
