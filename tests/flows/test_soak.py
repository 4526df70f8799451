"""A few operations of the soak test, so that it runs when it is needed, and that it can fail; `make soak` does many."""

import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.soak.__main__ import soak
from tests.soak.operations import KINDS
from tests.soak.world import InvariantError, World

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def prefect(prefect_here: None) -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def arguments(**changes: Any) -> Namespace:
    return Namespace(**{"seed": 0, "minutes": 5.0, "first": 1, "only": None, "report": None, "keep": None, **changes})


def test_a_few_operations(tmp_path: Path, prefect: str) -> None:
    report = tmp_path / "report.json"
    kinds = ["run", "death", "damage", "verify", "export", "gc"]
    figures = soak(tmp_path, prefect, arguments(operations=6, only=kinds, report=report))
    assert figures.failures == []
    assert sum(figures.operations.values()) == 6
    assert figures.artifacts_checked > 0
    assert report.exists()


def test_damage_that_it_does_not_know_of_is_a_failure(
    tmp_path: Path, prefect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(world: World, rng: random.Random, calm: Any) -> str:
        KINDS["run"][1](world, rng, calm)
        file = next((world.homes[0] / "artifacts").rglob("output/**/*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1])
        return ""

    monkeypatch.setitem(KINDS, "look", (1, unknown))
    figures = soak(tmp_path, prefect, arguments(operations=1, only=["look"]))
    assert list(figures.failures_by_invariant) == ["what is finished is whole"]
    assert figures.failures[0]["again"] == "--seed 0 --first 1 --operations 1 --only 'look'"


def test_a_command_that_does_not_end_is_a_failure(tmp_path: Path, prefect: str) -> None:
    world = World.make(tmp_path / "world", 1, prefect, None, {})
    with pytest.raises(InvariantError, match="within the time limit"):
        world.dpr("artifacts", limit=0.0)
