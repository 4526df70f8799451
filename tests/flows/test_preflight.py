"""What would make a stage fail hours from now is known before the first one begins, and in a plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import TINY, run_dpr
from tests.loopback import KEY, Loopback, refused

HUB = "subsample.source={type: hub, name: org/rows}"
BACKBONE = "backbone={type: pretrained, name: org/gated}"


@pytest.mark.slow
@pytest.mark.integration
def test_a_hub_that_is_away_is_known_first(loopback: Loopback, tmp_path: Path) -> None:
    judge = ("--set", "judge.by.type=openai", "--set", f"judge.by.base_url={loopback.url}")
    command = ("run", TINY, "--set", HUB, "--set", BACKBONE, *judge)
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "OPENAI_API_KEY": KEY}
    loopback.route("GET", "/v1/models", lambda call: refused(401, "no"))
    planned = run_dpr(*command, "--plan", "--json", home=tmp_path / "home", **away)
    assert planned.status == 0, planned.stderr
    dataset, backbone, key = planned.json["obstacles"]
    assert "the hub cannot be reached for the dataset org/rows ([Errno 111] Connection refused)" in dataset
    assert "the hub cannot be reached for the model org/gated" in backbone
    assert "refused the key in OPENAI_API_KEY" in key
    assert f"a run would stop: {dataset}" in planned.stderr
    assert loopback.calls == [], "a plan pays for nothing"
    result = run_dpr(*command, "--json", home=tmp_path / "home", **away)
    result.assert_refused(1, "the hub cannot be reached for the dataset org/rows", "--set subsample.source.name=")
    assert "runs, because" not in result.stderr
    assert loopback.calls == []


def test_a_plan_says_what_would_stop_the_run(dpr: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    planned = dpr("run", TINY, "--set", "judge.by.type=openai", "--plan")
    assert planned.status == 0
    assert "a run would stop: the environment variable OPENAI_API_KEY" in planned.stderr
    assert dpr("run", TINY, "--plan", "--json").json["obstacles"] == []


def test_responses_that_no_context_has_room_for_are_known_first(dpr: Callable[..., Any]) -> None:
    too_long = ("--set", "reinforce.max_response_tokens=1024", "--set", "answer.max_response_tokens=1023")
    [obstacle] = dpr("run", TINY, *too_long, "--plan", "--json").json["obstacles"]
    assert obstacle.startswith("reinforce: max_response_tokens is 1024, which leaves no room for a prompt: the model")
    assert obstacle.endswith("has 1024 positions; lower it")


def test_a_judge_that_is_away_or_has_no_list_of_models(
    dpr: Callable[..., Any], loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def obstacles(url: str) -> list[str]:
        judge = ("--set", "judge.by.type=openai", "--set", f"judge.by.base_url={url}")
        found: list[str] = dpr("run", TINY, *judge, "--plan", "--json").json["obstacles"]
        return found

    loopback.answer = lambda call: refused(404, "no such path")
    assert obstacles(loopback.url) == []
    [away] = obstacles("http://127.0.0.1:9/v1")
    assert "http://127.0.0.1:9/v1 cannot be reached" in away
