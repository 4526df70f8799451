from pathlib import Path

import pytest

from dpr_core.config.evaluation import AnswerConfig, AsTrained, Extrapolated
from dpr_core.config.model import PretrainedBackbone
from dpr_core.config.pipeline import PipelineConfig
from flows import recipes, wiring
from tasks.graph import Node
from tasks.table import stage_named

TINY = str(Path(__file__).with_name("tiny.yaml"))


def graph(*assignments: str) -> dict[str, Node]:
    return {node.name: node for node in wiring.nodes(recipes.load(TINY, assignments))}


def test_the_whole_method_in_order() -> None:
    nodes = graph()
    assert {name: (node.stage, node.inputs) for name, node in nodes.items()} == {
        "backbone": ("backbone", {}),
        "subsample": ("subsample", {}),
        "sft": ("sft", {"data": "@subsample", "backbone": "@backbone"}),
        "reward": ("reward", {"sft": "@sft"}),
        "reinforce": ("reinforce", {"reward": "@reward"}),
        "answer SFT on lab": ("answer", {"policy": "@sft"}),
        "answer DPR on lab": ("answer", {"policy": "@reinforce"}),
        "judge DPR on lab": ("judge", {"candidate": "@answer DPR on lab", "baseline": "@answer SFT on lab"}),
        "answer extrapolated on lab": ("answer", {"policy": "@reward"}),
        "judge extrapolated on lab": (
            "judge",
            {"candidate": "@answer extrapolated on lab", "baseline": "@answer SFT on lab"},
        ),
        "report": (
            "report",
            {"DPR on lab": "@judge DPR on lab", "extrapolated on lab": "@judge extrapolated on lab"},
        ),
    }


@pytest.mark.parametrize("recipe", [*recipes.names(), TINY])
def test_every_node_has_what_its_stage_needs_from_nodes_before_it(recipe: str) -> None:
    made: dict[str, str] = {}
    for node in wiring.nodes(recipes.load(recipe)):
        stage = stage_named(node.stage)
        assert isinstance(node.config, stage.config)
        stage.check_roles(node.inputs)
        for role, source in node.inputs.items():
            accepted = stage.accepted(role)
            assert not accepted or made[source.removeprefix("@")] in accepted
        made[node.name] = node.stage


def test_a_pretrained_backbone_is_a_setting_of_sft_and_needs_no_stage() -> None:
    nodes = graph("backbone={type: pretrained, name: /models/some}")
    assert "backbone" not in nodes
    assert nodes["sft"].inputs == {"data": "@subsample"}
    assert nodes["sft"].config.model_dump()["backbone"] == PretrainedBackbone(name="/models/some").model_dump()


def test_without_benchmarks_the_pipeline_ends_with_the_policy() -> None:
    assert list(graph("evaluation.benchmarks={}")) == ["backbone", "subsample", "sft", "reward", "reinforce"]


def test_every_policy_answers_every_benchmark_the_same_way() -> None:
    other = "{type: lab, prompts: 5, task: {operations: 3, evaluation_share: 0.3}}"
    nodes = graph(f"evaluation.benchmarks.other={other}", "answer.temperature=0.3", "answer.seed=8")
    answers = {name: node.config for name, node in nodes.items() if node.stage == "answer"}
    assert len(answers) == 6
    assert len([node for node in nodes.values() if node.stage == "judge"]) == 4
    assert set(nodes["report"].inputs) == {
        f"{policy} on {benchmark}" for policy in ("DPR", "extrapolated") for benchmark in ("lab", "other")
    }
    for config in answers.values():
        assert isinstance(config, AnswerConfig)
        assert (config.temperature, config.seed, config.max_response_tokens) == (0.3, 8, 12)
    policies = {name.split(" on ")[0]: config.policy for name, config in answers.items()}  # type: ignore[attr-defined]
    assert policies == {
        "answer SFT": AsTrained(),
        "answer DPR": AsTrained(),
        "answer extrapolated": Extrapolated(k=2),
    }


def test_settings_of_a_stage_reach_its_node() -> None:
    config: PipelineConfig = recipes.load(TINY, ["seed=6"])
    nodes = {node.name: node.config for node in wiring.nodes(config)}
    for name in ("backbone", "subsample", "sft", "reward", "reinforce", "report"):
        assert nodes[name] == getattr(config, name)
    assert nodes["judge DPR on lab"] == config.judge
