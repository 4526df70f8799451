"""The pipeline's graph: which stages a configuration asks for, and what each is built on."""

from dpr_core.config.evaluation import AnswerConfig, AsTrained, Policy
from dpr_core.config.model import LabBackbone
from dpr_core.config.pipeline import PipelineConfig
from tasks.graph import Node

TRAINED = "DPR"
"""What the trained policy is called in the report."""


def nodes(config: PipelineConfig) -> list[Node]:
    """Every stage of a pipeline run, each after what it needs. `@name` refers to another node's artifact."""
    graph: list[Node] = []
    sft, sft_inputs = config.sft, {"data": "@subsample"}
    if isinstance(config.backbone, LabBackbone):
        graph.append(Node("backbone", "backbone", config.backbone, {}))
        sft_inputs["backbone"] = "@backbone"
    else:
        sft = sft.model_copy(update={"backbone": config.backbone})
    graph += [
        Node("subsample", "subsample", config.subsample, {}),
        Node("sft", "sft", sft, sft_inputs),
        Node("reward", "reward", config.reward, {"sft": "@sft"}),
        Node("reinforce", "reinforce", config.reinforce, {"reward": "@reward"}),
    ]
    verdicts: dict[str, str] = {}
    for benchmark in config.evaluation.benchmarks:
        baseline = _answers(config, benchmark, "SFT", AsTrained(), "@sft")
        graph.append(baseline)
        policies: dict[str, tuple[Policy, str]] = {TRAINED: (AsTrained(), "@reinforce")}
        policies |= {name: (control, "@reward") for name, control in config.evaluation.controls.items()}
        for name, (policy, source) in policies.items():
            answers = _answers(config, benchmark, name, policy, source)
            verdict = Node(
                f"judge {name} on {benchmark}",
                "judge",
                config.judge,
                {"candidate": f"@{answers.name}", "baseline": f"@{baseline.name}"},
            )
            graph += [answers, verdict]
            verdicts[f"{name} on {benchmark}"] = f"@{verdict.name}"
    if verdicts:
        graph.append(Node("report", "report", config.report, verdicts))
    return graph


def _answers(config: PipelineConfig, benchmark: str, name: str, policy: Policy, source: str) -> Node:
    settings = AnswerConfig(**dict(config.answer), benchmark=config.evaluation.benchmarks[benchmark], policy=policy)
    return Node(f"answer {name} on {benchmark}", "answer", settings, {"policy": source})
