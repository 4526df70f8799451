"""Expansion of sweeps: which points there are, what they are called, what is refused."""

from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.experiments import points
from dpr_core.experiments.points import Point, Study, expand, missing_references, read_over, short_names

BASE: dict[str, Any] = {"name": "mine", "backbone": {"type": "lab"}, "sft": {"checkpoints": [0.5, 1.0]}}
GAMMA = "reinforce.algorithm.gamma"


def expanded(**over: list[Any]) -> list[Point]:
    return expand(BASE, {field.replace("__", "."): values for field, values in over.items()}, "mine")


def test_every_combination_is_a_point_with_its_values_and_its_configuration() -> None:
    found = expand(BASE, {GAMMA: [0.95, 1.0], "seed": [1, 2]}, "mine")
    assert [point.name for point in found] == [
        "gamma=0.95 seed=1",
        "gamma=0.95 seed=2",
        "gamma=1 seed=1",
        "gamma=1 seed=2",
    ]
    assert found[1].values == {GAMMA: 0.95, "seed": 2}
    assert [point.config.reinforce.algorithm.gamma for point in found] == [0.95, 0.95, 1.0, 1.0]
    assert [point.config.sft.seed for point in found] == [1, 2, 1, 2]
    assert {point.config.name for point in found} == {"mine"}


def test_nothing_varied_is_one_point() -> None:
    [only] = expanded()
    assert (only.name, only.values) == ("only", {})


def test_equal_configurations_are_one_point() -> None:
    assert [point.name for point in expand(BASE, {GAMMA: [1, 1.0, 0.9, 0.90]}, "mine")] == ["gamma=1", "gamma=0.9"]


def test_a_type_starts_its_section_afresh() -> None:
    sizes = {"rollout_batch_size": 8, "batch_size": 8}
    base = {**BASE, "reinforce": {**sizes, "algorithm": {"type": "reinforce_plus_plus", "gamma": 0.5}}}
    found = expand(base, {"reinforce.algorithm.type": ["algorithm1", "reinforce_plus_plus"]}, "mine")
    assert [point.config.reinforce.algorithm.gamma for point in found] == [1.0, 0.5]
    assert [point.name for point in found] == ["type=algorithm1", "type=reinforce_plus_plus"]


def test_names_take_the_whole_field_where_its_end_is_not_enough() -> None:
    assert short_names(["sft.learning_rate", "reinforce.learning_rate", "seed"]) == {
        "sft.learning_rate": "sft.learning_rate",
        "reinforce.learning_rate": "reinforce.learning_rate",
        "seed": "seed",
    }


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("reinforce.learning_rate", 1e-5, "learning_rate=1e-05"),
        ("reward.reference", (0.25, 0.5), "reference=0.25+0.5"),
        ("reward.normalise", True, "normalise=true"),
        ("reward.clip_above", None, "clip_above=none"),
        ("description", "a/b: 'c'", "description=a_b_c_"),
    ],
)
def test_names_are_safe(field: str, value: Any, name: str) -> None:
    assert [point.name for point in expand(BASE, {field: [value]}, "mine")] == [name]


def test_values_that_look_alike_get_a_number() -> None:
    found = expanded(description=["a b", "a/b", "a:b"])
    assert [point.name for point in found] == ["description=a_b", "description=a_b no=2", "description=a_b no=3"]


def test_references_are_kept_by_one_sft_run_for_all() -> None:
    found = expand(BASE, {"reward.reference": [0.1, 0.5, (0.2, 0.5)], "seed": [1]}, "mine")
    assert {point.config.sft.checkpoints for point in found} == {(0.1, 0.2, 0.5, 1.0)}
    assert missing_references(BASE, {"reward.reference": [0.1, 0.5, (0.2, 0.5), "validated"]}) == [0.1, 0.2]
    assert missing_references({"backbone": {}}, {"reward.reference": [0.5]}) == []


def test_checkpoints_that_are_varied_themselves_stay_as_they_are() -> None:
    with pytest.raises(UsageError, match=r"point reference=0.1 checkpoints=0.5\+1: reward.reference is 0.1"):
        expand(BASE, {"reward.reference": [0.1], "sft.checkpoints": [[0.5, 1.0]]}, "mine")


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({GAMMA: [0.9, 2.0]}, "mine, point gamma=2: reinforce.algorithm.gamma: "),
        ({"reinforce.gama": [1]}, "mine, point gama=1: reinforce.gama: no such field"),
        ({"seed": []}, "mine: seed is to be varied over no values"),
        ({"reward": [{}], "reward.reference": [0.5]}, "reward.reference is a part of reward"),
        ({"seed": list(range(100)), GAMMA: [k / 11 for k in range(11)]}, "these are 1100 points, and 1000 is the most"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(over: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        expand(BASE, over, "mine")
    assert words in str(refused.value)


def test_the_recipe_is_left_alone() -> None:
    before = repr(BASE)
    expand(BASE, {"reward.reference": [0.1], "sft.epochs": [1, 2]}, "mine")
    assert repr(BASE) == before


def test_a_study_varies_a_seed_that_its_recipe_has_set_for_all() -> None:
    study = Study(title="t", config=expanded(seed=[7])[0].config, over={"seed": [1, 2]})
    assert [point.config.reinforce.seed for point in study.points()] == [1, 2]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.93,0.95,1", [0.93, 0.95, 1]),
        ("1e-4, 5E-6,.5", [1e-4, 5e-6, 0.5]),
        ("0.1:0.9:0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("1:3:1,10", [1, 2, 3, 10]),
        ("0.93:1:0.02", [0.93, 0.95, 0.97, 0.99]),
        ("1:-1:-1", [1, 0, -1]),
        ("validated,[0.25,0.5],ema,null", ["validated", [0.25, 0.5], "ema", None]),
        ("{type: lab, rows: 3},true", [{"type": "lab", "rows": 3}, True]),
    ],
)
def test_values_are_read(text: str, values: list[Any]) -> None:
    [found] = read_over([f"a.b={text}"]).values()
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    "text",
    [
        *("a", "=1", "a..b=1", "a=1,,2", "a=[1", "a=1:2", "a=0:1:0", "a=1:0:1", "a=0:1:1e-6"),
        *("a=1]: [x", "a=*x", "a=\x00", "a=1e9999999:2:1", "a=1:2:1e-400"),
    ],
)
def test_values_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_over([text])


def test_a_field_is_given_once() -> None:
    with pytest.raises(UsageError, match="--over seed is given twice"):
        read_over(["seed=1", "seed=2"])


def test_the_limit_is_told_before_anything_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "parse", lambda *_: pytest.fail("expanded"))
    with pytest.raises(UsageError, match="1000 is the most"):
        expand(BASE, {"seed": range(1001)}, "mine")
