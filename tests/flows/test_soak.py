"""A handful of kills; `make soak` does many more."""

from pathlib import Path

import pytest

from tests.soak import POINTS, choose, soak

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_nothing_false_is_ever_published(tmp_path: Path) -> None:
    figures = soak(tmp_path, kills=3, seed=3)
    assert figures.violations == []
    assert figures.kills == sum(figures.by_point.values()) == 3
    assert figures.taken_up >= 1
    assert figures.lives > figures.kills
    assert figures.stages > 0
    assert figures.steps > 0


@pytest.mark.slow
def test_a_false_artifact_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The soak itself can fail: every artifact is damaged behind its back after the first kill."""
    import tests.soak

    look = tests.soak.violations

    def damage(home: Path) -> list[str]:
        for weights in home.glob("artifacts/*/artifacts/output/**/*.safetensors"):
            weights.chmod(0o600)
            weights.write_bytes(weights.read_bytes()[:-1])
        return look(home)

    monkeypatch.setattr(tests.soak, "violations", damage)
    monkeypatch.setattr(tests.soak, "choose", lambda rng: ("half a state", 12))
    figures = soak(tmp_path, kills=1, seed=0)
    assert any("bytes, expected" in line for line in figures.violations)


def test_publishing_is_where_most_lives_end() -> None:
    import random

    rng = random.Random(0)
    chosen = [choose(rng)[0] for _ in range(1000)]
    assert set(chosen) == {*POINTS, "clock"}
    publishing = [name for name in chosen if name != "clock" and "state" not in name]
    assert len(publishing) > 500
