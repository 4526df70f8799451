"""An S3 server as the artifact store of an MLflow server: written, read, damaged, killed amid an upload, away."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.servers import Server, mlflow_server, running
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.store import Store
from tasks.run_stage import run_stage
from tests.services.conftest import UNDISTURBED, Steps, history, training

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
BUCKET = "artifacts"


@pytest.fixture
def bucket(s3: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    import boto3

    variables = {
        "MLFLOW_S3_ENDPOINT_URL": s3[1],
        "AWS_ACCESS_KEY_ID": "planted-key",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = boto3.resource("s3", endpoint_url=s3[1]).Bucket(BUCKET)
    made.create()
    made.objects.all().delete()
    return made


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    options = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--no-serve-artifacts"]
    found, address = mlflow_server(folder, *options, "--default-artifact-root", f"s3://{BUCKET}/runs")
    with running(found):
        yield address


@pytest.fixture
def store(bucket: Any, mlflow: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    return Store.open()


def key(bucket: Any, run_id: str, name: str) -> Any:
    [found] = [each for each in bucket.objects.all() if run_id in each.key and each.key.endswith(name)]
    return found


def test_an_artifact_goes_there_and_comes_back(store: Store, bucket: Any) -> None:
    outcome = run_stage(training(), Steps(seed=1), {}, store=store)
    kept = {each.key.split(outcome.id + "/artifacts/")[1] for each in bucket.objects.all()}
    assert kept == {"output/config.json", "output/deep/weights.bin", "MANIFEST.json", "config.yaml", "samples.json"}
    artifact = store.fetch(outcome.id)
    assert artifact.path.is_relative_to(store.home / "cache")
    assert (artifact.path / "deep" / "weights.bin").read_bytes() == bytes(range(256)) * 4096
    assert store.verify(outcome.id) == []
    assert run_stage(training(), Steps(seed=1), {}, store=store).status == "reused"
    assert history(store, outcome.id) == UNDISTURBED


def flipped(file: Any) -> None:
    body = bytearray(file.get()["Body"].read())
    body[len(body) // 2] ^= 1
    file.put(Body=bytes(body))


def cut(file: Any) -> None:
    file.put(Body=file.get()["Body"].read()[:100])


def deleted(file: Any) -> None:
    file.delete()


@pytest.mark.parametrize(
    ("damage", "name", "named"),
    [
        (flipped, "weights.bin", "deep/weights.bin: its content has changed"),
        (cut, "weights.bin", "deep/weights.bin: 100 bytes, expected 1048576"),
        (deleted, "weights.bin", "deep/weights.bin: missing"),
        (deleted, "output/config.json", "config.json: missing"),
        (flipped, "MANIFEST.json", "MANIFEST.json"),
        (deleted, "MANIFEST.json", "MANIFEST.json: missing"),
    ],
)
def test_damage_in_the_bucket_is_refused_by_name(store: Store, bucket: Any, damage: Any, name: str, named: str) -> None:
    outcome = run_stage(training(seconds=0), Steps(seed=2, steps=2), {}, store=store)
    damage(key(bucket, outcome.id, name))
    assert named in "; ".join(store.verify(outcome.id))
    with pytest.raises(DensePathError, match="is damaged") as caught:
        store.fetch(outcome.id)
    assert named in str(caught.value)


def test_a_file_too_many_is_refused(store: Store, bucket: Any) -> None:
    outcome = run_stage(training(seconds=0), Steps(seed=3, steps=2), {}, store=store)
    there = key(bucket, outcome.id, "weights.bin").key
    bucket.put_object(Key=there.replace("weights.bin", "more.bin"), Body=b"more")
    assert store.verify(outcome.id) == ["deep/more.bin: not in the manifest"]


KILLED = """
import os, sys
from tasks.run_stage import run_stage
from tasks.artifacts.store import Store
from tests.services.conftest import Steps, training
store, hook = Store.open(), sys.argv[1]
if hook == "amid a file":
    import boto3.s3.transfer
    import botocore.httpsession
    send = botocore.httpsession.URLLib3Session.send
    def half(self, request):
        if "weights.bin" in request.url:
            import http.client, urllib.parse
            parts = urllib.parse.urlsplit(request.url)
            line = http.client.HTTPConnection(parts.hostname, parts.port)
            line.putrequest("PUT", parts.path)
            for name, value in request.headers.items():
                line.putheader(name, value if isinstance(value, str) else value.decode())
            line.endheaders()
            line.send(b"half of it")
            os.kill(os.getpid(), 9)
        return send(self, request)
    botocore.httpsession.URLLib3Session.send = half
else:
    original = getattr(store._client._mlflow, "log_artifact" if hook == "between files" else "set_tag")
    def call(run_id, *args):
        if hook == "between files" and args[0].endswith("weights.bin") or args[0] == "dpr.digest":
            os.kill(os.getpid(), 9)
        return original(run_id, *args)
    setattr(store._client._mlflow, original.__name__, call)
run_stage(training(seconds=0), Steps(seed=4, steps=5), {}, store=store)
"""


@pytest.mark.parametrize("hook", ["between files", "amid a file", "before the digest"])
def test_killed_amid_an_upload_is_no_artifact_and_is_published_later(store: Store, bucket: Any, hook: str) -> None:
    before = {record.id for record in store.records()}
    killed = subprocess.run([sys.executable, "-c", KILLED, hook], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [record] = [each for each in store.records() if each.id not in before]
    assert not record.finished
    assert store.finished(record.key) == []
    with pytest.raises(UsageError, match="never finished"):
        store.fetch(record.id)

    def work_again(step: int) -> None:
        raise AssertionError("what is done is not done again")

    outcome = run_stage(training(work_again), Steps(seed=4, steps=5), {}, store=store)
    assert (outcome.id, outcome.status) == (record.id, "ran")
    assert store.verify(outcome.id) == []
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(store.record(outcome.id))
    store._client.delete_run(outcome.id)


def test_it_may_hang_while_it_is_read(store: Store, s3: tuple[Server, str]) -> None:
    outcome = run_stage(training(seconds=0), Steps(seed=5, steps=2), {}, store=store)
    s3[0].send(signal.SIGSTOP)
    again = threading.Timer(3.0, s3[0].send, [signal.SIGCONT])
    again.start()
    assert store.verify(outcome.id) == []
    again.join()


def test_it_may_be_away_when_a_stage_publishes(
    store: Store, s3: tuple[Server, str], bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def come_back() -> None:
        s3[0].start()
        bucket.create()

    def event(step: int) -> None:
        if step == 59:
            s3[0].stop()
            again.start()

    again = threading.Timer(5.0, come_back)
    outcome = run_stage(training(event), Steps(seed=6), {}, store=store)
    again.join()
    assert store.verify(outcome.id) == []
    assert history(store, outcome.id) == UNDISTURBED
    assert "does not answer" in caplog.text
    assert "planted-secret" not in caplog.text
