"""Judged answers of a policy: the questions, both sides' answers and every game, and the win rate at equal lengths."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dpr_core.evaluation.categories import CategoryScore, by_category
from dpr_core.evaluation.pairwise import Game
from dpr_core.evaluation.questions import Question
from dpr_core.stats import LengthAdjustedRate, length_adjusted_rate


@dataclass(frozen=True)
class ModelAnswer:
    """One answer: the text of every turn, and the tokens of all of them."""

    turns: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class JudgedPrompt:
    """One question, the answers of both sides, and the games between them."""

    question: Question
    candidate: ModelAnswer
    baseline: ModelAnswer
    games: tuple[Game, ...]

    @cached_property
    def scores(self) -> tuple[float, ...]:
        """Of the readable games, for the candidate."""
        return tuple(score for game in self.games if (score := game.score) is not None)

    @property
    def score(self) -> float | None:
        """Their mean; None where no verdict could be read."""
        return sum(self.scores) / len(self.scores) if self.scores else None


@dataclass(frozen=True)
class JudgedAnswers:
    """A policy's answers to a benchmark, judged against the baseline's."""

    policy: str
    benchmark: str
    prompts: tuple[JudgedPrompt, ...]
    judge: str = ""
    """Who judged, in words: what is compared in pairs has the same judge."""
    samples: int = 2000
    """Resamples of the prompts, as for the win rate's own interval."""
    seed: int = 0

    @cached_property
    def scored(self) -> tuple[tuple[JudgedPrompt, float], ...]:
        """The prompts with a readable game, and what they are worth."""
        return tuple((prompt, score) for prompt in self.prompts if (score := prompt.score) is not None)

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """By question."""
        return {prompt.question.id: score for prompt, score in self.scored}

    @cached_property
    def by_category(self) -> Mapping[str, CategoryScore]:
        """The win rate in each category, where there are several."""
        grouped = [(prompt.question.category, prompt.score) for prompt in self.prompts]
        prompts = [(category, [] if score is None else [score]) for category, score in grouped]
        return by_category(prompts, self.samples, self.seed, 100)

    def length_adjusted(self) -> LengthAdjustedRate | None:
        """The win rate at equal lengths, in tokens."""
        return length_adjusted_rate(
            [score for _, score in self.scored],
            [prompt.candidate.tokens for prompt, _ in self.scored],
            [prompt.baseline.tokens for prompt, _ in self.scored],
            self.samples,
            self.seed,
        )


def fingerprints(every: Sequence[JudgedAnswers]) -> Counter[str]:
    """The models and fingerprints that the endpoints reported, and in how many games."""
    counts: Counter[str] = Counter()
    for judged in every:
        for prompt in judged.prompts:
            for game in prompt.games:
                names = [str(game.details[name]) for name in ("model", "system_fingerprint") if game.details.get(name)]
                if names:
                    counts[", ".join(names)] += 1
    return counts


def judging_warnings(every: Sequence[JudgedAnswers]) -> list[str]:
    """What is to be known before the judgments of one report are read side by side."""
    found = []
    if len(served := fingerprints(every)) > 1:
        shares = "; ".join(f"{name} in {count:,} games" for name, count in served.most_common())
        found.append(f"The judging model was not the same all the time: {shares}.")
    judges: dict[str, set[str]] = {}
    for judged in every:
        judges.setdefault(judged.benchmark, set()).add(judged.judge)
    for benchmark, different in judges.items():
        if len(different) > 1:
            names = " and ".join(sorted(different))
            found.append(f"Win rates on {benchmark} are by different judges, so they do not compare: {names}.")
    return found
