"""Keys out of Prefect's Secret blocks."""

import os
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from dpr_core.config.base import parse
from dpr_core.config.evaluation import JudgeConfig
from dpr_core.config.reinforce import ReinforceConfig
from flows import keys

KEY = "a-key-of-no-service-1"
BY = {"type": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}


def judge(**by: Any) -> JudgeConfig:
    return parse(JudgeConfig, {"by": {**BY, **by}}, "judge")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The blocks that were asked for; there is one, and a server to ask."""
    names = []

    class Block:
        @staticmethod
        def load(name: str) -> Any:
            names.append(name)
            if name != "openai-api-key":
                raise ValueError(f"Unable to find block document named {name}")
            return Block()

        def get(self) -> str:
            return KEY

    monkeypatch.setattr(keys, "Secret", Block)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        yield names


def test_a_key_that_the_environment_lacks_comes_from_the_block_of_its_name(asked: list[str]) -> None:
    keys.fetch_keys([judge(), judge()])
    assert os.environ["OPENAI_API_KEY"] == KEY
    assert asked == ["openai-api-key"]


def test_a_key_that_is_there_stays(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    keys.fetch_keys([judge()])
    assert os.environ["OPENAI_API_KEY"] == "mine"
    assert asked == []


def test_a_block_that_is_not_there_leaves_the_variable_unset(asked: list[str]) -> None:
    server = {"rollouts": {"type": "vllm", "execution": {"url": "http://127.0.0.1:1", "api_key_variable": "VLLM_KEY"}}}
    keys.fetch_keys([parse(ReinforceConfig, server, "reinforce")])
    assert asked == ["vllm-key"]
    assert "VLLM_KEY" not in os.environ


def test_stages_without_a_key_ask_for_none(asked: list[str]) -> None:
    keys.fetch_keys([parse(JudgeConfig, {"by": {"type": "verifiable"}}, "judge"), ReinforceConfig()])
    assert asked == []
