"""Rules that say where stages are done."""

import pytest

from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.placing import place_of, read_rules
from dpr_core.errors import UsageError
from flows import recipes


def test_the_rule_that_names_a_stage_wins_over_the_one_for_all() -> None:
    rules = read_rules(["*=cpu", "sft,reinforce=gpu8", "answer=gpu/night", "judge=here"])
    stages = ("sft", "reinforce", "answer", "judge", "reward")
    assert [place_of(rules, stage) for stage in stages] == ["gpu8", "gpu8", "gpu/night", "here", "cpu"]
    assert place_of({}, "sft") == "here"


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["sft"], "'sft': stage=pool is expected"),
        (["stf=gpu"], "no stage 'stf'; did you mean sft?"),
        (["lunch=gpu"], "or * for the others"),
        (["sft="], "'' is no place"),
        (["sft=a/b/c"], "'a/b/c' is no place: give here, a work pool, or pool/queue"),
        (["sft=here/q"], "'here/q' is no place: give here, a work pool, or pool/queue"),
        (["sft=gpu", "reward,sft=cpu"], "sft is given two places"),
        (["sft,sft=gpu"], "sft is given two places"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_a_sentence(assignments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match="^--place .*" + words.replace("*", r"\*")):
        read_rules(assignments)


@pytest.mark.parametrize("rules", ["place=gpu", "place={sft: 3}", "place={stf: gpu}"])
def test_a_recipe_is_as_strict(rules: str) -> None:
    with pytest.raises(UsageError, match="demo: place: "):
        recipes.load("demo", [rules])


def test_places_change_nothing_else_in_a_recipe() -> None:
    here, there = recipes.load("demo"), recipes.load("demo", ["place={'sft,reinforce': gpu}"])
    assert there.place == {"sft": "gpu", "reinforce": "gpu"}
    assert PipelineConfig.model_validate(there.model_dump(mode="json")) == there
    assert there.model_copy(update={"place": {}}) == here
