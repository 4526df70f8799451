"""What each stage needs: the moments at which its memory is fullest, and the work it does. Numbers alone decide."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import AnswerConfig, AsTrainedConfig, BestOfNConfig, ContrastiveConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.imitation import ContinuedSFTConfig, SelfPlayConfig
from dpr_core.config.reinforce import PPOConfig, ReinforceConfig
from dpr_core.config.reward import DiagnoseConfig, RewardConfig
from dpr_core.config.training import LengthsConfig, LoRAConfig, SFTConfig
from dpr_core.planning import compute
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.compute import Sequences, StageWork
from dpr_core.planning.memory import LIVE_CHUNKS_ENTROPY, LIVE_CHUNKS_KL, Memory, MemoryBreakdown
from dpr_core.planning.served import VllmServerShare, server_for


@dataclass(frozen=True)
class Questions:
    """How many a benchmark has, and how many turns each."""

    count: int
    turns: int = 1


@dataclass(frozen=True)
class PlanInputs:
    """What a stage's own settings do not say."""

    architecture: Architecture
    dtype: str
    attention: str
    demonstrations: int
    learned: LengthsConfig
    """The limits of SFT, which the reward's demonstrations keep."""
    mean_prompt: float | None = None
    mean_response: float | None = None
    share: float = 0.5
    """Where these are not given, they are this share of the longest."""
    source: str = "sft"
    """The stage whose policy answers."""
    questions: Questions = Questions(0)
    on_gpu: bool = True

    def memory(self, execution: ExecutionConfig, prompt: int, response: int) -> Memory:
        return Memory(self.architecture, self.dtype, self.attention, execution, prompt, response, self.on_gpu)

    def sequences(self, count: float, prompt: int, response: int) -> Sequences:
        mean_prompt = self.share * prompt if self.mean_prompt is None else min(self.mean_prompt, prompt)
        mean_response = self.share * response if self.mean_response is None else min(self.mean_response, response)
        return Sequences(count, mean_prompt, mean_response)


@dataclass(frozen=True)
class Needs:
    """Of one stage on one GPU."""

    moments: dict[str, MemoryBreakdown]
    """By what is being done, the fullest moment of that."""
    work: StageWork
    longest: int
    """Tokens of the longest sequence that the limits allow, or that the model has positions for."""
    server: VllmServerShare | None = field(default=None, kw_only=True)
    """What draws in its place, if that is on the same GPU."""
    drawing: float = 0
    """Bytes of the whole networks that draw, beyond copies, which a process that holds slices gathers for that."""

    @property
    def fullest(self) -> str:
        return max(self.moments, key=lambda moment: self.moments[moment].total)

    @property
    def peak(self) -> MemoryBreakdown:
        return self.moments[self.fullest]


def needs(config: StageConfig, circumstances: PlanInputs) -> Needs:
    """Of a stage, by the type of its settings."""
    return _NEEDS[type(config)](config, circumstances)


def plannable(config: StageConfig) -> bool:
    """False for stages that run no network of note."""
    return type(config) in _NEEDS


def _fullest(lasting: MemoryBreakdown, moments: Sequence[MemoryBreakdown]) -> MemoryBreakdown:
    return lasting + max(moments, key=lambda parts: parts.total)


def _learned(memory: Memory, lora: LoRAConfig | None) -> float:
    """Bytes of a network's weights that are trained."""
    return memory.adapters(lora) if lora else memory.network


def _learning(memory: Memory, lasting: MemoryBreakdown, lora: LoRAConfig | None = None) -> dict[str, MemoryBreakdown]:
    """`lasting` with the moments of all that is trained; one network learns at a time."""
    weights = _learned(memory, lora)
    with_gradients = replace(lasting, gradients=weights)
    return {"learning": _fullest(with_gradients, memory.training(adapters=lora is not None))}


def _chunked(memory: Memory, sequences: Sequences) -> bool:
    """Logits of a micro-batch come in several chunks, each computed again for the backward pass."""
    rows = memory.tokens * sequences.response / sequences.length
    return rows * memory.architecture.vocabulary > memory.execution.logits_per_chunk


def _trained(memory: Memory, sequences: Sequences, lora: LoRAConfig | None = None) -> StageWork:
    checkpointing, chunks = memory.execution.gradient_checkpointing, _chunked(memory, sequences)
    return compute.training(memory.architecture, sequences, checkpointing, chunks, lora is not None)


def _drawn(memory: Memory, sequences: Sequences) -> StageWork:
    halved = memory.dtype == "bfloat16"
    return compute.drawing(
        memory.architecture, sequences, memory.execution.rollout_rows, memory.longest_response, halved
    )


def sft(config: SFTConfig | ContinuedSFTConfig, around: PlanInputs) -> Needs:
    limits = config.max_prompt_tokens, config.max_response_tokens
    memory = around.memory(config.execution, *limits)
    average = memory.network if getattr(config, "ema_decay", None) else 0
    lora: LoRAConfig | None = getattr(config, "lora", None)
    learned = _learned(memory, lora)
    weights = memory.frozen + learned if lora else memory.network
    lasting = MemoryBreakdown(weights=weights, optimizer=2 * learned, copies=average)
    sequences = around.sequences(around.demonstrations * config.epochs, *limits)
    return Needs(_learning(memory, lasting, lora), _trained(memory, sequences, lora), memory.longest)


def reward(config: RewardConfig, around: PlanInputs) -> Needs:
    limits = around.learned.max_prompt_tokens, around.learned.max_response_tokens
    memory = around.memory(config.execution, *limits)
    moments = {"scoring": _fullest(MemoryBreakdown(scorers=2 * memory.frozen), memory.scoring())}
    probes = around.sequences(min(config.probe_demonstrations, around.demonstrations), *limits)
    passes = 4 if config.normalise else 2
    return Needs(moments, compute.forward(around.architecture, probes) * passes, memory.longest)


def diagnose(config: DiagnoseConfig, around: PlanInputs) -> Needs:
    limits = around.learned.max_prompt_tokens, config.max_response_tokens
    memory = around.memory(config.execution, *limits)
    answers = around.sequences(config.prompts * config.samples, *limits)
    demonstrations = around.sequences(min(config.demonstrations, around.demonstrations), *limits)
    scorers = MemoryBreakdown(scorers=2 * memory.frozen)
    moments = {
        "drawing": _fullest(scorers, memory.drawing(round(answers.count))),
        "scoring": _fullest(scorers, memory.scoring()),
    }
    scored = compute.forward(around.architecture, answers) + compute.forward(around.architecture, demonstrations)
    return Needs(moments, _drawn(memory, answers) + scored * 2, memory.longest, memory.frozen)


def reinforce(config: ReinforceConfig, around: PlanInputs) -> Needs:
    limits = config.max_prompt_tokens, config.max_response_tokens
    memory = around.memory(config.execution, *limits)
    critic = memory.critic if isinstance(config.algorithm, PPOConfig) else 0
    learned = _learned(memory, config.lora)
    # Beside adapters, of which the critic has as many as the policy, casts are all that is held of matrices.
    trained = learned + (learned if config.lora else critic) * bool(critic)
    rounded = memory.casts * (1 + bool(critic))
    lasting = MemoryBreakdown(
        weights=memory.network + critic + (trained - rounded if config.lora else 0),
        optimizer=2 * trained,
        scorers=2 * memory.frozen,
        copies=learned if config.guard else 0,
    )
    count = config.rollout_batch_size * config.samples_per_prompt
    moments = {
        "drawing": _fullest(lasting, memory.drawing(count, learned=config.lora is None)),
        "scoring": _fullest(lasting, memory.scoring(LIVE_CHUNKS_ENTROPY)),
        **_learning(memory, lasting, config.lora),
    }
    sequences = around.sequences(count, *limits)
    once = compute.forward(around.architecture, sequences)
    update = _trained(memory, sequences, config.lora)
    values = replace(once + update, head=0) if critic else StageWork()
    iterations = config.iterations or max(1, math.ceil(around.demonstrations / config.rollout_batch_size))
    rollouts = _drawn(memory, sequences) + once * 3
    work = rollouts * (iterations + 1) + (update + values) * iterations
    gathered = memory.frozen if config.lora else memory.frozen - memory.casts
    return Needs(moments, work, memory.longest, gathered)


def self_play(config: SelfPlayConfig, around: PlanInputs) -> Needs:
    limits = config.max_prompt_tokens, config.max_response_tokens
    memory = around.memory(config.execution, *limits)
    lasting = MemoryBreakdown(weights=memory.network, optimizer=2 * memory.network)
    fresh = min(config.pairs or around.demonstrations, around.demonstrations)
    pairs = fresh + (config.rounds - 1) * fresh * (1 + config.mix_previous)
    moments = {
        "drawing": _fullest(lasting, memory.drawing(fresh, learned=True)),
        "scoring": _fullest(lasting, memory.scoring()),
        **_learning(memory, lasting),
    }
    both = around.sequences(2 * pairs, *limits)
    once = compute.forward(around.architecture, both)
    drawn = _drawn(memory, around.sequences(fresh, *limits)) * config.rounds
    work = drawn + once + (once + _trained(memory, both)) * config.epochs
    return Needs(moments, work, memory.longest, memory.frozen - memory.casts)


def answer(config: AnswerConfig, around: PlanInputs) -> Needs:
    turns, policy = around.questions.turns, config.policy
    # In front of a later turn stands the conversation so far.
    prompt = config.max_prompt_tokens + (turns - 1) * config.max_response_tokens
    memory = around.memory(config.execution, prompt, config.max_response_tokens)
    rewarded = around.source in ("reward", "reinforce")
    frozen = 2 if rewarded else 0 if around.source == "sft" else 1
    own = 0 if rewarded and isinstance(policy, ContrastiveConfig | BestOfNConfig) else 1
    if rewarded and isinstance(policy, AsTrainedConfig) and around.source == "reward":
        own = 0
    lasting = MemoryBreakdown(weights=own * memory.frozen, scorers=frozen * memory.frozen)
    samples = policy.n if isinstance(policy, BestOfNConfig) else 1
    models = 2 if isinstance(policy, ContrastiveConfig) else 1
    count = around.questions.count * samples
    moments = {"drawing": _fullest(lasting, memory.drawing(count, models))}
    if frozen:
        moments["scoring"] = _fullest(lasting, memory.scoring(LIVE_CHUNKS_KL))
    sequences = around.sequences(count * turns, prompt, config.max_response_tokens)
    scored = compute.forward(around.architecture, sequences) * (frozen + own if frozen else 0)
    return Needs(moments, _drawn(memory, sequences) * models + scored, memory.longest, models * memory.frozen)


def reinforce_by_engine(config: ReinforceConfig, around: PlanInputs) -> Needs:
    """Where vLLM draws, the process that learns never does."""
    found = reinforce(config, around)
    if config.rollouts.type == "in_process":
        return found
    memory = around.memory(config.execution, config.max_prompt_tokens, config.max_response_tokens)
    moments = {name: parts for name, parts in found.moments.items() if name != "drawing"}
    return replace(found, moments=moments, server=server_for(config.rollouts, memory))


_NEEDS: dict[type[StageConfig], Callable[[Any, PlanInputs], Needs]] = {
    SFTConfig: sft,
    ContinuedSFTConfig: sft,
    RewardConfig: reward,
    DiagnoseConfig: diagnose,
    ReinforceConfig: reinforce_by_engine,
    SelfPlayConfig: self_play,
    AnswerConfig: answer,
}
