"""The memory and time that a recipe's run from scratch would need on a GPU, stage by stage."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.data import LabSourceConfig, PromptsConfig, SourceConfig
from dpr_core.config.evaluation import AnswerConfig
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.reward import AS_SFT, SFT
from dpr_core.evaluation import benchmarks
from dpr_core.planning import fit
from dpr_core.planning.architecture import Architecture, backbone_architecture
from dpr_core.planning.hours import AS_OF, RESERVED, Gpu
from dpr_core.planning.stages import BenchmarkSize, PlanInputs, StageEstimate, estimate, plannable
from flows import wiring
from flows.judging_costs import LIKELY_SHARE, Costs, judging_costs
from tasks.graph import Node, Planned


@dataclass(frozen=True)
class PlanTarget:
    """The hardware, and the lengths of texts where they are known."""

    gpu: Gpu
    gpus: int | None
    """None: as many as the recipe has processes."""
    utilisation: float
    mean_prompt: float | None = None
    mean_response: float | None = None
    reached: "Reached | None" = None
    """What hours are a range by; None where the utilisation is known."""

    @property
    def span(self) -> tuple[float, float]:
        """How many times its hours a stage takes at least, and at most."""
        if self.reached is None:
            return 1, 1
        return self.utilisation / self.reached.most, self.utilisation / self.reached.least


@dataclass(frozen=True)
class Reached:
    """The utilisation that is to be expected, from what was measured elsewhere."""

    least: float
    most: float
    sources: tuple[str, ...]


RESULTS = Path(__file__).parents[1] / "perf" / "results"


def reached(folder: Path = RESULTS) -> Reached | None:
    """What `perf/results` says of our program on any machine, and down to half of that: limits that were measured are
    nearer than a data sheet's. None where nothing was measured."""
    found: dict[str, list[float]] = {}
    for file in sorted(folder.glob("*.json")):
        rows = json.loads(file.read_text(encoding="utf-8")).get("benchmarks", {}).get("real_hours", {}).get("rows", [])
        if shares := [row["utilisation"] for row in rows if row["program"].startswith("dense-path")]:
            found[file.name] = shares
    every = [share for shares in found.values() for share in shares]
    return Reached(min(every) / 2, max(every), tuple(found)) if every else None


@dataclass(frozen=True)
class StagePlan:
    """One stage, or all answers of one policy together."""

    name: str
    stage: str
    needs: StageEstimate
    """Of the whole stage, were it one process."""
    launch: LaunchConfig
    on_each: float
    """Bytes on each of the GPUs that share the stage."""
    room: float
    """Bytes that its processes can have on each of them: a server of its own has taken its share."""
    fits: bool
    """The server into its share, too."""
    nearest: fit.Fit
    """With smaller settings of `execution`."""
    sharded: fit.Fit
    """The same, with slices of what lasts on all GPUs."""
    hours: float
    faster: fit.Faster | None
    """Than as it is, or where it does not fit, than with the nearest settings that do."""

    def as_dict(self, gpu: Gpu) -> dict[str, Any]:
        peak, work, server = self.needs.peak, self.needs.work, self.needs.server
        return {
            "name": self.name,
            "stage": self.stage,
            "fullest_while": self.needs.fullest,
            "bytes": round(peak.total),
            "processes": self.launch.count,
            "strategy": self.launch.strategy if self.launch.count > 1 else None,
            "bytes_on_each": round(self.on_each),
            "room_bytes": round(self.room),
            "server": server.as_dict(gpu.memory) if server else None,
            "parts": peak.as_dict(),
            "moments": {name: round(parts.total) for name, parts in self.needs.moments.items()},
            "fits": self.fits,
            "nearest": self.nearest.changes,
            "nearest_if_sharded": self.sharded.changes,
            "least_bytes": round(self.nearest.least),
            "least_bytes_if_sharded": round(self.sharded.least),
            "tokens": round(work.tokens),
            "operations": work.operations,
            "hours": self.hours,
            "faster": asdict(self.faster) if self.faster else None,
        }


@dataclass(frozen=True)
class RunPlan:
    """The whole recipe."""

    recipe: str
    target: PlanTarget
    gpus: int
    architecture: Architecture
    stages: list[StagePlan]
    costs: Costs
    served: bool
    """Whether vLLM is to draw for a stage."""

    def as_dict(self) -> dict[str, Any]:
        gpu = self.target.gpu
        return {
            "recipe": self.recipe,
            "gpu": {**asdict(gpu), "usable_bytes": round(gpu.usable), "as_of": AS_OF},
            "gpus": self.gpus,
            "parameters": self.architecture.parameters,
            "stages": [stage.as_dict(gpu) for stage in self.stages],
            "hours": self.hours,
            "hours_range": [self.hours * times for times in self.target.span],
            "utilisation_range": None if self.target.reached is None else asdict(self.target.reached),
            "fits": self.fits,
            "judging": self.costs.as_dict(),
            "assumed": self.assumed,
        }

    @property
    def hours(self) -> float:
        return sum(stage.hours for stage in self.stages)

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def assumed(self) -> list[str]:
        """The assumptions behind the numbers, in sentences."""
        target, model = self.target, self.architecture
        means = {"prompts": target.mean_prompt, "responses": target.mean_response}
        of = [
            f"{name} of {LIKELY_SHARE:.0%} of their longest" if mean is None else f"{name} of {mean:g} tokens"
            for name, mean in means.items()
        ]
        sentences = [
            f"Memory is for the longest sequences that the limits allow; {RESERVED:.0%} of the GPU is left for its "
            "context and for fragments. Weights, gradients and Adam's moments are float32.",
            f"Tokens and times are for {' and '.join(of)}, at {self._utilisation} of the operations and of the "
            f"bandwidth that the {target.gpu.name} is listed with here ({AS_OF}).",
        ]
        if target.reached is not None:
            sentences.append(
                f"These shares are from {' and '.join(f'perf/results/{name}' for name in target.reached.sources)}: the "
                "most that was measured of a machine's own limits, and half of the least, since a data sheet's limits "
                f"are further off. On this GPU nothing was measured; --utilisation {target.utilisation:g} has one time."
            )
        if self.gpus > 1:
            sentences.append(
                "Hours of a stage that several processes share are divided by their number: what they exchange, and "
                f"how they wait for each other, is left out. A stage of one process leaves {self.gpus - 1} GPUs idle."
            )
        if any(stage.launch.cpu_offload for stage in self.stages):
            sentences.append("With cpu_offload, what lasts is in the memory of the machine, which is not checked here.")
        if self.served:
            sentences.append(
                "A vLLM server that REINFORCE starts has rollouts.execution.memory_share of the first GPU, and the "
                "rest is for the stage. One that url names takes nothing here. Hours are as if the stage itself drew."
            )
        if (longest := max(stage.needs.longest for stage in self.stages)) == model.positions:
            sentences.append(
                f"The limits allow for more than the model's {longest} positions; such sequences are refused."
            )
        return sentences

    @property
    def _utilisation(self) -> str:
        found = self.target.reached
        return f"{self.target.utilisation:.0%}" if found is None else f"{found.least:.0%} to {found.most:.0%}"


def plan(recipe: str, config: PipelineConfig, target: PlanTarget) -> RunPlan:
    """Arithmetic alone: no store, no data, no weights."""
    nodes = wiring.nodes(config)
    model = backbone_architecture(config.backbone)
    inputs = _plan_inputs(config, model, target)
    groups = list(_grouped(nodes, inputs))
    gpus = target.gpus or max(_execution(several).launch.count for _, several in groups)
    stages = [_stage(name, several, inputs, target, gpus) for name, several in groups]
    to_run = [Planned(node.name, node.stage, "run", None, "") for node in nodes]
    served = any(isinstance(node.config, ReinforceConfig) and node.config.rollouts.type == "vllm" for node in nodes)
    return RunPlan(recipe, target, gpus, model, stages, judging_costs(nodes, to_run, None), served)


def node_hours(config: PipelineConfig, target: PlanTarget) -> dict[str, float]:
    """Hours of every stage that runs networks, by the name of its node."""
    inputs = _plan_inputs(config, backbone_architecture(config.backbone), target)

    def hours(config: StageConfig, own: PlanInputs) -> float:
        execution: ExecutionConfig = cast(Any, config).execution
        work = estimate(config, own).work
        return (
            work.hours(target.gpu, own.dtype, target.utilisation, execution.tf32_head)
            / execution.launch.on(target.gpus or 1).count
        )

    return {node.name: hours(node.config, own) for node, own in _with_inputs(wiring.nodes(config), inputs)}


def _plan_inputs(config: PipelineConfig, model: Architecture, target: PlanTarget) -> PlanInputs:
    backbone = config.backbone
    pretrained = isinstance(backbone, PretrainedBackboneConfig)
    return PlanInputs(
        architecture=model,
        dtype=backbone.dtype if isinstance(backbone, PretrainedBackboneConfig) else "float32",
        attention=backbone.attention if pretrained else "sdpa",
        demonstrations=_rows(config.subsample.size, config.subsample.source),
        learned=config.sft,
        mean_prompt=target.mean_prompt,
        mean_response=target.mean_response,
        share=LIKELY_SHARE,
        teacher=config.reward.teacher is not None and config.reward.reference != SFT,
        exact_reward=pretrained
        and backbone.dtype == "bfloat16"
        and backbone.takes_float32
        and config.reward.arithmetic not in (AS_SFT, "bfloat16"),
    )


def _rows(size: int, source: SourceConfig) -> int:
    return min(size, source.rows) if isinstance(source, LabSourceConfig) else size


StageInputs = tuple[StageConfig, PlanInputs]


def _grouped(nodes: Sequence[Node], inputs: PlanInputs) -> Iterator[tuple[str, list[tuple[str, StageInputs]]]]:
    """Each stage alone, but a policy's answers to all benchmarks in one."""
    groups: dict[str, list[tuple[str, StageInputs]]] = {}
    for node, own in _with_inputs(nodes, inputs):
        name = node.name.rpartition(" on ")[0] if isinstance(node.config, AnswerConfig) else node.name
        groups.setdefault(name, []).append((node.stage, (node.config, own)))
    yield from groups.items()


def _with_inputs(nodes: Sequence[Node], inputs: PlanInputs) -> Iterator[tuple[Node, PlanInputs]]:
    """The nodes that can be planned, each with what is known beside its settings."""
    stage_of = {node.name: node.stage for node in nodes}
    configs: dict[str, Any] = {node.name: node.config for node in nodes}
    for node in nodes:
        if not plannable(node.config):
            continue
        own = inputs
        if isinstance(node.config, AnswerConfig):
            source = stage_of[node.inputs["policy"].removeprefix("@")]
            own = replace(inputs, source=source, questions=_questions(node.config))
        if isinstance(drawn := configs.get(node.inputs.get("prompts", "").removeprefix("@")), PromptsConfig):
            own = replace(inputs, demonstrations=_rows(drawn.size, drawn.source or configs["subsample"].source))
        yield node, own


def _questions(config: AnswerConfig) -> BenchmarkSize:
    absent = benchmarks.missing(config.benchmark) is not None
    found = benchmarks.placeholder_questions(config.benchmark) if absent else benchmarks.load(config.benchmark)
    return BenchmarkSize(len(found), max(len(question.turns) for question in found))


def _execution(several: list[tuple[str, StageInputs]]) -> ExecutionConfig:
    """Of stages that are planned together, the first one's."""
    execution: ExecutionConfig = cast(Any, several[0][1][0]).execution
    return execution


def _stage(
    name: str, several: list[tuple[str, StageInputs]], inputs: PlanInputs, target: PlanTarget, gpus: int
) -> StagePlan:
    each = [estimate(config, own) for _, (config, own) in several]
    fullest, work = max(each, key=lambda found: found.peak.total), each[0].work
    for more in each[1:]:
        work += more.work
    first = _execution(several)
    launch = first.launch.model_copy(update={"processes": gpus}) if first.launch.processes != 1 else first.launch

    def with_execution(execution: ExecutionConfig) -> StageEstimate:
        changed = [estimate(cast(Any, c).model_copy(update={"execution": execution}), own) for _, (c, own) in several]
        return max(changed, key=lambda found: found.peak.total)

    def hours_with(execution: ExecutionConfig) -> float:
        works = [
            estimate(cast(Any, c).model_copy(update={"execution": execution}), own).work for _, (c, own) in several
        ]
        hours = [each.hours(target.gpu, inputs.dtype, target.utilisation, first.tf32_head) for each in works]
        return sum(hours) / launch.count

    server = fullest.server
    room = target.gpu.usable - (server.taken(target.gpu.memory) if server else 0)
    held = fit.bytes_per_gpu(inputs.architecture, launch)
    sharded = fit.bytes_per_gpu(inputs.architecture, LaunchConfig(processes=gpus, strategy="fsdp"))
    on_each = max(held(found) for found in each)
    nearest = fit.nearest_fit(with_execution, held, first, room)
    fitting = first.model_copy(update=nearest.changes) if nearest.changes is not None else None
    return StagePlan(
        name=name,
        stage=several[0][0],
        needs=replace(fullest, work=work),
        launch=launch,
        on_each=on_each,
        room=room,
        fits=on_each <= room and (server is None or server.fits(target.gpu.memory)),
        nearest=nearest,
        sharded=fit.nearest_fit(with_execution, sharded, first, room),
        hours=work.hours(target.gpu, inputs.dtype, target.utilisation, first.tf32_head) / launch.count,
        faster=fitting and fit.nearest_faster(with_execution, held, hours_with, fitting, room),
    )
