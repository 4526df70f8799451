"""Deployed flows: what their forms say, whose settings a single stage has, and what is refused before work."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from dpr_core.errors import UsageError
from flows import deployed
from flows.requests import RunRequest, StageRequest
from tasks.artifacts.store import Store
from tasks.registry import STAGES

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"
TINY = str(Path(__file__).with_name("tiny.yaml"))

Ask = Callable[..., StageRequest]


@pytest.fixture
def asked(made: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """`asked("reinforce", reward=...)`: what the deployed flow asks for; an input is the name of a stage made."""
    requests: list[StageRequest] = []

    def take(request: StageRequest) -> dict[str, Any]:
        requests.append(request)
        return {"stages": [{"id": "0" * 32}]}

    def ask(stage: str, **parameters: Any) -> StageRequest:
        references = {"like", *STAGES[stage].inputs} & parameters.keys()
        named = {name: f"runs:/{made.id(parameters[name])[:12]}" for name in references}
        flow = getattr(deployed, stage)
        flow.fn(**dict.fromkeys(flow.parameters.properties) | {"force": False} | parameters | named)
        return requests[-1]

    monkeypatch.setenv("DPR_HOME", str(made.home))
    monkeypatch.setattr(deployed, "run_graph", take)
    return ask


def test_every_deployment_says_what_it_is_and_helps_with_each_field() -> None:
    deployments = yaml.safe_load(FILE.read_text())["deployments"]
    names = set()
    for each in deployments:
        flow = load_flow_from_entrypoint(each["entrypoint"])
        names.add(f"{flow.name}/{each['name']}")
        assert {"dense-path"} < set(each["tags"])
        assert flow.description
        assert "Args:" not in flow.description
        assert set(each.get("parameters", {})) <= set(flow.parameters.properties)
        for name, field in flow.parameters.properties.items():
            assert field.get("description"), f"{each['entrypoint']}: {name}"
    assert names == {
        *(f"stage/{stage}" for stage in STAGES),
        *("dense-path/run", "rerun/rerun", "sweep/sweep", "placed/cpu", "placed/gpu", "placed/gpu8"),
    }


def test_a_stage_has_the_settings_and_the_inputs_of_another_but_for_what_is_said(made: Any, asked: Ask) -> None:
    with_gamma = asked("reinforce", like="reinforce", overrides=["algorithm.gamma=0.95"])
    stored = Store.open().record(made.id("reinforce"))
    assert with_gamma.inputs == stored.inputs == {"reward": made.id("reward")}
    assert with_gamma.config["algorithm"] == stored.config["algorithm"] | {"gamma": 0.95}
    assert {name for name in stored.config if with_gamma.config[name] != stored.config[name]} == {"algorithm"}
    other = asked("answer", like="answer DPR on lab", policy="sft")
    assert other.inputs == {"policy": made.id("sft")}
    assert other.config == Store.open().record(made.id("answer DPR on lab")).config
    report = asked("report", like="report")
    assert report.inputs == Store.open().record(made.id("report")).inputs
    alone = {"DPR on lab": made.id("judge DPR on lab")}
    assert asked("report", like="report", inputs=alone).inputs == alone


def test_a_stage_has_the_settings_of_a_recipe_by_its_name_or_the_only_ones(made: Any, asked: Ask) -> None:
    request = asked("reinforce", reward="reward", recipe=TINY, overrides=["seed=5"])
    stored = Store.open().record(made.id("reinforce"))
    assert request.config == stored.config | {"seed": 5}
    text = Path(TINY).read_text()
    assert asked("reinforce", reward="reward", recipe=text).config == stored.config
    assert asked("reinforce", reward="reward", recipe=yaml.safe_load(text)).config == stored.config
    pair = {"candidate": "answer DPR on lab", "baseline": "answer SFT on lab"}
    assert asked("judge", **pair, recipe=TINY).config == Store.open().record(made.id("judge DPR on lab")).config
    best = asked("answer", policy="reward", recipe=TINY, node="answer extrapolated on lab")
    assert best.config["policy"]["k"] == 2


def test_settings_that_nobody_chose_are_the_papers_and_are_told(asked: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dense_path"):
        request = asked("reinforce", reward="reward", overrides=["max_response_tokens=12"])
    assert request.config["learning_rate"] == 5e-7
    assert "learning_rate=5e-07" in caplog.text
    # The newest of the shared store, where another test may have made one since.
    assert re.search(r"like=runs:/([0-9a-f]{8}) has those of \1 \(reinforce\)", caplog.text)


@pytest.mark.parametrize(
    ("stage", "parameters", "words"),
    [
        ("reinforce", {"like": "reinforce", "recipe": TINY}, "`like` or those of `recipe`: give one of the two"),
        ("reinforce", {"like": "reward"}, r"like: .*artifact of stage reward; one of stage reinforce is needed"),
        ("reinforce", {"like": "reinforce", "node": "x"}, "give `recipe` too"),
        ("reinforce", {"like": "reinforce", "overrides": ["gamma=1"]}, r"gamma: .*did you mean algorithm\.gamma\?"),
        (
            "reinforce",
            {"like": "reinforce", "overrides": ["reinforce.algorithm.gamma=1"]},
            r"reinforce: reinforce: no such field; did you mean algorithm\.gamma\?",
        ),
        ("reinforce", {"reward": "reward"}, "max_response_tokens is 1024, which leaves no room for a prompt"),
        (
            "reinforce",
            {"reward": "reward", "recipe": TINY, "overrides": ["max_response_tokens=2000"]},
            "the model that its inputs are built on has 1024 positions; lower it",
        ),
        ("answer", {"policy": "sft", "recipe": TINY}, "has 3 stages answer: say which as `node`; it has answer SFT on"),
        ("answer", {"policy": "sft", "recipe": TINY, "node": "answer SFT"}, "no answer called 'answer SFT'; it has"),
        ("rate", {"answers": "answer DPR on lab", "recipe": TINY}, "recipe tiny has no stage rate"),
        (
            "answer",
            {"policy": "sft"},
            r"benchmark: this field is required; without `like` and `recipe`, settings are the",
        ),
        ("reinforce", {"recipe": TINY}, "reinforce needs the input reward"),
        ("sft", {"data": "subsample", "recipe": "demmo"}, "did you mean demo"),
    ],
)
def test_what_is_wrong_is_said_before_work(asked: Ask, stage: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        asked(stage, **parameters)


def test_a_run_takes_a_recipe_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[RunRequest] = []
    monkeypatch.setattr(deployed, "run_graph", lambda request: requests.append(request) or {})
    deployed.run.fn("demo", ["seed=1", "reinforce.algorithm.gamma=0.95"], "sr")
    [request] = requests
    assert (request.config.name, request.config.seed) == ("demo", 1)
    assert request.config.reinforce.algorithm.type == "sequence_reinforce"
    with pytest.raises(UsageError, match=re.escape("demo: gamma: no such field; did you mean reinforce.algorithm.")):
        deployed.run.fn("demo", ["gamma=1"])
