"""Inter-judge agreement: two judges on the same answers, with Cohen's kappa and the shift of the win rate between them.

Judgments are paired game by game, and intervals are bootstrap intervals over prompts, whose games are drawn together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpr_core.errors import UsageError
from dpr_core.evaluation.pairwise import Game
from dpr_core.stats import mean_interval

OUTCOMES = (0.0, 0.5, 1.0)
"""Of a game, for the candidate: lost, a tie, won."""

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Parity:
    """Judge B beside judge A, over the games that both have judged readably. Intervals are 95%."""

    games: int
    prompts: int
    agreement: float
    """Share of the games in which both say the same."""
    agreement_interval: Interval
    kappa: float | None
    """Cohen's kappa: agreement beyond what the two judges' shares of wins and ties would bring by chance; None where
    chance alone brings all of it."""
    kappa_interval: Interval
    win_rate_a: float
    """Of the candidate in percent: the mean over prompts of the mean of their games."""
    win_rate_b: float
    shift: float
    """B's win rate minus A's, in points."""
    shift_interval: Interval
    table: dict[str, dict[str, int]]
    """Games by what A says, then by what B says."""
    unreadable_a: int
    """Games of those that both have that could not be read."""
    unreadable_b: int
    only_a: int
    """Games that the other has not judged."""
    only_b: int

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def compare(a: Iterable[Game], b: Iterable[Game], samples: int = 2000, seed: int = 0) -> Parity:
    """UsageError where the judges have no game in common, or none that both could read."""
    ours, theirs = _by_game(a, "A"), _by_game(b, "B")
    common = [key for key in ours if key in theirs]
    if not common:
        raise UsageError("A and B have no game in common; give two judges' games of the same candidate and baseline")
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for key in common:
        first, second = ours[key].score, theirs[key].score
        if first is not None and second is not None:
            by_prompt.setdefault(key[0], []).append((first, second))
    if not by_prompt:
        raise UsageError("there is no game whose verdict could be read of both A and B")
    counts = np.stack([_table(scores) for scores in by_prompt.values()])
    total = counts.sum(axis=0)
    generator = np.random.default_rng(seed)
    prompts = len(counts)
    drawn = generator.multinomial(prompts, np.full(prompts, 1 / prompts), samples) @ counts.reshape(prompts, -1)
    agreements, kappas = _agreement(drawn.reshape(samples, *total.shape))
    (agreement,), (kappa,) = _agreement(total[None])
    rates = [[fmean(each[side] for each in scores) for scores in by_prompt.values()] for side in (0, 1)]
    shift = mean_interval([second - first for first, second in zip(*rates, strict=True)], samples, seed)
    names = ("lost", "tie", "won")
    return Parity(
        games=int(total.sum()),
        prompts=prompts,
        agreement=float(agreement),
        agreement_interval=_interval(agreements, prompts),
        kappa=None if np.isnan(kappa) else float(kappa),
        kappa_interval=_interval(kappas, prompts),
        win_rate_a=100 * fmean(rates[0]),
        win_rate_b=100 * fmean(rates[1]),
        shift=100 * (fmean(rates[1]) - fmean(rates[0])),
        shift_interval=None if shift is None else (100 * shift[0], 100 * shift[1]),
        table={one: dict(zip(names, map(int, row), strict=True)) for one, row in zip(names, total, strict=True)},
        unreadable_a=sum(ours[key].score is None for key in common),
        unreadable_b=sum(theirs[key].score is None for key in common),
        only_a=len(ours) - len(common),
        only_b=len(theirs) - len(common),
    )


def _by_game(games: Iterable[Game], name: str) -> dict[tuple[str, bool, int], Game]:
    found: dict[tuple[str, bool, int], Game] = {}
    for game in games:
        key = game.question_id, game.candidate_first, game.turn
        if key in found:
            raise UsageError(f"{name}: question {game.question_id} stands twice in the same order; keep one of them")
        found[key] = game
    return found


def _table(scores: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    table = np.zeros((len(OUTCOMES), len(OUTCOMES)), dtype=np.int64)
    for first, second in scores:
        table[OUTCOMES.index(first), OUTCOMES.index(second)] += 1
    return table


def _agreement(tables: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Agreement and Cohen's kappa of each table; kappa is NaN where both judges always say one and the same."""
    shares = tables / tables.sum(axis=(1, 2), keepdims=True)
    agreement = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(chance < 1 - 1e-12, (agreement - chance) / (1 - chance), np.nan)
    return agreement, kappa


def _interval(values: NDArray[np.float64], prompts: int) -> Interval:
    """Resamples in which chance explains everything have no kappa, and do not count."""
    known = values[~np.isnan(values)]
    if prompts < 2 or not len(known):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
