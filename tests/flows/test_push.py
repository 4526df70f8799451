import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from dpr_core.models.packaged import ORIGIN, PACKAGED
from flows.push import licence_of
from tasks.artifacts.store import Store
from tests.flows.conftest import Made, Result, run_tiny
from tests.loopback import Call, Loopback, Reply, serving

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::DeprecationWarning:httpx2")]

Dpr = Callable[..., Any]

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123456789"
REPOSITORY = "me/dpr-tiny"


class Hub:
    """What the hub answers to an upload, without a hub: files come by git LFS or in the commit itself."""

    def __init__(self, server: Loopback) -> None:
        self.url = server.url.removesuffix("/v1")
        self.exists: list[str] = []
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.created: dict[str, Any] = {}
        self.refused: dict[str, list[int]] = {}
        """Statuses that come before an answer, by what is asked."""
        self.asked: list[Call] = []
        self._stored: dict[str, bytes] = {}
        for name, method, pattern, answer in (
            ("create", "POST", "/api/repos/create", self._create),
            ("branch", "POST", "/api/models/me/dpr-tiny/branch/.*", lambda call: Reply({})),
            ("validate", "POST", "/api/validate-yaml", lambda call: Reply({"errors": [], "warnings": []})),
            ("info", "GET", "/api/models/me/dpr-tiny", self._info),
            ("tree", "GET", "/api/models/me/dpr-tiny/(tree|revision)/.*", self._tree),
            ("preupload", "POST", "/api/models/me/dpr-tiny/preupload/.*", self._preupload),
            ("batch", "POST", "/me/dpr-tiny.git/info/lfs/objects/batch", self._batch),
            ("put", "PUT", "/store/.*", self._put),
            ("commit", "POST", "/api/models/me/dpr-tiny/commit/.*", self._commit),
        ):
            server.route(method, pattern, self._answering(name, answer))

    def _answering(self, name: str, answer: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
        def reply(call: Call) -> Reply:
            self.asked.append(call)
            statuses = self.refused.get(name)
            return Reply({"error": "no"}, statuses.pop(0)) if statuses else answer(call)

        return reply

    def _create(self, call: Call) -> Reply:
        self.created = call.json
        status = 409 if self.exists else 200
        return Reply({"url": f"{self.url}/{REPOSITORY}", "error": "You already created this model repo"}, status)

    def _info(self, call: Call) -> Reply:
        return Reply({"id": REPOSITORY, "private": False, "siblings": [{"rfilename": name} for name in self.exists]})

    def _tree(self, call: Call) -> Reply:
        entries = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.exists]
        return Reply(json.dumps(entries), headers={"Content-Type": "application/json"})

    def _preupload(self, call: Call) -> Reply:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".safetensors") else "regular"

        paths = [each["path"] for each in call.json["files"]]
        return Reply({"files": [{"path": p, "uploadMode": mode(p), "shouldIgnore": False} for p in paths]})

    def _batch(self, call: Call) -> Reply:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/store/{each['oid']}"}}}
            for each in call.json["objects"]
        ]
        return Reply({"transfer": "basic", "objects": objects})

    def _put(self, call: Call) -> Reply:
        self._stored[call.path.rpartition("/")[2]] = call.data
        return Reply({})

    def _commit(self, call: Call) -> Reply:
        for line in map(json.loads, call.data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self._stored[value["oid"]]
                assert hashlib.sha256(self.files[value["path"]]).hexdigest() == value["oid"]
            elif line["key"] == "deletedFile":
                self.deleted.append(value["path"])
        return Reply({"commitUrl": f"{self.url}/{REPOSITORY}/commit/1", "commitOid": "1"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, dpr_process: Callable[..., Result]) -> Made:
    """In a home of its own: a card shows the newest report, and other tests make some."""
    return run_tiny(tmp_path_factory.mktemp("pushed") / "home", dpr_process)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as server:
        found = Hub(server)
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def test_a_policy_is_uploaded_with_a_card_of_its_run(
    dpr: Dpr, made: Any, open_store: Callable[[Path], Store], tmp_path: Path, hub: Hub
) -> None:
    hub.refused = {"batch": [503], "commit": [503]}
    done = dpr("push", made.id("reinforce"), REPOSITORY, "--private", "--branch", "trial", "--json", home=made.home)
    assert done.status == 0, done.stderr
    assert done.json["commit"] == f"{hub.url}/{REPOSITORY}/commit/1"
    assert hub.created["visibility"] == "private"
    assert hub.asked[-1].path.endswith("/commit/trial")
    assert {call.headers["authorization"] for call in hub.asked if "authorization" in call.headers} == {
        f"Bearer {TOKEN}"
    }
    assert TOKEN not in done.stdout + done.stderr

    assert dpr("push", made.id("reinforce"), REPOSITORY, "--dry-run", tmp_path / "out", home=made.home).status == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == hub.files
    assert dpr("export", made.id("reinforce"), tmp_path / "plain", home=made.home).status == 0
    assert {*hub.files} == {*(file.name for file in (tmp_path / "plain").iterdir()), "README.md"}

    card = ModelCard(hub.files["README.md"].decode())
    table = json.loads((open_store(made.home).fetch(made.id("report")).path / "table.json").read_text())
    [row] = [row for row in table["rows"] if row["policy"] == "DPR"]
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["win_rate"].metric_value == pytest.approx(row["win_rate"], abs=1e-4)
    low, high = row["win_rate_interval"]
    assert f"({low:.1f} to {high:.1f})" in results["win_rate"].metric_name.replace("95% interval ", "")
    assert results["accuracy"].metric_value == pytest.approx(100 * row["accuracy"], abs=1e-4)
    assert card.data.license is None
    sample = open_store(made.home).fetch(made.id("subsample")).path / "demonstrations.jsonl"
    for words in (
        f"{row['win_rate']:.1f} \\[{low:.1f}, {high:.1f}\\]",
        hashlib.sha256(sample.read_bytes()).hexdigest(),
        "| algorithm.kl\\_weight | 0.1 |",
        "lab judged by: verifiable",
        "{system}{prompt}",
    ):
        assert words in card.text
    assert "extrapolated" not in card.text
    assert str(made.home) not in card.text


def test_a_repository_that_is_there_is_taken_on_request_alone(dpr: Dpr, made: Any, hub: Hub) -> None:
    stale = ["adapter_config.json", "chat_template.jinja", "model-00001-of-00002.safetensors"]
    hub.exists = ["README.md", *stale, "picture.png"]
    said = dpr("push", made.id("sft"), REPOSITORY, home=made.home).assert_refused(2, REPOSITORY, "already", "--update")
    assert "sent" not in said
    private = dpr("push", made.id("sft"), REPOSITORY, "--update", "--private", home=made.home)
    private.assert_refused(2, "public", "--private")
    assert not hub.files
    assert dpr("push", made.id("sft"), REPOSITORY, "--update", home=made.home).status == 0
    assert sorted(hub.deleted) == stale
    assert "SFT on lab" in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    ("refused", "status", "words"),
    [
        ({"create": [401]}, 2, ["hf auth login", "HF_TOKEN"]),
        ({"create": [403]}, 2, [REPOSITORY, "write access"]),
        ({"preupload": [403]}, 2, [REPOSITORY, "write access"]),
        ({"create": [500]}, 1, [REPOSITORY, "could not be uploaded", "HF_ENDPOINT"]),
        ({"commit": [500] * 3}, 1, [REPOSITORY, "could not be uploaded", "--update"]),
    ],
)
def test_what_the_hub_refuses_is_said(
    dpr: Dpr, made: Any, hub: Hub, refused: dict[str, list[int]], status: int, words: list[str]
) -> None:
    hub.refused = refused
    result = dpr("push", made.id("sft"), REPOSITORY, home=made.home)
    result.assert_refused(status, *words)
    assert TOKEN not in result.stderr
    assert not hub.files


def test_without_a_network_nothing_is_uploaded(dpr: Dpr, made: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    dpr("push", made.id("sft"), REPOSITORY, home=made.home).assert_refused(1, "could not be uploaded", "network")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{sft}", "no such name"], ["'no such name' is no name of a repository"]),
        (["{sft}", "me/a--b"], ["'me/a--b' is no name of a repository"]),
        (["{reward}", REPOSITORY], ["--part sft", "--part ref"]),
        (["{subsample}", REPOSITORY], ["stage subsample"]),
        (["{sft}", REPOSITORY, "--license", "Mine: all"], ["--license", "apache-2.0"]),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_it_begins(
    dpr: Dpr, made: Any, hub: Hub, arguments: list[str], words: list[str]
) -> None:
    ids = {name: made.id(name) for name in ("sft", "reward", "subsample")}
    dpr("push", *(each.format(**ids) for each in arguments), home=made.home).assert_refused(2, *words)
    assert not hub.asked


def test_a_reference_has_a_card_without_the_results_of_another_model(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = dpr("push", made.id("reward"), "ref", "--part", "ref", "--license", "mit", "--dry-run", out, home=made.home)
    assert told.status == 0, told.stderr
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.eval_results) == ("mit", None)
    assert "No report has this model yet" in card.text


def test_the_licence_of_a_backbone_is_that_of_its_package_or_card(tmp_path: Path) -> None:
    def of(folder: Path) -> Any:
        return licence_of({"name": str(folder), "content": "0", "revision": None}, None)

    for name, expected in (("smollm2-135m", "apache-2.0"), ("gemma-3-270m", "other")):
        (tmp_path / ORIGIN).write_text(json.dumps({"wheels": dict(PACKAGED[name].wheels)}))
        assert (of(tmp_path).id, PACKAGED[name].licence in of(tmp_path).words) == (expected, True)
    (tmp_path / ORIGIN).unlink()
    assert of(tmp_path).id == "unknown"
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# Model\n"
    )
    assert (of(tmp_path).id, of(tmp_path).name, of(tmp_path).link) == ("other", "mine", "LICENSE")
    (tmp_path / "README.md").write_text("---\nlicense: [mit]\n---\n")
    assert of(tmp_path).id == "unknown"
