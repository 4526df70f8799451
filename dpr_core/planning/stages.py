"""Estimates by stage: peak memory of each of its phases, and the FLOPs and memory traffic of its work."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import AnswerConfig, AsTrainedConfig, BestOfNConfig, ContrastiveConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.imitation import ContinuedSFTConfig, SelfPlayConfig
from dpr_core.config.reinforce import FullVocabularyConfig, PPOConfig, ReinforceConfig
from dpr_core.config.reward import DiagnoseConfig, RewardConfig
from dpr_core.config.training import LengthsConfig, LoRAConfig, OptimizerConfig, SFTConfig
from dpr_core.planning import hours
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.hours import Sequences, StageWork
from dpr_core.planning.memory import (
    LIVE_CHUNKS_CONTRAST,
    LIVE_CHUNKS_ENTROPY,
    LIVE_CHUNKS_KL,
    MemoryBreakdown,
    NetworkMemory,
    VllmServerShare,
    vllm_server_share,
)


@dataclass(frozen=True)
class BenchmarkSize:
    """The number of questions of a benchmark, and of turns in each."""

    count: int
    turns: int = 1


@dataclass(frozen=True)
class PlanInputs:
    """Inputs of an estimate beyond the settings of the stage itself."""

    architecture: Architecture
    dtype: str
    attention: str
    demonstrations: int
    learned: LengthsConfig
    """The length limits of SFT, which also hold for the reward's demonstrations."""
    mean_prompt: float | None = None
    mean_response: float | None = None
    share: float = 0.5
    """Mean over greatest length, where the means are not given."""
    source: str = "sft"
    """The stage whose policy is evaluated."""
    questions: BenchmarkSize = BenchmarkSize(0)
    on_gpu: bool = True
    teacher: bool = False
    """Whether the reward has a third model, which is taken to be as large as the others."""
    exact_reward: bool = False
    """Whether the reward may be computed more exactly than SFT was, so that its models keep whole weights."""

    def memory(self, execution: ExecutionConfig, prompt: int, response: int) -> NetworkMemory:
        return NetworkMemory(self.architecture, self.dtype, self.attention, execution, prompt, response, self.on_gpu)

    @property
    def is_rounded(self) -> bool:
        """Whether networks are run in bfloat16, and can be in float32."""
        return self.dtype == "bfloat16" and self.attention != "flash_attention_2"

    def scorers(self, memory: NetworkMemory) -> float:
        """Bytes of the reward's models."""
        return (2 + self.teacher) * (memory.network if self.exact_reward else memory.frozen)

    def sequences(self, count: float, prompt: int, response: int) -> Sequences:
        mean_prompt = self.share * prompt if self.mean_prompt is None else min(self.mean_prompt, prompt)
        mean_response = self.share * response if self.mean_response is None else min(self.mean_response, response)
        return Sequences(count, mean_prompt, mean_response)


@dataclass(frozen=True)
class StageEstimate:
    """Memory and work of one stage on one GPU."""

    moments: dict[str, MemoryBreakdown]
    """The memory peak of each phase: drawing, scoring, learning."""
    work: StageWork
    longest: int
    """Tokens of the longest sequence that the limits allow, or that the model has positions for."""
    server: VllmServerShare | None = field(default=None, kw_only=True)
    """The vLLM server that decodes on the same GPU, if there is one."""
    drawing: float = 0
    """Bytes of unsharded networks that a sharded process gathers to decode."""

    @property
    def fullest(self) -> str:
        return max(self.moments, key=lambda moment: self.moments[moment].total)

    @property
    def peak(self) -> MemoryBreakdown:
        return self.moments[self.fullest]


def estimate(config: StageConfig, inputs: PlanInputs) -> StageEstimate:
    """The estimate of a stage, by the type of its config."""
    return _ESTIMATES[type(config)](config, inputs)


def plannable(config: StageConfig) -> bool:
    """Whether there is an estimate: False for stages that run no large network."""
    return type(config) in _ESTIMATES and not getattr(config, "imported", None)


def _peak(lasting: MemoryBreakdown, moments: Sequence[MemoryBreakdown]) -> MemoryBreakdown:
    return lasting + max(moments, key=lambda parts: parts.total)


def _trained_bytes(memory: NetworkMemory, lora: LoRAConfig | None) -> float:
    """Bytes of the trained weights."""
    return memory.adapters(lora) if lora else memory.network


def _moments(settings: OptimizerConfig) -> int:
    """Numbers that an optimizer keeps of each weight."""
    return 2 if settings.optimizer == "adamw" else 1


def _learning(
    memory: NetworkMemory, lasting: MemoryBreakdown, lora: LoRAConfig | None = None, entropy: bool = False
) -> dict[str, MemoryBreakdown]:
    """The training phase: `lasting` with gradients; of policy and critic one is trained at a time."""
    weights = _trained_bytes(memory, lora)
    with_gradients = replace(lasting, gradients=weights)
    return {"learning": _peak(with_gradients, memory.training(lora is not None, entropy))}


def _chunked(memory: NetworkMemory, sequences: Sequences) -> bool:
    """Whether the logits of a micro-batch come in several chunks, each recomputed in the backward pass."""
    rows = memory.tokens * sequences.response / sequences.length
    return rows * memory.architecture.vocabulary > memory.execution.logits_per_chunk


def _training_work(memory: NetworkMemory, sequences: Sequences, lora: LoRAConfig | None = None) -> StageWork:
    checkpointing, chunks = memory.execution.gradient_checkpointing, _chunked(memory, sequences)
    return hours.training(memory.architecture, sequences, checkpointing, chunks, lora is not None)


def _decoding_work(memory: NetworkMemory, sequences: Sequences) -> StageWork:
    halved = memory.dtype == "bfloat16"
    return hours.drawing(memory.architecture, sequences, memory.execution.rollout_rows, memory.longest_response, halved)


def sft(config: SFTConfig | ContinuedSFTConfig, inputs: PlanInputs) -> StageEstimate:
    limits = config.max_prompt_tokens, config.max_response_tokens
    memory = inputs.memory(config.execution, *limits)
    average = memory.network if getattr(config, "ema_decay", None) else 0
    lora: LoRAConfig | None = getattr(config, "lora", None)
    learned = _trained_bytes(memory, lora)
    weights = memory.frozen + learned if lora else memory.network
    lasting = MemoryBreakdown(weights=weights, optimizer=_moments(config) * learned, copies=average)
    sequences = inputs.sequences(inputs.demonstrations * config.epochs, *limits)
    return StageEstimate(_learning(memory, lasting, lora), _training_work(memory, sequences, lora), memory.longest)


def reward(config: RewardConfig, inputs: PlanInputs) -> StageEstimate:
    limits = inputs.learned.max_prompt_tokens, inputs.learned.max_response_tokens
    memory = inputs.memory(config.execution, *limits)
    moments = {"scoring": _peak(MemoryBreakdown(scorers=inputs.scorers(memory)), memory.scoring())}
    probes = inputs.sequences(min(config.probe_demonstrations, inputs.demonstrations), *limits)
    return StageEstimate(moments, hours.forward(inputs.architecture, probes) * 2, memory.longest)


def diagnose(config: DiagnoseConfig, inputs: PlanInputs) -> StageEstimate:
    limits = inputs.learned.max_prompt_tokens, config.max_response_tokens
    memory = inputs.memory(config.execution, *limits)
    answers = inputs.sequences(config.prompts * config.samples, *limits)
    demonstrations = inputs.sequences(min(config.demonstrations, inputs.demonstrations), *limits)
    scorers = MemoryBreakdown(scorers=inputs.scorers(memory))
    # What rounding costs is measured with one whole model at a time beside them, unless they are whole themselves.
    whole = MemoryBreakdown(copies=memory.network if inputs.is_rounded and not inputs.exact_reward else 0)
    moments = {
        "drawing": _peak(scorers, memory.drawing(round(answers.count), learned=inputs.exact_reward)),
        "scoring": _peak(scorers + whole, memory.scoring()),
    }
    scored = hours.forward(inputs.architecture, answers) + hours.forward(inputs.architecture, demonstrations)
    return StageEstimate(moments, _decoding_work(memory, answers) + scored * 2, memory.longest, memory.frozen)


def reinforce(config: ReinforceConfig, inputs: PlanInputs) -> StageEstimate:
    limits = config.max_prompt_tokens, config.max_response_tokens
    memory = inputs.memory(config.execution, *limits)
    critic = memory.critic if isinstance(config.algorithm, PPOConfig) else 0
    learned = _trained_bytes(memory, config.lora)
    # With adapters, of which the critic has as many as the policy, matrices are held as casts alone.
    trained = learned + (learned if config.lora else critic) * bool(critic)
    rounded = memory.casts * (1 + bool(critic))
    lasting = MemoryBreakdown(
        weights=memory.network + critic + (trained - rounded if config.lora else 0),
        optimizer=_moments(config) * trained,
        scorers=inputs.scorers(memory),
        copies=learned if config.guard else 0,
    )
    count = config.rollout_batch_size * config.samples_per_prompt
    # As `ReinforceLoop.one_step_on_policy`, but for a backbone's own dropout, which config.json seldom has.
    on_policy = (
        count <= config.batch_size
        and not config.over_vocabulary
        and config.rollouts.type == "in_process"
        and memory.dtype == "float32"
        and not (config.lora and config.lora.dropout)
        and not config.execution.graphs
    )
    whole = isinstance(config.algorithm, FullVocabularyConfig)
    # Chunks of three models' logits are a third as long.
    moments = {
        "drawing": _peak(lasting, memory.drawing(count, learned=config.lora is None)),
        "scoring": _peak(lasting, memory.scoring(LIVE_CHUNKS_ENTROPY)),
        **_learning(memory, lasting, config.lora, entropy=on_policy or whole),
    }
    sequences = inputs.sequences(count, *limits)
    once = hours.forward(inputs.architecture, sequences)
    update = _training_work(memory, sequences, config.lora)
    if whole:
        update = update + once * 2
    values = replace(once + update, head=0) if critic else StageWork()
    iterations = config.iterations or max(1, math.ceil(inputs.demonstrations / config.rollout_batch_size))
    # Where the reward may be computed more exactly, pi_SFT has another pass for the KL.
    rollouts = _decoding_work(memory, sequences) + once * (2 + inputs.exact_reward)
    warmup = config.algorithm.critic_warmup_iterations if isinstance(config.algorithm, PPOConfig) else 0
    by_actor = once * (warmup + 1 if on_policy else iterations + 1)
    work = rollouts * (iterations + 1) + by_actor + (update + values) * iterations
    gathered = memory.frozen if config.lora else memory.frozen - memory.casts
    return StageEstimate(moments, work, memory.longest, gathered)


def self_play(config: SelfPlayConfig, inputs: PlanInputs) -> StageEstimate:
    limits = config.max_prompt_tokens, config.max_response_tokens
    memory = inputs.memory(config.execution, *limits)
    lasting = MemoryBreakdown(weights=memory.network, optimizer=_moments(config) * memory.network)
    fresh = min(config.pairs or inputs.demonstrations, inputs.demonstrations)
    pairs = fresh + (config.rounds - 1) * fresh * (1 + config.mix_previous)
    moments = {
        "drawing": _peak(lasting, memory.drawing(fresh, learned=True)),
        "scoring": _peak(lasting, memory.scoring()),
        **_learning(memory, lasting),
    }
    both = inputs.sequences(2 * pairs, *limits)
    once = hours.forward(inputs.architecture, both)
    drawn = _decoding_work(memory, inputs.sequences(fresh, *limits)) * config.rounds
    work = drawn + once + (once + _training_work(memory, both)) * config.epochs
    return StageEstimate(moments, work, memory.longest, memory.frozen - memory.casts)


def answer(config: AnswerConfig, inputs: PlanInputs) -> StageEstimate:
    turns, policy = inputs.questions.turns, config.policy
    # The prompt of a later turn is the conversation so far.
    prompt = config.max_prompt_tokens + (turns - 1) * config.max_response_tokens
    memory = inputs.memory(config.execution, prompt, config.max_response_tokens)
    rewarded = inputs.source in ("reward", "reinforce")
    frozen = 2 if rewarded else 0 if inputs.source == "sft" else 1
    own = 0 if rewarded and isinstance(policy, ContrastiveConfig | BestOfNConfig) else 1
    if rewarded and isinstance(policy, AsTrainedConfig) and inputs.source == "reward":
        own = 0
    scorers = inputs.scorers(memory) if rewarded else frozen * memory.frozen
    lasting = MemoryBreakdown(weights=own * memory.frozen, scorers=scorers)
    samples = policy.n if isinstance(policy, BestOfNConfig) else 1
    models = 2 if isinstance(policy, ContrastiveConfig) else 1
    count = inputs.questions.count * samples
    moments = {"drawing": _peak(lasting, memory.drawing(count, models))}
    if frozen:
        moments["scoring"] = _peak(lasting, memory.scoring(LIVE_CHUNKS_CONTRAST if models > 1 else LIVE_CHUNKS_KL))
    sequences = inputs.sequences(count * turns, prompt, config.max_response_tokens)
    passes: float = frozen + own if frozen else 0
    # The chosen ones are scored once more; for the KL, whatever is not the trained policy has another pass where the
    # reward may be more exact.
    passes += 2 / samples if samples > 1 else models * inputs.exact_reward * (rewarded and own + models > 1)
    scored = hours.forward(inputs.architecture, sequences) * passes
    return StageEstimate(
        moments, _decoding_work(memory, sequences) * models + scored, memory.longest, models * memory.frozen
    )


def reinforce_by_engine(config: ReinforceConfig, inputs: PlanInputs) -> StageEstimate:
    """With a vLLM engine, the training process has no decoding phase."""
    own = reinforce(config, inputs)
    if config.rollouts.type == "in_process":
        return own
    memory = inputs.memory(config.execution, config.max_prompt_tokens, config.max_response_tokens)
    moments = {name: parts for name, parts in own.moments.items() if name != "drawing"}
    return replace(own, moments=moments, server=vllm_server_share(config.rollouts, memory))


_ESTIMATES: dict[type[StageConfig], Callable[[Any, PlanInputs], StageEstimate]] = {
    SFTConfig: sft,
    ContinuedSFTConfig: sft,
    RewardConfig: reward,
    DiagnoseConfig: diagnose,
    ReinforceConfig: reinforce_by_engine,
    SelfPlayConfig: self_play,
    AnswerConfig: answer,
}
