import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpr_core.config.base import commented_yaml
from dpr_core.config.data import HubSourceConfig
from dpr_core.config.evaluation import OpenAIJudgeConfig
from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.config.reinforce import Algorithm1Config, ReinforceConfig, ReinforcePlusPlusConfig
from dpr_core.config.reward import RewardConfig
from dpr_core.config.training import SFTConfig
from dpr_core.data.encoding import encode_response
from dpr_core.errors import UsageError
from dpr_core.lab.backbone import build_tokenizer
from dpr_core.lab.programs import draw_problems
from flows import recipes, wiring

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
    assert config.reinforce.algorithm == ReinforcePlusPlusConfig(gamma=0.95, kl_weight=0.1)
    assert config.sft.epochs == 2
    assert config.evaluation.controls == {}


def test_another_type_starts_its_section_afresh() -> None:
    config = recipes.load(str(TINY), ["reinforce.algorithm.type=algorithm1", "reinforce.batch_size=8"])
    assert config.reinforce.algorithm == Algorithm1Config()


def test_one_seed_reaches_every_stage_that_has_none_of_its_own() -> None:
    config = recipes.load(str(TINY), ["seed=4", "reward.seed=9"])
    sections = (config.backbone, config.subsample, config.sft, config.reward, config.reinforce, config.judge)
    assert [section.model_dump()["seed"] for section in sections] == [4, 4, 4, 9, 4, 4]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen-2.5-7b", "mistral-7b-v0.1", "gemma-3-4b", "paper-table1"])
def test_the_recipes_of_the_paper_take_the_longest_prompts_of_arena_hard(name: str) -> None:
    # The longest has 9,140 characters, code at about three of them a token.
    assert recipes.load(name).answer.max_prompt_tokens > 9140 / 3


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
    assert problem(folder) == f"{folder} is a folder, but a file is needed; name an ordinary file"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "a mapping of settings is expected, not list"),
        ("", "backbone: this field is required"),
        ("backbone: {type: lap}", "backbone.type: unknown type 'lap'; known: 'pretrained', 'lab'"),
        ("backbone: {type: lab}\nreinforcer: {}", "reinforcer: no such field; did you mean reinforce?"),
        ("backbone: {type: lab}\nsft: {epochs: many}", "sft.epochs: "),
        ("backbone: {type: lab}\nreward: {reference: 1.0}", "against reference 1, which is pi_SFT itself"),
        ("backbone: {type: lab}\nreward: {reference: 1.1}", "reward.reference: "),
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


def written(folder: Path, **recipes_by_name: str) -> Path:
    """Recipe files in one folder; returns the first."""
    for name, text in recipes_by_name.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(recipes_by_name))}.yaml"


def test_a_recipe_that_extends_another_differs_from_it_in_what_it_says_alone(tmp_path: Path) -> None:
    recipe = written(tmp_path, mine="extends: demo\nname: mine\nsft: {epochs: 2}\n")
    demo = recipes.load("demo", ["name=mine", "sft.epochs=2"])
    assert recipes.load(str(recipe)) == demo
    assert recipes.load(str(recipe), ["sft.epochs=1"]) == recipes.load("demo", ["name=mine"])


def test_a_recipe_can_do_without_a_benchmark_of_the_one_it_extends(tmp_path: Path) -> None:
    recipe = written(tmp_path, mine="extends: smollm2-135m\nname: mine\nevaluation: {benchmarks: {svamp: null}}\n")
    assert list(recipes.load(str(recipe)).evaluation.benchmarks) == ["heldout", "likelihood"]


def test_the_real_demo_is_the_real_recipe_on_the_labs_own_questions() -> None:
    demo, real = recipes.load("demo-real"), recipes.load("smollm2-135m")
    assert (demo.backbone, demo.subsample.template) == (real.backbone, real.subsample.template)
    assert demo.evaluation.controls == real.evaluation.controls
    assert list(demo.evaluation.benchmarks) == ["templates"]


def test_files_extend_files_beside_them(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    written(tmp_path, mine="extends: demo\nseed: 3\nsft: {epochs: 2, batch_size: 8}\n")
    recipe = written(tmp_path / "below", mine="extends: ../mine.yaml\nsft: {epochs: 4}\n")
    config = recipes.load(str(recipe))
    assert (config.seed, config.sft.epochs, config.sft.batch_size) == (3, 4, 8)
    assert config.sft.learning_rate == recipes.load("demo").sft.learning_rate


@pytest.mark.parametrize(
    ("under", "over", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}, "d": 4}, {"a": None}, {"a": None, "d": 4}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"d": 3}}}, {"a": {"b": {"c": 1, "d": 3}}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {}}),
        ({"a": {"type": "x", "b": 1}}, {"a": {"type": "y"}}, {"a": {"type": "y"}}),
        ({"a": {"type": "x", "b": 1}}, {"a": {"type": "x", "c": 2}}, {"a": {"type": "x", "b": 1, "c": 2}}),
        ({"a": {"type": "x", "b": 1}}, {"a": {"c": 2}}, {"a": {"type": "x", "b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"a": {"type": "y"}}, {"a": {"type": "y"}}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({}, {"a": {"b": 2}}, {"a": {"b": 2}}),
    ],
)
def test_values_are_merged_section_by_section(under: Any, over: Any, expected: Any) -> None:
    before = copy.deepcopy((under, over))
    assert recipes.merged(under, over) == expected
    assert (under, over) == before


def test_a_parent_that_cannot_be_found_is_named_with_who_asked(tmp_path: Path) -> None:
    assert problem(written(tmp_path, mine="extends: demmo\n")) == (
        f"{tmp_path}/mine.yaml: extends: there is no recipe 'demmo'; did you mean demo? "
        "(a file of your own must end in .yaml)"
    )
    assert problem(written(tmp_path, mine="extends: absent.yaml\n")) == (
        f"cannot read {tmp_path}/absent.yaml: No such file or directory"
    )
    assert problem(written(tmp_path, mine="extends: [demo]\n")) == (
        f"{tmp_path}/mine.yaml: extends: the name of a recipe or a .yaml file is expected (got ['demo'])"
    )


def test_recipes_that_extend_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    a = written(tmp_path, a="extends: b.yaml\n", b=f"extends: ../{tmp_path.name}/a.yaml\n")
    assert problem(a) == (
        f"recipes extend each other in a circle: {tmp_path}/a.yaml -> {tmp_path}/b.yaml -> {tmp_path}/a.yaml"
    )
    assert "in a circle" in problem(written(tmp_path, own="extends: own.yaml\n"))


def test_a_mistake_in_a_parent_is_told(tmp_path: Path) -> None:
    own = written(tmp_path, own="extends: parent.yaml\n", parent="backbone: {type: lab, widht: 4}\n")
    assert "backbone.widht: no such field; did you mean width?" in problem(own)
    assert problem(written(tmp_path, own="extends: parent.yaml\n", parent="a: [\n")).startswith(
        f"{tmp_path}/parent.yaml: "
    )


LABS = [name for name in recipes.names() if isinstance(recipes.load(name).backbone, LabBackboneConfig)]


@pytest.mark.parametrize("name", LABS)
def test_careful_answers_are_long_enough_for_credit_to_matter(name: str) -> None:
    config = recipes.load(name)
    assert isinstance(config.backbone, LabBackboneConfig)
    tokenizer = build_tokenizer(config.backbone.family)
    for task in draw_problems(config.backbone.task, "train", 20, seed=0):
        response = encode_response(tokenizer, task.answer("careful", False, random.Random(0)))
        assert 30 <= len(response) <= config.reinforce.max_response_tokens
        assert len(response) <= config.answer.max_response_tokens


def test_recipes_are_written_as_their_users_would_write_them() -> None:
    """A recipe holds only what differs from the defaults, so it is much shorter than what `dpr config` prints."""
    for name in recipes.names():
        text = (recipes.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert len(yaml.safe_load(text)) > 0
        assert len(text) < len(commented_yaml(recipes.load(name))) / 2


BACKBONES = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "qwen-2.5-7b": "Qwen/Qwen2.5-7B",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "gemma-3-4b": "google/gemma-3-4b-pt",
}
TABLE_3 = {
    "learning_rate": 5e-6,
    "batch_size": 256,
    "max_prompt_tokens": 1024,
    "max_response_tokens": 1024,
    "warmup_ratio": 0.03,
    "lora": None,
    "ema_decay": None,
}
TABLE_4 = {
    "learning_rate": 5e-7,
    "batch_size": 128,
    "rollout_batch_size": 1024,
    "max_prompt_tokens": 1024,
    "max_response_tokens": 1024,
    "warmup_ratio": 0.03,
    "temperature": 1.0,
    "samples_per_prompt": 1,
    "lora": None,
    "guard": None,
}


@pytest.mark.parametrize("name", [*BACKBONES, "paper-table1"])
def test_the_papers_recipes_have_the_values_of_its_tables(name: str) -> None:
    """Tables 3 and 4, which hold for all backbones, and what section 5 says of data, reference and judge."""
    config = recipes.load(name)
    assert isinstance(config.backbone, PretrainedBackboneConfig)
    assert config.backbone.name == BACKBONES.get(name, BACKBONES["llama-3.1-8b"])
    assert {field: getattr(config.sft, field) for field in TABLE_3} == TABLE_3
    assert {field: getattr(config.reinforce, field) for field in TABLE_4} == TABLE_4
    algorithm = config.reinforce.algorithm
    assert isinstance(algorithm, ReinforcePlusPlusConfig)
    assert (algorithm.kl_weight, algorithm.gamma, algorithm.ratio_clip) == (1e-5, 1.0, 0.2)
    assert (config.reward.formula, config.reward.reference) == ("baseline_relative", 0.5)
    assert isinstance(config.subsample.source, HubSourceConfig)
    assert (config.subsample.source.name, config.subsample.size) == ("Open-Orca/OpenOrca", 100_000)
    assert isinstance(config.judge.by, OpenAIJudgeConfig)
    assert (config.judge.by.model, config.judge.by.temperature) == ("gpt-4o-2024-08-06", 0.0)
    assert config.answer.temperature == 0.7


def test_the_recipe_with_adapters_differs_from_the_papers_in_what_it_says_alone() -> None:
    full, adapters = recipes.load("llama-3.1-8b"), recipes.load("llama-3.1-8b-lora")
    both = (full.sft, adapters.sft), (full.reinforce, adapters.reinforce)
    for plain, adapted in both:
        assert adapted.lora is not None
        same = {"lora": None, "learning_rate": plain.learning_rate, "execution": plain.execution}
        assert adapted.model_copy(update=same) == plain
    assert adapters.answer.model_copy(update={"execution": full.answer.execution}) == full.answer
    assert adapters.reward.model_copy(update={"arithmetic": full.reward.arithmetic}) == full.reward
    for section in ("backbone", "subsample", "evaluation", "judge"):
        assert getattr(adapters, section) == getattr(full, section)


@pytest.mark.parametrize(("recipe", "processes", "engine"), [("8gpu", 8, "processes"), ("2nodes", 16, "ray")])
def test_what_comes_out_of_many_gpus_is_the_papers(recipe: str, processes: int, engine: str) -> None:
    """The stages of both recipes are the same but for how the work is done."""
    one, many = (wiring.nodes(recipes.load(name)) for name in ("llama-3.1-8b", f"llama-3.1-8b-{recipe}"))
    assert [(n.name, n.config.identity()) for n in one] == [(n.name, n.config.identity()) for n in many]
    shared = [n.config.execution for n in many if isinstance(n.config, SFTConfig | RewardConfig | ReinforceConfig)]
    launches = {(each.launch.processes, each.launch.engine, each.launch.strategy) for each in shared}
    assert launches == {(processes, engine, "fsdp")}
