"""Whatever is done to a finished artifact: it is refused and named, nothing is built on it, and it is made again.

`python -m pytest -q -s tests/tasks/test_damage.py` prints one row for each kind of damage.
"""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import DensePathError
from dpr_core.hashing import HashCache
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome

Make = Callable[..., Outcome]
Damage = Callable[["Chain"], None]
SECRET = "../../../secret"


@dataclass
class Chain:
    """number -> double, and another number beside them. The damage is done to `number`."""

    store: Store
    number: Outcome
    other: Outcome
    double: Outcome

    @property
    def root(self) -> Path:
        return self._root(self.number)

    @property
    def payload(self) -> Path:
        return self.root / "output"

    @property
    def weights(self) -> Path:
        return self.payload / "weights.bin"

    @property
    def manifest(self) -> Path:
        return self.root / "MANIFEST.json"

    @property
    def others(self) -> Path:
        return self._root(self.other)

    def _root(self, outcome: Outcome) -> Path:
        return self.store.home / "artifacts" / outcome.id / "artifacts"

    def tag(self, name: str, value: str) -> None:
        self.store._client.set_tag(self.number.id, name, value)

    def rewrite(self, change: Callable[[dict[str, Any]], object]) -> None:
        document = json.loads(self.manifest.read_text())
        change(document)
        self.manifest.write_text(json.dumps(document))


@pytest.fixture
def chain(store: Store, make: Make) -> Chain:
    number = make("number")
    return Chain(store, number, make("number", value=5), make("double", {"number": number.id}))


def flipped_bit(chain: Chain) -> None:
    content = bytearray(chain.weights.read_bytes())
    content[1234] ^= 1
    chain.weights.write_bytes(content)


def truncated(chain: Chain) -> None:
    with chain.weights.open("r+b") as file:
        file.truncate(100)


def missing(chain: Chain) -> None:
    (chain.payload / "deep" / "value.json").unlink()


def payload_gone(chain: Chain) -> None:
    shutil.rmtree(chain.payload)


def extra(chain: Chain) -> None:
    (chain.payload / "deep" / "more.json").write_text("1")


def pickle_beside_the_weights(chain: Chain) -> None:
    (chain.payload / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def symlink(chain: Chain) -> None:
    chain.weights.rename(chain.store.home / "same.bin")
    chain.weights.symlink_to(chain.store.home / "same.bin")


def symlinked_payload(chain: Chain) -> None:
    chain.payload.rename(chain.store.home / "same")
    chain.payload.symlink_to(chain.store.home / "same")


def payload_of_another(chain: Chain) -> None:
    shutil.rmtree(chain.payload)
    shutil.copytree(chain.others / "output", chain.payload)


def manifest_of_another(chain: Chain) -> None:
    shutil.copy(chain.others / "MANIFEST.json", chain.manifest)


def all_of_another(chain: Chain) -> None:
    payload_of_another(chain)
    manifest_of_another(chain)


def manifest_gone(chain: Chain) -> None:
    chain.manifest.unlink()


def manifest_leaves_the_folder(chain: Chain) -> None:
    chain.rewrite(lambda document: document["files"][0].update(path=SECRET))


def manifest_lists_a_pickle(chain: Chain) -> None:
    pickle_beside_the_weights(chain)
    chain.rewrite(lambda d: d["files"].append({"path": "pytorch_model.bin", "size": 4, "sha256": "0" * 64}))


def folder_for_a_file(chain: Chain) -> None:
    chain.weights.unlink()
    chain.weights.mkdir()


def dangling_link(chain: Chain) -> None:
    chain.weights.unlink()
    chain.weights.symlink_to(chain.store.home / "nowhere")


def pipe_for_a_file(chain: Chain) -> None:
    chain.weights.unlink()
    os.mkfifo(chain.weights)


def folder_for_the_manifest(chain: Chain) -> None:
    chain.manifest.unlink()
    chain.manifest.mkdir()


def pipe_for_the_manifest(chain: Chain) -> None:
    chain.manifest.unlink()
    os.mkfifo(chain.manifest)


def digest_taken_away(chain: Chain) -> None:
    chain.store._client.delete_tag(chain.number.id, "dpr.digest")


def results_taken_away(chain: Chain) -> None:
    chain.store._client.delete_tag(chain.number.id, "dpr.results")


def run_edited(chain: Chain) -> None:
    chain.rewrite(lambda document: document["run"].update(description="Another."))


def run_taken_away(chain: Chain) -> None:
    chain.rewrite(lambda document: document.pop("run"))


def stage_taken_away(chain: Chain) -> None:
    chain.store._client.delete_tag(chain.number.id, "dpr.stage")


def edit(name: str, value: str) -> Damage:
    return lambda chain: chain.tag(name, value)


MATRIX: dict[str, tuple[Damage, str]] = {
    "a flipped bit": (flipped_bit, "weights.bin: its content has changed"),
    "a truncated file": (truncated, "weights.bin: 100 bytes, expected 10240"),
    "a missing file": (missing, "deep/value.json: missing"),
    "no payload at all": (payload_gone, "weights.bin: missing"),
    "an extra file": (extra, "deep/more.json: not in the manifest"),
    "a pickle beside the weights": (pickle_beside_the_weights, "pytorch_model.bin: not in the manifest"),
    "a pickle that the manifest lists": (
        manifest_lists_a_pickle,
        "MANIFEST.json: does not agree with the tag dpr.digest",
    ),
    "a symlink in place of a file": (symlink, "weights.bin: not a plain file"),
    "a symlink in place of the payload": (symlinked_payload, "output: not in the manifest"),
    "the payload of another artifact": (payload_of_another, "deep/value.json: its content has changed"),
    "the manifest of another artifact": (manifest_of_another, "MANIFEST.json: does not agree with the tag dpr.digest"),
    "payload and manifest of another": (all_of_another, "MANIFEST.json: does not agree with the tag dpr.key"),
    "a folder in place of a file": (folder_for_a_file, "weights.bin: missing"),
    "a dangling link in place of a file": (dangling_link, "weights.bin: not a plain file"),
    "a pipe in place of a file": (pipe_for_a_file, "weights.bin: not a plain file"),
    "a folder in place of the manifest": (folder_for_the_manifest, "MANIFEST.json: not a plain file"),
    "a pipe in place of the manifest": (pipe_for_the_manifest, "MANIFEST.json: not a plain file"),
    "no manifest": (manifest_gone, "MANIFEST.json: missing"),
    "a manifest that leaves the folder": (manifest_leaves_the_folder, f"{SECRET!r} would leave the artifact"),
    "the tag dpr.digest edited": (edit("dpr.digest", "0" * 64), "does not agree with the tag dpr.digest"),
    "the tag dpr.digest taken away": (digest_taken_away, "the tag dpr.digest: missing"),
    "the tag dpr.key edited": (edit("dpr.key", "0" * 64), "does not agree with the tag dpr.key"),
    "the tag dpr.stage edited": (edit("dpr.stage", "double"), "does not agree with the tag dpr.stage"),
    "the tag dpr.stage taken away": (stage_taken_away, "does not agree with the tag dpr.stage"),
    "the tag dpr.version edited": (edit("dpr.version", "7"), "does not agree with the tag dpr.version"),
    "the tag dpr.inputs edited": (edit("dpr.inputs", '{"a": "b"}'), "does not agree with the tag dpr.inputs"),
    "the tag dpr.config edited": (edit("dpr.config", '{"value": 2}'), "does not agree with the tag dpr.config"),
    "the tag dpr.name edited": (edit("dpr.name", "other"), "does not agree with the tag dpr.name"),
    "the tag dpr.results edited": (edit("dpr.results", '{"value": 99.0}'), "does not agree with the tag dpr.results"),
    "the tag dpr.results taken away": (results_taken_away, "does not agree with the tag dpr.results"),
    "another setting of how": (
        edit("dpr.config", '{"execution": 7, "note": "", "seed": 0, "value": 1}'),
        "does not agree with the tag dpr.config",
    ),
    "what the manifest says of the run edited": (run_edited, "does not agree with the tag dpr.run"),
    "what the manifest says of the run taken away": (run_taken_away, "does not agree with the tag dpr.run"),
    "the tag dpr.run edited": (edit("dpr.run", "0" * 64), "does not agree with the tag dpr.run"),
    "the tag dpr.config broken": (edit("dpr.config", "{broken"), "does not agree with the tag dpr.config"),
}


@pytest.mark.parametrize("kind", MATRIX)
def test_damage(kind: str, chain: Chain, make: Make) -> None:
    store = chain.store
    damage, named = MATRIX[kind]
    damage(chain)

    listed = {record.id: problems() for record, problems in store.claims()}
    assert [run_id for run_id, problems in listed.items() if problems] == [chain.number.id]
    assert named in "; ".join(listed[chain.number.id])

    before = len(store.records())
    with pytest.raises(DensePathError) as refused:
        store.fetch(chain.number.id)
    with pytest.raises(DensePathError) as not_built_on:
        make("double", {"number": chain.number.id}, factor=9)
    assert len(store.records()) == before
    assert chain.number.id[:8] in str(not_built_on.value)

    again = make("number")
    assert (again.status, again.id != chain.number.id) == ("ran", True)
    assert store.verify(again.id) == []
    assert make("number").id == again.id
    # The chain is whole again: what was built on the damaged one is built on its twin, to the byte.
    assert make("double", {"number": again.id}).id == chain.double.id
    first = str(refused.value).splitlines()[0].replace(chain.number.id, "ID").replace(chain.number.id[:8], "ID")
    print(f"\n| {kind} | {first} | {'; '.join(listed[chain.number.id])} | as a new artifact, and the chain is whole |")


def metric_logged_again(chain: Chain) -> None:
    chain.store._client.log_metric(chain.number.id, "value", 99.0, step=1000)


def settings_edited(chain: Chain) -> None:
    (chain.root / "config.yaml").write_text("value: 99\n")


def settings_gone(chain: Chain) -> None:
    (chain.root / "config.yaml").unlink()


SHOWN: dict[str, tuple[Damage, str]] = {
    "a metric": (metric_logged_again, "the metric value: 99.0, published as 1.0"),
    "a file beside the payload": (settings_edited, "config.yaml: 10 bytes, expected"),
    "no file beside the payload": (settings_gone, "config.yaml: missing"),
    "the pipeline": (edit("mlflow.parentRunId", "0" * 32), "the tag mlflow.parentRunId: has changed"),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_what_is_only_shown_is_named_by_verify_and_never_read(kind: str, chain: Chain, make: Make) -> None:
    damage, named = SHOWN[kind]
    damage(chain)
    [problem] = chain.store.verify(chain.number.id)
    assert problem.startswith(named)
    assert chain.store.beside(chain.number.id, "config.yaml") is None or "file" not in kind
    assert chain.store.metrics(chain.number.id)["value"] == 1.0
    again = make("number")
    assert (again.status, again.id, again.metrics) == ("reused", chain.number.id, {"value": 1.0})


def test_what_an_edited_manifest_says_is_not_told(chain: Chain) -> None:
    assert chain.store.beside(chain.number.id, "config.yaml") is not None
    chain.rewrite(lambda document: document["run"].update(metrics={"value": 99.0}))
    assert chain.store.metrics(chain.number.id)["value"] == 1.0
    assert chain.store.beside(chain.number.id, "config.yaml") is None


def test_an_artifact_of_an_earlier_version_is_sound(chain: Chain, make: Make) -> None:
    """Its manifest says nothing of its run."""
    digest = chain.store.record(chain.number.id).digest
    chain.rewrite(lambda document: document.pop("run"))
    chain.store._client.delete_tag(chain.number.id, "dpr.run")
    assert chain.store.manifest(chain.number.id).digest() == digest
    assert chain.store.verify(chain.number.id) == []
    assert chain.store.beside(chain.number.id, "config.yaml") is None
    assert make("number").id == chain.number.id


def test_a_manifest_of_a_later_version_is_read(chain: Chain) -> None:
    chain.rewrite(lambda document: document.update(colour="blue"))
    assert chain.store.verify(chain.number.id) == []


def test_a_record_is_believed_once_it_agrees_with_its_manifest(chain: Chain, make: Make) -> None:
    assert chain.store.published(chain.number.id).results == {"value": 1.0}
    chain.tag("dpr.results", '{"value": 99.0}')
    with pytest.raises(DensePathError, match="does not agree with the tag dpr.results"):
        chain.store.published(chain.number.id)
    again = make("number")
    assert chain.store.published(chain.number.id).id == again.id


UNREADABLE = ["output/weights.bin", "output/deep", "output", "MANIFEST.json"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_damaged_artifact(
    name: str, code: int, chain: Chain, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind root, so that what would read it is told so instead."""
    bad = chain.root / name
    is_bad = lambda path: Path(path) == bad  # noqa: E731
    for module, function in ((Path, "open"), (io, "open"), (os, "scandir")):
        original = getattr(module, function)

        def refusing(path: Any, *rest: Any, original: Any = original, **options: Any) -> Any:
            if isinstance(path, str | Path) and is_bad(path):
                raise OSError(code, os.strerror(code), str(path))
            return original(path, *rest, **options)

        monkeypatch.setattr(module, function, refusing)
    monkeypatch.setattr("dpr_core.hashing.KNOWN", HashCache())
    listed = {record.id: problems() for record, problems in chain.store.claims()}
    top = "output" if name == "output/deep" else name.removeprefix("output/")
    assert listed.pop(chain.number.id)[0] == f"{top}: cannot be read ({os.strerror(code)})"
    assert set(map(tuple, listed.values())) == {()}
    with pytest.raises(DensePathError, match=f"is damaged: {top}: cannot be read"):
        chain.store.fetch(chain.number.id)
    assert make("number").status == "ran"


def foreign_run(store: Store, experiment: str) -> str:
    """A run that somebody else's program made and finished."""
    run_id = str(store._client.create_run(experiment, tags={"team": "other"}, run_name="theirs").info.run_id)
    store._client.log_text(run_id, "{}", "output/value.json")
    store._client.set_terminated(run_id, "FINISHED")
    return run_id


@pytest.mark.parametrize("where", ["in this experiment", "in another experiment"])
def test_a_run_of_another_project_is_no_artifact(store: Store, make: Make, where: str) -> None:
    other = store._client.create_experiment("other") if where == "in another experiment" else store._experiment
    theirs = foreign_run(store, other)
    with pytest.raises(DensePathError, match=f"there is no artifact '{theirs}'"):
        store.fetch(theirs)
    with pytest.raises(DensePathError, match="input number of double: there is no artifact"):
        make("double", {"number": theirs})
    assert store.records() == []
    assert store.claims() == []


def test_an_artifact_of_another_experiment_is_not_taken_for_ours(store: Store, make: Make) -> None:
    """Tags, manifest and files are all sound: it is only not of this project."""
    ours = make("number")
    source = store._client.get_run(ours.id)
    other = store._client.create_experiment("other")
    copy = store._client.create_run(other, tags=dict(source.data.tags), run_name="number").info
    shutil.copytree(store.home / "artifacts" / ours.id / "artifacts", Path(copy.artifact_uri.removeprefix("file://")))
    store._client.set_terminated(copy.run_id, "FINISHED")
    with pytest.raises(DensePathError, match="there is no artifact"):
        store.fetch(copy.run_id)
    assert [record.id for record in store.finished(store.record(ours.id).key)] == [ours.id]
