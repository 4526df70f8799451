"""The self-play loop of SPIN and GSIL: the policy against an opponent, which is the policy at the start of the round.

The opponent needs no second copy of the weights: it samples its responses, and scores them and the demonstrations,
before the round's first update.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from dpr_core.algorithms import self_play_loss
from dpr_core.algorithms.pair_loss import PairLossSurrogate, losses_and_slopes, surrogate_inputs
from dpr_core.config.imitation import SelfPlayConfig, SelfPlayMethod, SpinConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Completion, Engine, OnProgress, Sampling, completions_from_state, completions_state
from dpr_core.state import State
from dpr_core.training.sft_loop import batches
from dpr_core.training.trainer import Trainer


class ResponsePair(NamedTuple):
    """Two responses to one prompt."""

    demonstration: TokenSequence
    generated: TokenSequence


@dataclass
class Round:
    """A round as far as it has come: first it is drawn, then the opponent scores it, then the policy learns from it."""

    number: int
    trainer: Trainer
    before: Mapping[int, Completion]
    """What the opponent of the round before drew, where that is mixed in."""
    drawn: dict[int, Completion] = field(default_factory=dict)
    opponent: Tensor | None = None
    """Its log-probs of all pairs, (2, B)."""
    metrics: dict[str, float] = field(default_factory=dict)

    def state(self) -> State:
        return {
            "number": self.number,
            "trainer": self.trainer.state(),
            "before": completions_state(self.before),
            "drawn": completions_state(self.drawn),
            "opponent": self.opponent,
            "metrics": self.metrics,
        }

    def load_state(self, state: State) -> None:
        self.trainer.load_state(state["trainer"])
        self.before, self.drawn = completions_from_state(state["before"]), completions_from_state(state["drawn"])
        self.opponent, self.metrics = state["opponent"], state["metrics"]


@dataclass
class SelfPlay:
    """Improves `policy` in place."""

    policy: Policy
    engine: Engine
    config: SelfPlayConfig
    end_token: int
    decode: Callable[[Sequence[int]], str]
    recorder: Recorder
    _units: int = field(default=0, init=False)
    """Of work done: batches drawn, opponents' scores, optimizer steps."""

    def run(self, demonstrations: Sequence[TokenSequence]) -> dict[str, float]:
        """All rounds; returns the last measurements."""
        plan = steps_of_rounds(len(demonstrations), self.config)
        resumed = self.recorder.restore()
        before: Mapping[int, Completion] = {}
        measured: dict[str, float] = {}
        for number in range(resumed["round"]["number"] if resumed else 1, self.config.rounds + 1):
            current = Round(number, self._trainer(number, plan), before)
            if resumed is not None:
                current.load_state(resumed["round"])
                self._units, resumed = resumed["units"], None
            measured = self._run_round(current, demonstrations, plan)
            before = current.drawn if self.config.mix_previous else {}
        return measured

    def play(
        self,
        demonstrations: Sequence[TokenSequence],
        number: int,
        on_progress: OnProgress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[ResponsePair]:
        """Draw the demonstrations of a round and the opponent's response to each of their prompts."""
        config, rows = self.config, self._rows(demonstrations, number)
        completions = self.engine.generate(
            [row.prompt for row in rows],
            Sampling(config.temperature, config.max_response_tokens, self.end_token),
            seed=config.seed * 1_000_003 + number,
            on_progress=on_progress,
            drawn=drawn,
        )
        return _pairs(rows, completions)

    def log_probs(self, pairs: Sequence[ResponsePair]) -> Tensor:
        """(2, B): log pi(y | x) of the demonstrations and of the generated responses under the policy as it is now."""
        scores = score(self.policy, _sequences(pairs), self.config.execution.tokens_per_micro_batch)
        return scores.log_probs.double().sum(dim=-1).view(2, len(pairs))

    def _run_round(
        self, current: Round, demonstrations: Sequence[TokenSequence], plan: Sequence[int]
    ) -> dict[str, float]:
        """The rest of a round; returns its last metrics."""
        number, done = current.number, sum(plan[: current.number - 1])

        def on_progress(count: int, total: int) -> None:
            self._advance(done, plan, f"round {number}: {count} of {total} responses drawn")
            self._checkpoint(current)

        fresh = self.play(demonstrations, number, on_progress, current.drawn)
        described = self._describe(fresh)
        before = [current.before[row] for row in range(len(current.before))]
        pairs = fresh + (_pairs(self._rows(demonstrations, number - 1), before) if before else [])
        if current.opponent is None:
            self.recorder.metrics(described, done)
            self.recorder.table(f"samples/round-{number:02d}.json", self._samples(fresh))
            current.opponent = self.log_probs(pairs)
            self._checkpoint(current)
        self._learn(current, pairs, current.opponent, plan)
        return described | current.metrics

    def _learn(self, current: Round, pairs: Sequence[ResponsePair], opponent: Tensor, plan: Sequence[int]) -> None:
        config, number, trainer = self.config, current.number, current.trainer
        method = self_play_loss(method_of_round(config, number))
        steps = batches(len(pairs), config.batch_size, config.epochs, config.seed * 1_000_003 + number)
        for rows in steps[trainer.steps_done :]:
            batch = [pairs[row] for row in rows]
            sequences = _sequences(batch)
            log_ratios = self.log_probs(batch) - opponent[:, rows]
            width = max(len(s.response) for s in sequences)
            inputs = surrogate_inputs(*losses_and_slopes(method, log_ratios), width)
            current.metrics = trainer.step(sequences, PairLossSurrogate(), inputs) | _measure(log_ratios)
            done = sum(plan[: number - 1]) + trainer.steps_done
            self.recorder.metrics(current.metrics, done)
            loss, accuracy = current.metrics["train/loss"], current.metrics["train/accuracy"]
            self._advance(done, plan, f"round {number}: loss {loss:.3f}, accuracy {accuracy:.2f}")
            self._checkpoint(current)

    def _rows(self, demonstrations: Sequence[TokenSequence], number: int) -> list[TokenSequence]:
        """The demonstrations of a round."""
        count = min(self.config.pairs or len(demonstrations), len(demonstrations))
        return random.Random(f"self-play {self.config.seed} {number}").sample(list(demonstrations), count)

    def _trainer(self, number: int, plan: Sequence[int]) -> Trainer:
        config = self.config
        later = config.later_learning_rate if number >= config.later_from_round else None
        settings = config.model_copy(update={"learning_rate": later or config.learning_rate})
        return Trainer(self.policy, settings, plan[number - 1], config.execution, recorder=self.recorder)

    def _checkpoint(self, current: Round) -> None:
        self._units += 1
        self.recorder.checkpoint(self._units, lambda: {"units": self._units, "round": current.state()})

    def _advance(self, done: int, plan: Sequence[int], note: str) -> None:
        self.recorder.advance(done, sum(plan), note)

    def _describe(self, pairs: Sequence[ResponsePair]) -> dict[str, float]:
        responses = [pair.generated.response for pair in pairs]
        return {
            "rollout/length": sum(map(len, responses)) / len(pairs),
            "rollout/eos_rate": sum(response[-1] == self.end_token for response in responses) / len(pairs),
            "rollout/copies": sum(pair.generated == pair.demonstration for pair in pairs) / len(pairs),
        }

    def _samples(self, pairs: Sequence[ResponsePair], count: int = 8) -> list[dict[str, object]]:
        return [
            {
                "prompt": self.decode(pair.demonstration.prompt),
                "demonstration": self.decode(pair.demonstration.response),
                "generated": self.decode(pair.generated.response),
                "tokens": len(pair.generated.response),
                "ended": pair.generated.response[-1] == self.end_token,
            }
            for pair in pairs[:count]
        ]


def method_of_round(config: SelfPlayConfig, number: int) -> SelfPlayMethod:
    """With the beta of the last round, where that is another."""
    method = config.method
    if isinstance(method, SpinConfig) and method.last_beta is not None and 1 < number == config.rounds:
        return method.model_copy(update={"beta": method.last_beta})
    return method


def steps_of_rounds(demonstrations: int, config: SelfPlayConfig) -> list[int]:
    """Optimizer steps of each round; a learning rate schedule spans one round."""
    fresh = min(config.pairs or demonstrations, demonstrations)
    sizes = [fresh] + [fresh * (1 + config.mix_previous)] * (config.rounds - 1)
    return [config.epochs * math.ceil(size / config.batch_size) for size in sizes]


def _pairs(rows: Sequence[TokenSequence], completions: Sequence[Completion]) -> list[ResponsePair]:
    return [ResponsePair(row, TokenSequence(row.prompt, c.response)) for row, c in zip(rows, completions, strict=True)]


def _sequences(pairs: Sequence[ResponsePair]) -> list[TokenSequence]:
    return [pair.demonstration for pair in pairs] + [pair.generated for pair in pairs]


def _measure(log_ratios: Tensor) -> dict[str, float]:
    demonstration, generated = log_ratios
    return {
        "train/accuracy": float((demonstration > generated).double().mean()),
        "train/margin": float((demonstration - generated).mean()),
        "train/log_ratio_demonstrations": float(demonstration.mean()),
        "train/log_ratio_generated": float(generated.mean()),
    }
