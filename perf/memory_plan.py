"""Peak memory: what `dpr plan` predicts against what is measured, for randomly initialised networks, as Markdown.

    python perf/memory_plan.py --width 512 --layers 6

Every case runs in a process of its own on the CPU. What is measured is what torch's allocator hands out, beyond what
lay there before: the highest sum of allocations and releases that its profiler saw. That is what runs out on a GPU.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.reward import RewardConfig
from dpr_core.config.training import SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.planning.architecture import architecture_from_config
from dpr_core.planning.memory import MemoryBreakdown
from dpr_core.planning.stages import PlanInputs, StageEstimate, estimate
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.trainer import Trainer

Work = Callable[[], object]

NEVER = -1
"""An end token that no row draws, so that all responses are as long as they may be."""


@dataclass(frozen=True)
class Shape:
    """The network, and how much of it goes through at once."""

    width: int
    layers: int
    vocabulary: int
    tokens: int
    rows: int
    prompt: int
    response: int
    tied: bool = False
    """The head is the embedding."""


@dataclass(frozen=True)
class PlannedCase:
    """Something to do, what lies there before, and what the plan says of it."""

    lasting: int
    """Bytes of tensors, counted."""
    work: Work
    planned: MemoryBreakdown


def network(shape: Shape) -> LlamaForCausalLM:
    """Random weights; a head is 64 wide, and two heads share their keys."""
    heads = max(2, shape.width // 64)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=3 * shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=4096,
            tie_word_embeddings=shape.tied,
        )
    )


class MeasuredStage:
    """Builds the cases of one shape."""

    def __init__(self, shape: Shape, dtype: str, checkpointing: bool) -> None:
        self.shape, self.dtype = shape, dtype
        self.limits = {"max_prompt_tokens": shape.prompt, "max_response_tokens": shape.response}
        self.execution = ExecutionConfig(
            tokens_per_micro_batch=shape.tokens,
            logits_per_chunk=2**21,
            rollout_rows=shape.rows,
            gradient_checkpointing=checkpointing,
        )
        each = tuple(range(3, 3 + shape.prompt)), tuple(range(3, 3 + shape.response))
        self.sequences = [TokenSequence(*each)] * (2 * max(1, shape.tokens // (shape.prompt + shape.response)))

    def policy(self) -> Policy:
        return Policy(network(self.shape), self.execution.logits_per_chunk, getattr(torch, self.dtype))

    def needs(self, config: Any) -> StageEstimate:
        learned = SFTConfig(**self.limits)
        architecture = architecture_from_config(network(self.shape).config)
        rows = len(self.sequences)
        return estimate(config, PlanInputs(architecture, self.dtype, "sdpa", rows, learned, on_gpu=False))

    def sft(self) -> PlannedCase:
        config = SFTConfig(**self.limits, batch_size=len(self.sequences), execution=self.execution)
        policy = self.policy()
        trainer = Trainer(policy, config, 10, config.execution)
        trainer.step(self.sequences[:1], SupervisedFineTuning())
        lasting = size(policy.parameters()) + moments(trainer)
        planned = self.needs(config).moments["learning"]
        return PlannedCase(lasting, lambda: trainer.step(self.sequences, SupervisedFineTuning()), planned)

    def score(self) -> PlannedCase:
        config = RewardConfig(execution=self.execution)
        reward = self.reward()
        lasting = size(reward.sft.parameters()) + size(reward.reference.parameters())
        return PlannedCase(lasting, lambda: reward(self.sequences), self.needs(config).moments["scoring"])

    def rollout(self) -> PlannedCase:
        config = ReinforceConfig(**self.limits, rollout_batch_size=self.shape.rows, execution=self.execution)
        loop, trainer = self.loop(config)
        prompts = self.prompts()
        lasting = size(loop.policy.parameters()) + moments(trainer) + size(loop.reward.sft.parameters()) * 2
        planned = self.needs(config).moments["drawing"]
        return PlannedCase(lasting, lambda: loop.engine.generate(prompts, sampling(config), 0), planned)

    def reinforce(self) -> PlannedCase:
        """One whole iteration and the rollout after it."""
        rows = self.shape.rows
        sizes = {"rollout_batch_size": rows, "batch_size": rows, "iterations": 1}
        config = ReinforceConfig(**self.limits, **sizes, execution=self.execution)
        loop, trainer = self.loop(config)
        lasting = size(loop.policy.parameters()) + moments(trainer) + size(loop.reward.sft.parameters()) * 2
        work = lambda: loop.run(self.prompts())  # noqa: E731
        return PlannedCase(lasting, work, self.needs(config).peak)

    def prompts(self) -> list[tuple[int, ...]]:
        """No two are the same, or one would be read for both."""
        return [(first, *self.sequences[0].prompt[1:]) for first in range(3, 3 + self.shape.rows)]

    def reward(self) -> TokenReward:
        tokens = self.execution.tokens_per_micro_batch
        return TokenReward(self.policy(), self.policy(), "baseline_relative", tokens)

    def loop(self, config: ReinforceConfig) -> tuple[ReinforceLoop, Trainer]:
        policy, reward = self.policy(), self.reward()
        trainer = Trainer(policy, config, 10, config.execution)
        trainer.step(self.sequences[:1], SupervisedFineTuning())
        engine = InProcessEngine(policy.model, config.execution.rollout_rows, policy.activations)
        decode = lambda ids: ""  # noqa: E731
        return ReinforceLoop(policy, engine, reward, trainer, config, NEVER, decode, InMemoryRecorder()), trainer


CASES: dict[str, Callable[[MeasuredStage], PlannedCase]] = {
    "sft": MeasuredStage.sft,
    "score": MeasuredStage.score,
    "rollout": MeasuredStage.rollout,
    "reinforce": MeasuredStage.reinforce,
}


def sampling(config: ReinforceConfig) -> Any:
    from dpr_core.rollouts.engine import Sampling

    return Sampling(config.temperature, config.max_response_tokens, NEVER)


def size(tensors: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def moments(trainer: Trainer) -> int:
    return size(each for state in trainer.optimizer.state.values() for each in state.values() if each.dim() > 0)


def measured(work: Work) -> int:
    """The highest sum of what was allocated and not yet released."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def compared(name: str, shape: Shape, dtype: str, checkpointing: bool) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(1)
    case = CASES[name](MeasuredStage(shape, dtype, checkpointing))
    used = measured(case.work)
    planned = case.planned.as_dict()
    kept = sum(planned[part] for part in ("weights", "optimizer", "scorers"))
    return {
        "case": name,
        "dtype": dtype,
        "gradient_checkpointing": checkpointing,
        "planned_parts": planned,
        "planned_lasting": kept,
        "measured_lasting": case.lasting,
        "planned_beyond": round(case.planned.total) - kept,
        "measured_beyond": used,
        "ratio_beyond": (case.planned.total - kept) / used,
        "ratio": case.planned.total / (case.lasting + used),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| case | lasting: planned | counted | beyond it: planned | measured | planned / measured | of all |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        recomputing = ", recomputing" if row["gradient_checkpointing"] else ""
        sizes = ("planned_lasting", "measured_lasting", "planned_beyond", "measured_beyond")
        cells = [f"{row['case']}, {row['dtype']}{recomputing}", *(f"{row[each] / 1e6:.0f} MB" for each in sizes)]
        cells += [f"{row['ratio_beyond']:.2f}", f"{row['ratio']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 512, "layers": 6, "vocabulary": 32768, "tokens": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"rows": 16, "prompt": 64, "response": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations; both where it is not said")
    parser.add_argument("--case", choices=CASES, help="one alone, in this process")
    parser.add_argument("--checkpointing", action="store_true", help="of that one: compute activations again")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    given = parser.parse_args()
    shape = Shape(*(getattr(given, name) for name in Shape.__dataclass_fields__))
    if given.case:
        rows = [compared(given.case, shape, given.dtype or "float32", given.checkpointing)]
    else:
        rows = [_alone(*each) for each in _all_cases(given.dtype)]
    print(json.dumps(rows, indent=2) if given.json else markdown(rows))


def _all_cases(dtype: str | None) -> list[tuple[str, str, bool]]:
    dtypes = [dtype] if dtype else ["float32", "bfloat16"]
    return [
        (name, each, again)
        for each in dtypes
        for name in CASES
        for again in (False, True)
        if name == "sft" or not again
    ]


def _alone(case: str, dtype: str, checkpointing: bool) -> dict[str, Any]:
    """The same command in a process of its own, for one case."""
    own = ["--case", case, "--dtype", dtype, "--json", *(["--checkpointing"] if checkpointing else [])]
    done = subprocess.run([sys.executable, *sys.argv, *own], stdout=subprocess.PIPE, check=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout)[0]
    return row


if __name__ == "__main__":
    main()
