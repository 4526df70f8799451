"""Two judges on the same answers, beside a computation by loops and dictionaries."""

import random
from collections import Counter
from statistics import fmean, quantiles

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.pairwise import Game, Verdict
from dpr_core.evaluation.parity import compare

SAY = {1: Verdict.FIRST, -1: Verdict.SECOND, 0: Verdict.TIE}


def games(rule: str, prompts: int = 60) -> list[Game]:
    """By two scripted judges: of lengths that are drawn, the longer wins; of the other judge only by a margin."""
    draw = random.Random(0)
    found = []
    for i in range(prompts):
        candidate, baseline = draw.randint(1, 20), draw.randint(1, 16)
        for first in (True, False):
            ahead = (candidate - baseline) * (1 if first else -1)
            margin = 0 if rule == "longer" else 5
            verdict = SAY[(ahead > margin) - (ahead < -margin)]
            if rule != "longer" and i % 7 == 0 and first:
                verdict = Verdict.UNREADABLE
            found.append(Game(str(i), first, verdict, ""))
    return found


def kappa(pairs: list[tuple[float, float]]) -> float:
    same = fmean(a == b for a, b in pairs)
    ours, theirs = (Counter(each[side] for each in pairs) for side in (0, 1))
    chance = sum(ours[each] * theirs[each] for each in ours) / len(pairs) ** 2
    return (same - chance) / (1 - chance)


def test_two_scripted_judges_agree_as_far_as_is_counted_by_hand() -> None:
    a, b = games("longer"), games("margin")
    found = compare(a, b[::-1], samples=4000)
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for one, other in zip(a, b, strict=True):
        if one.score is not None and other.score is not None:
            by_prompt.setdefault(one.question_id, []).append((one.score, other.score))
    pairs = [pair for each in by_prompt.values() for pair in each]
    assert (found.games, found.prompts, found.unreadable_a, found.unreadable_b) == (len(pairs), 60, 0, 9)
    assert found.agreement == pytest.approx(fmean(one == other for one, other in pairs))
    assert found.kappa == pytest.approx(kappa(pairs))
    shifts = [fmean(b - a for a, b in each) for each in by_prompt.values()]
    assert found.shift == pytest.approx(100 * fmean(shifts))
    assert found.win_rate_b - found.win_rate_a == pytest.approx(found.shift)
    assert sum(sum(row.values()) for row in found.table.values()) == len(pairs)
    assert found.table["won"]["tie"] == sum(pair == (1.0, 0.5) for pair in pairs)
    # An independent bootstrap over prompts comes to nearly the same intervals.
    draw = random.Random(1)
    prompts = list(by_prompt.values())
    resampled = [draw.choices(range(len(prompts)), k=len(prompts)) for _ in range(1500)]
    kappas = quantiles([kappa([pair for i in drawn for pair in prompts[i]]) for drawn in resampled], n=40)
    rates = quantiles([100 * fmean(shifts[i] for i in drawn) for drawn in resampled], n=40)
    assert found.kappa_interval == pytest.approx((kappas[0], kappas[-1]), abs=0.03)
    assert found.shift_interval == pytest.approx((rates[0], rates[-1]), abs=1.0)
    assert found.agreement_interval is not None
    assert found.agreement_interval[0] < found.agreement < found.agreement_interval[1]


def test_a_judge_agrees_with_itself_and_a_judge_of_one_word_by_chance() -> None:
    a = games("longer")
    same = compare(a, a)
    assert (same.agreement, same.kappa, same.shift, same.shift_interval) == (1.0, 1.0, 0.0, (0.0, 0.0))
    ties = [Game(game.question_id, game.candidate_first, Verdict.TIE, "") for game in a]
    assert compare(ties, ties).kappa is None
    assert compare(ties, ties).kappa_interval is None
    assert compare(a, ties).kappa == pytest.approx(0.0)


def test_games_of_one_judge_alone_are_counted() -> None:
    a = games("longer")
    found = compare(a[:10], a[4:])
    assert (found.games, found.only_a, found.only_b) == (6, 4, len(a) - 10)
    assert compare(a[:2], a[:2]).kappa_interval is None


def test_what_cannot_be_compared() -> None:
    a = games("longer")
    with pytest.raises(UsageError, match="no game in common"):
        compare(a[:2], a[2:])
    with pytest.raises(UsageError, match="B: question 0 stands twice"):
        compare(a, [*a, a[0]])
    with pytest.raises(UsageError, match="no game whose verdict could be read of both"):
        compare([Game("0", True, Verdict.UNREADABLE, "")], a)
