from pathlib import Path

import pytest
import yaml

from dpr_core.config.base import commented_yaml
from dpr_core.config.training import Algorithm1, ReinforcePlusPlus
from dpr_core.errors import UsageError
from flows import recipes

TINY = Path(__file__).with_name("tiny.yaml")


def problem(recipe: object, *assignments: str) -> str:
    with pytest.raises(UsageError) as caught:
        recipes.load(str(recipe), assignments)
    return str(caught.value)


def test_the_demo_ships() -> None:
    assert "demo" in recipes.names()


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_named_after_its_file_and_says_what_it_is(name: str) -> None:
    config = recipes.load(name)
    assert config.name == name
    assert config.description.endswith(".")


@pytest.mark.parametrize("name", [*recipes.names(), str(TINY)])
def test_what_config_prints_is_the_same_configuration(name: str, tmp_path: Path) -> None:
    config = recipes.load(name, ["seed=3"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(commented_yaml(config))
    assert recipes.load(str(printed)) == config


def test_assignments_reach_nested_fields() -> None:
    config = recipes.load(str(TINY), ["reinforce.algorithm.gamma=0.95", "sft.epochs=2", "evaluation.controls={}"])
    assert config.reinforce.algorithm == ReinforcePlusPlus(gamma=0.95, kl_weight=0.1)
    assert config.sft.epochs == 2
    assert config.evaluation.controls == {}


def test_another_type_starts_its_section_afresh() -> None:
    config = recipes.load(str(TINY), ["reinforce.algorithm.type=algorithm1", "reinforce.batch_size=8"])
    assert config.reinforce.algorithm == Algorithm1()


def test_one_seed_reaches_every_stage_that_has_none_of_its_own() -> None:
    config = recipes.load(str(TINY), ["seed=4", "reward.seed=9"])
    sections = (config.backbone, config.subsample, config.sft, config.reward, config.reinforce, config.judge)
    assert [section.model_dump()["seed"] for section in sections] == [4, 4, 4, 9, 4, 4]


def test_unknown_recipe_names_the_nearest() -> None:
    assert problem("demmo") == ("there is no recipe 'demmo'; did you mean demo? (a file of your own must end in .yaml)")
    assert "recipes: " in problem("zzz")
    assert "must end in .yaml" in problem("notes.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    absent, latin, folder = tmp_path / "absent.yaml", tmp_path / "latin.yaml", tmp_path / "folder.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    folder.mkdir()
    assert problem(absent) == f"cannot read {absent}: No such file or directory"
    assert problem(latin) == f"{latin} is not UTF-8 text (byte 9)"
    assert problem(folder) == f"cannot read {folder}: Is a directory"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "a mapping of settings is expected, not list"),
        ("", "backbone: this field is required"),
        ("backbone: {type: lap}", "backbone.type: unknown type 'lap'; known: 'pretrained', 'lab'"),
        ("backbone: {type: lab}\nreinforcer: {}", "reinforcer: no such field; did you mean reinforce?"),
        ("backbone: {type: lab}\nsft: {epochs: many}", "sft.epochs: "),
        ("backbone: {type: lab}\nreward: {reference: 1.0}", "reward.reference: "),
        ("backbone: {type: lab}\nreward: {reference: 0.3}", "sft.checkpoints keeps only 0.5, 1"),
    ],
)
def test_broken_recipes_name_the_file_and_the_place(tmp_path: Path, text: str, words: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    said = problem(recipe)
    assert said.startswith(f"{recipe}: ")
    assert words in said


def test_a_mistyped_assignment_names_the_field() -> None:
    assert "reinforce.learning_rat: no such field; did you mean learning_rate?" in problem(
        TINY, "reinforce.learning_rat=1"
    )
    assert "expected field=value" in problem(TINY, "gamma")


def test_recipes_are_written_as_their_users_would_write_them() -> None:
    """A recipe holds only what differs from the defaults, so it is much shorter than what `dpr config` prints."""
    for name in recipes.names():
        text = (recipes.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert len(yaml.safe_load(text)) > 0
        assert len(text) < len(commented_yaml(recipes.load(name))) / 2
