import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpr_core.config.model import LabBackboneConfig
from dpr_core.lab.backbone import untrained
from flows import deployed, recipes, wiring
from flows.cli import completion
from flows.dispatch import dispatch
from flows.importing import import_request, on_sft
from tests.trained_elsewhere import demonstrations, train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TINY = Path(__file__).with_name("tiny.yaml")
SETTINGS = ("--set", "backbone.dtype=float32", "--set", "subsample.template.text='{prompt}\n'")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    train(*untrained(LabBackboneConfig(width=16, layers=1, heads=2, feed_forward=16)), folder / "run")
    demonstrations(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(trained: Path) -> list[object]:
    pair = [trained / "run" / "checkpoint-4", trained / "run" / "checkpoint-2"]
    return ["import", *pair, "--data", trained / "demonstrations.jsonl", *SETTINGS, "--json"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, dpr_process: Callable[..., Any], arguments: list[object]) -> Path:
    """A store into which the two were imported by the command, from its start to its end."""
    home = tmp_path_factory.mktemp("imported") / "home"
    result = dpr_process(*arguments, home=home)
    assert result.status == 0, result.stderr
    return home


@pytest.fixture
def sft(home: Path, dpr: Callable[..., Any], arguments: list[object]) -> str:
    """The artifact, by the same command once more, which makes nothing."""
    stages = dpr(*arguments, home=home).json["stages"]
    assert [entry["status"] for entry in stages] == ["reused", "reused"]
    return str(stages[1]["id"])


@pytest.mark.integration
def test_what_is_imported_is_an_sft_artifact_that_everything_else_is_built_on(
    sft: str, home: Path, trained: Path, dpr: Callable[..., Any], open_store: Callable[..., Any], run_graph: Any
) -> None:
    store = open_store(home)
    for part, step in (("1.0", 4), ("0.5", 2)):
        kept = load_file(store.fetch(sft).path / "checkpoints" / part / "model.safetensors")
        given = load_file(trained / "run" / f"checkpoint-{step}" / "model.safetensors")
        assert kept.keys() == given.keys()
        assert all(torch.equal(weight, given[name]) for name, weight in kept.items())
    config = recipes.load(on_sft(store, sft[:8], str(TINY)), ["evaluation.controls={}"])
    outcomes = run_graph(store, wiring.nodes(config))
    assert (outcomes["sft"].id, outcomes["sft"].status) == (sft, "reused")
    assert outcomes["reinforce"].status == outcomes["report"].status == "ran"
    assert dpr("verify", "--all", "--json", home=home).status == 0
    plan = dpr("run", TINY, "--sft", sft[:8], "--plan", "--set", "evaluation.controls={}", "--json", home=home).json
    assert {step["status"] for step in plan["plan"]} == {"reuse"}
    rerun = dpr("rerun", sft, "--downstream", "--plan", "--json", home=home).json
    assert {step["status"] for step in rerun["plan"]} == {"reuse"}


def test_an_artifact_stays_when_the_folders_are_gone(
    sft: str, home: Path, trained: Path, dpr: Callable[..., Any]
) -> None:
    moved = trained.with_name("moved")
    (trained / "run").rename(moved)
    try:
        plan = dpr("run", TINY, "--sft", sft, "--plan", "--json", home=home).json["plan"]
    finally:
        moved.rename(trained / "run")
    assert {step["stage"]: step["status"] for step in plan}["sft"] == "reuse"


def test_a_recipe_goes_on_from_an_sft_run_of_ours_too(
    made: Any, dpr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dpr("run", TINY, "--sft", made.id("sft"), "--plan", "--json", home=made.home)
    assert {step["status"] for step in found.json["plan"]} == {"reuse"}
    dpr("run", TINY, "--sft", made.id("reward"), home=made.home).assert_refused(2, "--sft", "reward")
    requests: list[Any] = []
    monkeypatch.setattr(deployed, "run_graph", lambda request: requests.append(request) or {})
    deployed.run.fn(str(TINY), ["sft.seed=7"], sft=made.id("sft"))
    assert requests[0].config.sft.seed == 7
    assert requests[0].config.subsample.source.rows == 32


def test_the_backbone_is_no_reference_where_it_is_not_known(sft: str, home: Path, dpr: Callable[..., Any]) -> None:
    asked = dpr("run", TINY, "--sft", sft, "--set", "reward.reference=0", home=home)
    asked.assert_refused(2, "reward.reference is 0", "--backbone")


@pytest.mark.integration
def test_the_card_of_an_import_has_no_folder_of_this_machine_and_no_optimizer(
    sft: str, home: Path, trained: Path, tmp_path: Path, dpr: Callable[..., Any]
) -> None:
    assert dpr("push", sft, "me/sft", "--dry-run", tmp_path / "out", home=home).status == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Imported, of an unknown backbone: checkpoint-4, hash" in card
    for words in (str(trained), "base_model", "learning", "batch"):
        assert words not in card


@pytest.mark.integration
def test_the_reference_is_what_was_imported_where_that_is_another_share(
    trained: Path, tmp_path: Path, dpr: Callable[..., Any], open_store: Callable[..., Any], run_graph: Any
) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    for step, named in ((2, 1), (4, 3)):
        file = run / f"checkpoint-{step}" / "trainer_state.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "global_step": named}))
    request = import_request(
        str(run / "checkpoint-4"), str(run / "checkpoint-2"), recipe=str(TINY), assignments=["backbone.dtype=float32"]
    )
    assert request.sft.checkpoints == (0.333333, 1.0)
    store = open_store(tmp_path / "home")
    sft = run_graph(store, dispatch(request, store).nodes)["sft"].id
    assert on_sft(store, sft, {"extends": str(TINY), "reward": {"reference": 0.5}})["reward"]["reference"] == 0.333333


def test_what_comes_from_the_hub_is_named_by_the_commit_that_is_there(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"half": "checkpoint-2", None: "checkpoint-4"}
    asked: list[str | None] = []

    def fetch(name: str, *, revision: str | None, **_: object) -> str:
        asked.append(revision)
        return str(trained / "run" / steps.get(revision, str(revision)))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    request = import_request("a/model", "a/model@half", recipe=str(TINY))
    assert request.sft.imported is not None
    assert request.sft.imported.final.revision == "checkpoint-4"
    assert request.sft.imported.reference.revision == "checkpoint-2"
    assert asked[:2] == [None, "half"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--recipe", "nowhere"], ["no recipe 'nowhere'"]),
        ([], ["--data", "--recipe", "trained on"]),
        (["--data", "{data}", "--fraction", "0.4"], ["--fraction 0.4", "at 0.5 of the run"]),
        (["--data", "{data}", "--set", "reinforce.seed=1"], ["reinforce.seed", "backbone, subsample, sft"]),
        (["--data", "{data}", "--set", "sft.learning_rat=1"], ["learning_rat", "no such field"]),
    ],
)
def test_a_wrong_import_is_refused_in_a_sentence(
    changes: list[str], words: list[str], trained: Path, dpr: Callable[..., Any]
) -> None:
    given = [change.replace("{data}", str(trained / "demonstrations.jsonl")) for change in changes]
    pair = trained / "run" / "checkpoint-4", trained / "run" / "checkpoint-2"
    dpr("import", *pair, *given).assert_refused(2, *words)


def test_folders_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "out.txt").touch()
    monkeypatch.chdir(tmp_path)
    offered = {start: completion.folders(None, start) for start in ("o", "out/c", f"{tmp_path}/o", "x")}
    assert offered == {
        "o": [("out/", "")],
        "out/c": [("out/checkpoint-2/", "")],
        f"{tmp_path}/o": [(f"{tmp_path}/out/", "")],
        "x": [],
    }
