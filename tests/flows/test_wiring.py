from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import (
    AnswerConfig,
    AsTrainedConfig,
    BestOfNConfig,
    ContrastiveConfig,
    ExtrapolatedConfig,
)
from dpr_core.config.imitation import ContinuedSFTConfig, GsilConfig, SelfPlayConfig
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.reward import RewardConfig
from dpr_core.errors import UsageError
from flows import recipes, wiring
from tasks.graph import Node
from tasks.registry import stage_named

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
        "diagnose": ("diagnose", {"reward": "@reward"}),
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
@pytest.mark.parametrize(
    "methods", ["{}", "{a: {type: self_play}, b: {type: continued_sft}, c: {changes: [reward.seed=4]}}"]
)
def test_every_node_has_what_its_stage_needs_from_nodes_before_it(recipe: str, methods: str) -> None:
    made: dict[str, str] = {}
    for node in wiring.nodes(recipes.load(recipe, [f"methods={methods}"])):
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
    assert nodes["sft"].config.model_dump()["backbone"] == PretrainedBackboneConfig(name="/models/some").model_dump()


def test_without_benchmarks_the_pipeline_ends_with_the_policy() -> None:
    expected = ["backbone", "subsample", "sft", "reward", "diagnose", "reinforce"]
    assert list(graph("evaluation.benchmarks={}")) == expected
    methods = "methods={more: {type: continued_sft}}"
    assert list(graph("evaluation.benchmarks={}", methods)) == [*expected, "more"]


def test_diagnosing_the_reward_can_be_left_out() -> None:
    with_it, without = graph(), graph("diagnose=null")
    assert with_it.keys() - without.keys() == {"diagnose"}
    assert all(with_it[name] == node for name, node in without.items())


def test_a_method_is_trained_from_sft_answers_and_is_judged_under_its_name() -> None:
    nodes = graph(
        "methods={imitate: {type: self_play, method: {type: gsil}, rounds: 1}, more: {type: continued_sft, epochs: 2}}"
    )
    assert nodes["imitate"].config == SelfPlayConfig(method=GsilConfig(), rounds=1)
    assert nodes["more"].config == ContinuedSFTConfig(epochs=2)
    for name, stage in {"imitate": "self_play", "more": "continued_sft"}.items():
        assert (nodes[name].stage, nodes[name].inputs) == (stage, {"sft": "@sft"})
        assert nodes[f"answer {name} on lab"].inputs == {"policy": f"@{name}"}
        assert nodes[f"answer {name} on lab"].config == nodes["answer DPR on lab"].config
        candidate, baseline = f"@answer {name} on lab", "@answer SFT on lab"
        assert nodes[f"judge {name} on lab"].inputs == {"candidate": candidate, "baseline": baseline}
    assert list(nodes["report"].inputs) == ["DPR on lab", "imitate on lab", "more on lab", "extrapolated on lab"]


def test_a_variant_of_reinforce_shares_the_reward() -> None:
    nodes = graph("methods={SR: {changes: [reinforce.algorithm.type=sequence_reinforce, reinforce.iterations=3]}}")
    assert nodes["SR"].inputs == {"reward": "@reward"}
    settings, shared = nodes["SR"].config, nodes["reinforce"].config
    assert isinstance(settings, ReinforceConfig)
    assert isinstance(shared, ReinforceConfig)
    assert (settings.algorithm.type, settings.iterations) == ("sequence_reinforce", 3)
    assert (settings.learning_rate, settings.guard) == (shared.learning_rate, shared.guard)
    assert [name for name, node in nodes.items() if node.stage == "reward"] == ["reward"]


def test_a_variant_with_another_reward_has_one_of_its_own() -> None:
    nodes = graph("methods={w-V: {changes: [reward.formula=with_value]}, SR: {changes: [reinforce.iterations=1]}}")
    assert nodes["reward of w-V"].inputs == {"sft": "@sft"}
    settings = nodes["reward of w-V"].config
    assert isinstance(settings, RewardConfig)
    assert (settings.formula, settings.probe_demonstrations) == ("with_value", 4)
    assert nodes["w-V"].inputs == {"reward": "@reward of w-V"}
    assert nodes["w-V"].config == nodes["reinforce"].config
    assert nodes["SR"].inputs == {"reward": "@reward"}
    names = list(nodes)
    assert names.index("reward of w-V") < names.index("w-V") < names.index("answer w-V on lab")


def test_controls_are_made_of_the_rewards_models_without_training() -> None:
    nodes = graph("evaluation.controls={a: {k: 2}, b: {type: contrastive, k: 0.5}, c: {type: best_of_n, n: 3}}")
    assert not {"a", "b", "c"} & nodes.keys()
    for name, policy in {"a": ExtrapolatedConfig(k=2), "b": ContrastiveConfig(k=0.5), "c": BestOfNConfig(n=3)}.items():
        answers = nodes[f"answer {name} on lab"]
        assert answers.inputs == {"policy": "@reward"}
        assert isinstance(answers.config, AnswerConfig)
        assert answers.config.policy == policy
        assert f"{name} on lab" in nodes["report"].inputs


def test_controls_of_other_policies_come_after_them() -> None:
    controls = (
        "evaluation.controls={warm: {type: sft, match: far}, cold: {type: sft, temperature: 0}, far: {k: 2}, "
        "near: {match: SR}, early: {type: kept, kl: 0.1}, early SR: {type: kept, of: SR, kl: 0.2}}"
    ).replace("early SR", "early-SR")
    nodes = graph(controls, "reinforce.keep_at_kl=[0.1]", "methods={SR: {changes: ['reinforce.keep_at_kl=[0.2]']}}")
    names = list(nodes)
    expected = {
        "warm": {"policy": "@sft", "match": "@answer far on lab"},
        "cold": {"policy": "@sft"},
        "near": {"policy": "@reward", "match": "@answer SR on lab"},
        "early": {"policy": "@reinforce"},
        "early-SR": {"policy": "@SR"},
    }
    for name, inputs in expected.items():
        assert nodes[f"answer {name} on lab"].inputs == inputs
        for source in inputs.values():
            assert names.index(source.removeprefix("@")) < names.index(f"answer {name} on lab")


def test_what_policies_are_called_is_no_part_of_the_identity_of_their_answers() -> None:
    def identity(control: str, *others: str) -> dict[str, Any]:
        node = graph(f"evaluation.controls={{x: {control}, y: {{k: 3}}}}", *others)["answer x on lab"]
        policy: dict[str, Any] = node.config.identity()["policy"]
        return policy

    assert identity("{k: 2}") == {"type": "extrapolated", "k": 2.0}, "as it was before there was anything to match"
    assert identity("{match: DPR}") == identity("{match: y}")
    assert identity("{match: DPR}") != identity("{match: DPR, match_trials: 3}")
    kept = "reinforce.keep_at_kl=[0.1]", "methods={SR: {changes: [reward.seed=3]}}"
    assert identity("{type: kept, kl: 0.1}", *kept) == identity("{type: kept, of: SR, kl: 0.1}", *kept)


def test_no_two_nodes_have_one_name() -> None:
    methods = "methods={SR: {changes: [reinforce.iterations=1]}, w-V: {changes: [reward.formula=with_value]}, "
    config = recipes.load(TINY, [methods + "more: {type: continued_sft}, own: {type: self_play}}"])
    names = [node.name for node in wiring.nodes(config)]
    assert len(set(names)) == len(names)


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
        "answer SFT": AsTrainedConfig(),
        "answer DPR": AsTrainedConfig(),
        "answer extrapolated": ExtrapolatedConfig(k=2),
    }


def test_settings_of_a_stage_reach_its_node() -> None:
    config: PipelineConfig = recipes.load(TINY, ["seed=6"])
    nodes = {node.name: node.config for node in wiring.nodes(config)}
    for name in ("backbone", "subsample", "sft", "reward", "diagnose", "reinforce", "report"):
        assert nodes[name] == getattr(config, name)
    assert nodes["judge DPR on lab"] == config.judge


def test_capabilities_are_answered_by_all_and_judged_by_nobody() -> None:
    cool = "evaluation.controls.cool={type: sft, match: DPR}"
    plain, nodes = graph(), graph(cool, "evaluation.capabilities={gsm8k: {path: a.jsonl}}")
    answers = [f"answer {policy} on gsm8k" for policy in ("SFT", "DPR", "extrapolated", "cool")]
    assert [name for name in nodes if name.endswith("on gsm8k")] == answers
    assert nodes["answer cool on gsm8k"].inputs == {"policy": "@sft", "match": "@answer DPR on gsm8k"}
    assert nodes["report"].inputs.items() >= {name.removeprefix("answer "): f"@{name}" for name in answers}.items()
    assert nodes["judge DPR on lab"] == plain["judge DPR on lab"]


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ("{lima: {}}", "lima has no results that a program can check"),
        ("{likelihood: {path: a.jsonl}}", "likelihood has no results that a program can check"),
        ("{lab: {type: lab}}", "lab is in benchmarks and in capabilities"),
        ("{sums: {type: lab}}", "must be equal, or prompts kept for evaluation would be trained on"),
    ],
)
def test_capabilities_that_no_program_can_check_are_refused(capabilities: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        graph(f"evaluation.capabilities={capabilities}")
