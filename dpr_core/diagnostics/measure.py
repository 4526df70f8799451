"""Reward diagnosis: what is measured on answers of pi_SFT to training prompts and on corrupted demonstrations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpr_core.config.data import LabSourceConfig, SourceConfig
from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics import shape
from dpr_core.diagnostics.auroc import AurocEstimate, Correctness, correctness
from dpr_core.diagnostics.corruption import Detection, corrupt, detection
from dpr_core.diagnostics.rounding import rounding_share
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.gold import stated
from dpr_core.evaluation.questions import IsRight, Question, not_checked
from dpr_core.masking import masked_sum
from dpr_core.models.dense_reward import GivenText, ScoredTokens, TokenReward
from dpr_core.rollouts.engine import Completion, Engine, Sampling

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Diagnosis:
    """On answers that pi_SFT gave to training prompts, and on demonstrations with one token replaced."""

    answers: int
    cut_share: float
    """Share of the answers that were cut at the length limit."""
    token_deviation: float
    """Deviation of the token reward."""
    noise_log_sft: float
    """Root mean square of the differences in log pi_SFT between two batch shapes: the noise floor."""
    noise_reward: float
    """The same of the token reward."""
    length_correlation: float | None
    """Of the return with the number of tokens; None where all answers are as long."""
    end_advantage: float | None
    """Whitened return of the end token; None where no answer ended."""
    top_share: float
    """Part of the total absolute reward in the top 1% of the tokens."""
    corrupted: int
    """Demonstrations with one token replaced."""
    credit: Detection | None
    """How well the token reward finds the replaced token; None where there was none to find."""
    credit_log_sft: Detection | None
    """How well log pi_SFT does."""
    correctness: Correctness | None
    """None where the answers could not be checked."""
    by_position: shape.Points
    by_length: shape.Points
    rounding_share: float | None = None
    """Root mean square of what differs from the token reward in float32, over its deviation: rounding of weights and
    activations; None where it is computed in float32, or rounding cannot be measured."""

    @property
    def noise_share(self) -> float | None:
        """Noise of the token reward as a share of its deviation; None where the reward is the same everywhere."""
        return self.noise_reward / self.token_deviation if self.token_deviation > 0 else None

    def metrics(self) -> dict[str, float]:
        """What was measured, by name; what was not is left out."""
        values: dict[str, float | None] = {
            "answers": self.answers,
            "cut_share": self.cut_share,
            "token_deviation": self.token_deviation,
            "noise_log_sft": self.noise_log_sft,
            "noise_reward": self.noise_reward,
            "noise_share": self.noise_share,
            "rounding_share": self.rounding_share,
            "length_correlation": self.length_correlation,
            "end_advantage": self.end_advantage,
            "top_share": self.top_share,
            "corrupted": self.corrupted,
        }
        for name, found in (("credit", self.credit), ("credit_log_sft", self.credit_log_sft)):
            if found is not None:
                values |= {f"{name}_auroc": found.auroc, f"{name}_top1": found.top1}
        if (checked := self.correctness) is not None:
            values |= {"accuracy": checked.accuracy, "prompts_counted": checked.counted}
            values |= _estimate("auroc_return", checked.of_return)
            values |= _estimate("auroc_log_sft", checked.of_log_sft)
            values |= _estimate("auroc_length", checked.of_length)
        return {f"diagnose/{name}": float(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Probes:
    """What a reward is tried on."""

    prompts: Sequence[tuple[int, ...]]
    samples: int
    """Answers to each prompt."""
    is_right: Callable[[int, tuple[int, ...]], bool | None]
    """Whether a response answers the prompt of a given index; None where that cannot be known."""
    demonstrations: Sequence[TokenSequence]


def training_questions(
    source: SourceConfig, texts: Sequence[GivenText], count: int, seed: int, stated_results: bool = False
) -> tuple[list[Question], IsRight]:
    """Training prompts of the lab, whose answers can be read and checked; else the first demonstrated prompts, and
    where their results are wanted, those that the demonstrations have or announce."""
    if isinstance(source, LabSourceConfig):
        benchmark = LabBenchmarkConfig(task=source.task, split="train", prompts=count, prompt_seed=seed)
        return benchmarks.load(benchmark), benchmarks.checker(benchmark)
    asked = list(enumerate(texts[:count], start=1))
    if not stated_results:
        return [Question(str(i), (text.prompt,), text.system) for i, text in asked], not_checked
    results = [stated.result(f"#### {text.answer}" if text.answer else text.response) for _, text in asked]
    questions = [Question(str(i), (t.prompt,), t.system, r) for (i, t), r in zip(asked, results, strict=True)]
    return questions, stated.is_right


def measure(
    reward: TokenReward,
    engine: Engine,
    probes: Probes,
    sampling: Sampling,
    seed: int,
    on_progress: OnProgress,
    exact: Callable[[Sequence[TokenSequence]], ScoredTokens] | None = None,
) -> Diagnosis:
    """`engine` samples from pi_SFT; `exact` is the reward in float32, where `reward` is not."""

    def noted(note: str) -> Callable[[int, int], None]:
        return lambda step, total: on_progress(step, total, note)

    prompts = [prompt for prompt in probes.prompts for _ in range(probes.samples)]
    answers = engine.generate(prompts, sampling, seed, noted("answers of SFT"))
    sequences = [TokenSequence(answer.prompt, answer.response) for answer in answers]
    once = sequences[:: probes.samples]
    scored = reward(sequences, noted("reward of the answers"))
    mask = scored.mask
    width = max(len(s.response) for s in once)
    scored_once = ScoredTokens(*(values[:: probes.samples, :width] for values in scored))
    noise_log_sft, noise_reward = _noise(reward, once, scored_once)
    ended = torch.tensor([answer.ended(sampling.end_token) for answer in answers])
    corrupted = corrupt(probes.demonstrations, seed)
    credit: tuple[Detection, Detection] | None = None
    if corrupted:
        spoilt = reward([c.sequence for c in corrupted], noted("reward of corrupted demonstrations"))
        places = [c.position for c in corrupted]
        credit = detection(spoilt.rewards, spoilt.mask, places), detection(spoilt.log_sft, spoilt.mask, places)
    return Diagnosis(
        answers=len(answers),
        cut_share=1 - float(ended.double().mean()),
        token_deviation=shape.standard_deviation(scored.rewards, mask),
        noise_log_sft=noise_log_sft,
        noise_reward=noise_reward,
        length_correlation=shape.correlation(masked_sum(scored.rewards, mask), mask.sum(dim=1)),
        end_advantage=shape.end_advantage(scored.rewards, mask, ended),
        top_share=shape.top_share(scored.rewards, mask),
        corrupted=len(corrupted),
        credit=credit[0] if credit else None,
        credit_log_sft=credit[1] if credit else None,
        correctness=_correctness(probes, answers, scored, seed),
        by_position=shape.by_position(scored.rewards, mask),
        by_length=shape.by_length(scored.rewards, mask),
        rounding_share=rounding_share(scored_once, exact(once)) if exact else None,
    )


def _noise(reward: TokenReward, sequences: Sequence[TokenSequence], scored: ScoredTokens) -> tuple[float, float]:
    """Of log pi_SFT and of the reward: the sequences again, one at a time."""
    alone = replace(reward, tokens_per_micro_batch=1)(sequences)
    return (
        shape.root_mean_square(scored.log_sft - alone.log_sft, alone.mask),
        shape.root_mean_square(scored.rewards - alone.rewards, alone.mask),
    )


def _correctness(probes: Probes, answers: Sequence[Completion], scored: ScoredTokens, seed: int) -> Correctness | None:
    """Of the prompts whose answers can be checked; None where there are none."""
    right = [probes.is_right(i // probes.samples, answer.response) for i, answer in enumerate(answers)]
    checked = torch.tensor([verdict is not None for verdict in right]).reshape(-1, probes.samples).all(dim=1)
    if not checked.any():
        return None

    def by_prompt(values: Tensor) -> Tensor:
        return values.reshape(-1, probes.samples)[checked]

    lengths = scored.mask.sum(dim=1)
    return correctness(
        returns=by_prompt(masked_sum(scored.rewards, scored.mask)),
        mean_log_sft=by_prompt(masked_sum(scored.log_sft, scored.mask) / lengths),
        lengths=by_prompt(lengths),
        right=by_prompt(torch.tensor([bool(verdict) for verdict in right])),
        seed=seed,
    )


def _estimate(name: str, estimate: AurocEstimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
