"""The graph of a pipeline: the stages of a configuration, and the inputs of each."""

from collections.abc import Iterator

from dpr_core.config.base import StageConfig
from dpr_core.config.data import LabSourceConfig
from dpr_core.config.evaluation import (
    AnswerConfig,
    AsTrainedConfig,
    BestOfNConfig,
    KeptConfig,
    MatchedConfig,
    PolicyConfig,
    SFTPolicyConfig,
)
from dpr_core.config.gold import LikelihoodConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.config.official import MTBenchConfig
from dpr_core.config.pipeline import PipelineConfig, Variant, VariantConfig
from dpr_core.config.reward import DiagnoseConfig
from tasks.graph import Node
from tasks.stages.answer import MATCH
from tasks.stages.rate import RATED

TRAINED = "DPR"
"""What the trained policy is called in the report."""


def nodes(config: PipelineConfig) -> list[Node]:
    """Every stage of a pipeline run, each after what it needs. `@name` refers to another node's artifact."""
    graph: list[Node] = []
    sft, sft_inputs = config.sft, {"data": "@subsample"}
    if isinstance(config.backbone, LabBackboneConfig):
        graph.append(Node("backbone", "backbone", config.backbone, {}))
        sft_inputs["backbone"] = "@backbone"
    else:
        sft = sft.model_copy(update={"backbone": config.backbone})
    graph += [
        Node("subsample", "subsample", config.subsample, {}),
        Node("sft", "sft", sft, sft_inputs),
        Node("reward", "reward", config.reward, {"sft": "@sft"}),
    ]
    if config.diagnose is not None:
        graph.append(Node("diagnose", "diagnose", _diagnosis(config.diagnose, config), {"reward": "@reward"}))
    trained = Variant(config.reward, config.reinforce, config.prompts)
    graph += _reinforced(config, "reinforce", trained)
    policies: dict[str, tuple[PolicyConfig, str]] = {TRAINED: (AsTrainedConfig(), "@reinforce")}
    for name in config.methods:
        graph += _method(config, name)
        policies[name] = AsTrainedConfig(), f"@{name}"
    policies |= {name: (control, _source(control)) for name, control in config.evaluation.controls.items()}
    return graph + _evaluation(config, policies)


def _diagnosis(diagnose: DiagnoseConfig, config: PipelineConfig) -> DiagnoseConfig:
    """The lab's results are known; those of other demonstrations are read off them."""
    if diagnose.stated_results is None and not isinstance(config.subsample.source, LabSourceConfig):
        return diagnose.model_copy(update={"stated_results": True})
    return diagnose


def _source(control: PolicyConfig) -> str:
    """The node whose artifact a control is made of."""
    if isinstance(control, KeptConfig):
        return "@reinforce" if control.of == TRAINED else f"@{control.of}"
    return "@sft" if isinstance(control, SFTPolicyConfig) else "@reward"


def _method(config: PipelineConfig, name: str) -> list[Node]:
    """The stages of one entry of `methods`; the last one has its name."""
    method = config.methods[name]
    if not isinstance(method, VariantConfig):
        stage: StageConfig = method
        return [Node(name, method.type, stage, {"sft": "@sft"})]
    return _reinforced(config, name, config.variants()[name])


def _reinforced(config: PipelineConfig, name: str, variant: Variant) -> list[Node]:
    """A policy trained by REINFORCE, after the reward and the prompts that are its own."""
    graph: list[Node] = []
    inputs = {"reward": "@reward"}
    if variant.reward != config.reward:
        inputs["reward"] = f"@reward of {name}"
        graph.append(Node(f"reward of {name}", "reward", variant.reward, {"sft": "@sft"}))
    if variant.prompts is not None:
        own = "prompts" if name == "reinforce" else f"prompts of {name}"
        shared = name != "reinforce" and variant.prompts == config.prompts
        inputs["prompts"] = "@prompts" if shared else f"@{own}"
        if not shared:
            graph.append(Node(own, "prompts", variant.prompts, {"data": "@subsample"}))
    return [*graph, Node(name, "reinforce", variant.reinforce, inputs)]


def _evaluation(config: PipelineConfig, policies: dict[str, tuple[PolicyConfig, str]]) -> list[Node]:
    """Every policy answers every benchmark and is judged against SFT; where that is asked for, it is rated too. Answers
    that show a capability are checked by a program alone."""
    graph: list[Node] = []
    verdicts: dict[str, str] = {}
    for benchmark, settings in config.evaluation.benchmarks.items():
        if isinstance(settings, LikelihoodConfig):
            scored = [_answers(config, benchmark, *each) for each in _with_likelihood(policies)]
            graph += scored
            verdicts |= {node.name.removeprefix("answer "): f"@{node.name}" for node in scored}
            continue
        baseline = _answers(config, benchmark, "SFT", AsTrainedConfig(), "@sft")
        graph.append(baseline)
        for name, (policy, source) in _matched_last(policies):
            answers = _answers(config, benchmark, name, policy, source)
            verdict = Node(
                f"judge {name} on {benchmark}",
                "judge",
                config.judge,
                {"candidate": f"@{answers.name}", "baseline": f"@{baseline.name}"},
            )
            graph += [answers, verdict]
            verdicts[f"{name} on {benchmark}"] = f"@{verdict.name}"
        if config.rate is not None and isinstance(settings, MTBenchConfig):
            for name in ("SFT", *policies):
                on = f"{name} on {benchmark}"
                graph.append(Node(f"rate {on}", "rate", config.rate, {"answers": f"@answer {on}"}))
                verdicts[on + RATED] = f"@rate {on}"
    for benchmark in config.evaluation.capabilities:
        for name, (policy, source) in [("SFT", (AsTrainedConfig(), "@sft")), *_matched_last(policies)]:
            answers = _answers(config, benchmark, name, policy, source)
            graph.append(answers)
            verdicts[f"{name} on {benchmark}"] = f"@{answers.name}"
    if verdicts:
        graph.append(Node("report", "report", config.report, verdicts))
    return graph


def _matched_last(policies: dict[str, tuple[PolicyConfig, str]]) -> list[tuple[str, tuple[PolicyConfig, str]]]:
    """What is matched comes after what it is matched to."""
    return sorted(policies.items(), key=lambda each: getattr(each[1][0], "match", None) is not None)


def _with_likelihood(policies: dict[str, tuple[PolicyConfig, str]]) -> Iterator[tuple[str, PolicyConfig, str]]:
    """SFT and the policies that are distributions of their own: no choice among samples, no other way to draw from SFT,
    and nothing that is found by answers."""
    yield "SFT", AsTrainedConfig(), "@sft"
    for name, (policy, source) in policies.items():
        if not isinstance(policy, BestOfNConfig | SFTPolicyConfig) and getattr(policy, "match", None) is None:
            yield name, policy, source


def _answers(config: PipelineConfig, benchmark: str, name: str, policy: PolicyConfig, source: str) -> Node:
    inputs = {"policy": source}
    # What policies are called in this pipeline is said by the inputs, and no part of what the answers are.
    if isinstance(policy, KeptConfig):
        policy = policy.model_copy(update={"of": TRAINED})
    elif isinstance(policy, MatchedConfig) and policy.match is not None:
        inputs[MATCH] = f"@answer {policy.match} on {benchmark}"
        policy = policy.model_copy(update={"match": MATCH})
    settings = AnswerConfig(**dict(config.answer), benchmark=config.evaluation.asked[benchmark], policy=policy)
    return Node(f"answer {name} on {benchmark}", "answer", settings, inputs)
