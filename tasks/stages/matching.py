"""Matched policies: SFT at the temperature, or extrapolation by the k, at which answers are like another policy's."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dpr_core.config.base import LEAST_TEMPERATURE
from dpr_core.config.evaluation import AnswerConfig, ExtrapolatedConfig, MatchedConfig, SFTPolicyConfig
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact
from tasks.running.workspace import Work
from tasks.stages.lineage import Lineage
from tasks.stages.policies import Answering, answering, conversations

if TYPE_CHECKING:
    from dpr_core.evaluation.questions import Question
    from dpr_core.state import State

logger = logging.getLogger("dense_path")

HOTTEST, FURTHEST = 2.0, 64.0
"""The highest temperature, and the highest k, that are tried."""


class Trials:
    """The recorder of a stage that first tries: what each trial came to outlasts an interruption, as the answers do."""

    def __init__(self, work: Work) -> None:
        self.metrics = work.metrics
        self.table = work.table
        self.part = work.part
        self.advance = work.advance
        self._work = work
        left = work.restore() or {"step": 0, "measured": {}, "answers": None}
        self._step: int = left["step"]
        self._answers: dict[str, Any] | None = left["answers"]
        self.measured: dict[str, float] = left["measured"]
        """What was measured, by what it was measured of."""

    def measure(self, name: str, measure: "Callable[[Drawing], float]") -> float:
        if name not in self.measured:
            self.measured[name] = measure(Drawing(self, name))
        return self.measured[name]

    def restore(self) -> dict[str, Any] | None:
        answers, self._answers = self._answers, None
        return answers

    def checkpoint(self, step: int, state: "Callable[[], State] | None") -> None:
        self._step += 1
        self._work.checkpoint(
            self._step,
            lambda: {
                "step": self._step,
                "measured": self.measured,
                "answers": None if state is None else state(),
            },
        )


class Drawing:
    """The recorder of one trial, which begins anew if it is interrupted."""

    def __init__(self, trials: Trials, name: str) -> None:
        self._trials, self._name = trials, name

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        pass

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        pass

    def part(self, what: str, done: int, total: int) -> None:
        self._trials.part(what, done, total)

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        self._trials.part(f"trying {self._name}", step, total)

    def restore(self) -> None:
        return None

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        self._trials.checkpoint(step, None)


def with_strength(
    settings: AnswerConfig,
    lineage: Lineage,
    source: Artifact,
    questions: "Sequence[Question]",
    rows: Sequence[Mapping[str, Any]],
    work: Work,
) -> tuple[AnswerConfig, dict[str, float], Trials]:
    """The settings with the strength that was found, what was found, and the recorder to go on with; `rows` are the
    other policy's answers."""
    from dpr_core.rollouts.matching import match

    policy = settings.policy
    assert isinstance(policy, MatchedConfig)
    other = work.input("match")
    theirs = AnswerConfig.model_validate(other.config)
    _check_comparable(settings, theirs, lineage, source, other)
    every = max(1, len(questions) // policy.match_prompts)
    places = range(0, len(questions), every)[: policy.match_prompts]
    asked = [questions[place] for place in places]
    trials = Trials(work)
    if isinstance(policy, SFTPolicyConfig):
        what, start, most = "temperature", settings.temperature or 1.0, HOTTEST
        target = trials.measure(
            "the other policy",
            partial(_entropy, theirs, lineage, lineage.store.fetch(other.inputs["policy"]), asked),
        )
        measure = _entropy
    else:
        what, start, most = "k", 1.0, FURTHEST
        values = [rows[place]["kl_to_sft"] for place in places]
        if None in values:
            raise UsageError(f"input match: {other.id[:8]} is a choice among samples, which has no KL")
        target = sum(values) / len(values)
        measure = _kl

    def with_(strength: float) -> AnswerConfig:
        # Nobody can set these: an extrapolation by 0, which is SFT, and a temperature too low to divide by.
        if what == "temperature" and strength > 0:
            strength = max(strength, LEAST_TEMPERATURE)
        return settings.model_copy(update={"policy": policy.model_copy(update={what: strength, "match": None})})

    def tried(strength: float) -> float:
        return trials.measure(f"{what} {strength!r}", partial(measure, with_(strength), lineage, source, asked))

    found = match(tried, target, start, most, policy.match_tolerance, policy.match_trials)
    if abs(found.reached - target) > policy.match_tolerance * target:
        logger.warning(
            "answer: no %s within %d trials and up to %g brings the %s to %.4g; at %s %.4g, which stands, it is %.4g",
            what,
            policy.match_trials,
            most,
            "entropy" if what == "temperature" else "KL to SFT",
            target,
            what,
            found.strength,
            found.reached,
        )
    told = {what: found.strength, "target": target, "reached": found.reached, "trials": float(found.trials)}
    return with_(found.strength), {f"match/{name}": value for name, value in told.items()}, trials


def _check_comparable(
    settings: AnswerConfig, theirs: AnswerConfig, lineage: Lineage, source: Artifact, other: Artifact
) -> None:
    if theirs.benchmark != settings.benchmark:
        raise UsageError(f"input match: {other.id[:8]} answers another benchmark, or another version of its file")
    if theirs.matched:
        raise UsageError(f"input match: {other.id[:8]} is matched itself; give the answers that it is matched to")
    ours, its = (lineage.ancestor(each, "sft").digest for each in (source, other))
    if ours != its:
        raise UsageError(f"input match: {other.id[:8]} is of another SFT run than {source.id[:8]}")


def _drawn(
    settings: AnswerConfig, lineage: Lineage, source: Artifact, asked: "Sequence[Question]", recorder: Drawing
) -> tuple[Answering, "list[Any]"]:
    from dpr_core.data.encoding import TokenSequence, end_token

    tokenizer = lineage.tokenizer(source)
    responder = answering(settings, lineage, source)
    spoken = conversations(settings, tokenizer, lineage.renderer(source), asked)
    answers = responder.ask(spoken, end_token(tokenizer), recorder)
    return responder, [TokenSequence(c.prompt, c.response) for turns in answers for c in turns]


def _entropy(
    settings: AnswerConfig, lineage: Lineage, source: Artifact, asked: "Sequence[Question]", recorder: Drawing
) -> float:
    """Nats a token, of the distribution that draws, exact in every state of its answers."""
    from dpr_core.evaluation import benchmarks
    from dpr_core.masking import masked_mean, response_mask

    policy = settings.policy
    if not isinstance(policy, SFTPolicyConfig) and any(
        benchmarks.temperature(settings.benchmark, question) is not None for question in asked
    ):
        raise UsageError(
            "input match: its questions have temperatures of the benchmark's own, where one entropy says nothing; "
            "set temperatures: paper, or leave the match out"
        )
    temperature = settings.drawn_at
    if temperature == 0:
        return 0.0
    responder, sequences = _drawn(settings, lineage, source, asked, recorder)
    entropies = responder.entropies(sequences, temperature)
    return float(masked_mean(entropies, response_mask([len(s.response) for s in sequences])))


def _kl(
    settings: AnswerConfig, lineage: Lineage, source: Artifact, asked: "Sequence[Question]", recorder: Drawing
) -> float:
    """Nats an answer, exact in every state."""
    assert isinstance(settings.policy, ExtrapolatedConfig)
    responder, sequences = _drawn(settings, lineage, source, asked, recorder)
    kl = responder.measure(sequences, None, partial(recorder.part, "scoring")).kl
    assert kl is not None
    return float(kl.sum()) / len(asked)
