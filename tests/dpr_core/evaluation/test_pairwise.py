import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from dpr_core.config.evaluation import JudgeExecutionConfig, ScriptedJudgeConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Comparison, Game, Judgment, Pair, Verdict, judge_pairs, summarise
from dpr_core.evaluation.questions import Question

FIRST, SECOND, TIE, UNREADABLE = Verdict.FIRST, Verdict.SECOND, Verdict.TIE, Verdict.UNREADABLE


def pairs(answers: list[tuple[str, str]]) -> list[Pair]:
    return [
        Pair(Question(id=f"q{i}", turns=("?",)), candidate=Answer.of(candidate), baseline=Answer.of(baseline))
        for i, (candidate, baseline) in enumerate(answers)
    ]


def games(verdicts: list[tuple[Verdict, Verdict]]) -> list[Game]:
    """For each prompt the verdicts of the game with the candidate first and of the game with it second."""
    return [
        Game(f"q{i}", candidate_first, verdict, raw="")
        for i, both in enumerate(verdicts)
        for candidate_first, verdict in zip((True, False), both, strict=True)
    ]


def judged(rule: str, answers: list[tuple[str, str]]) -> list[Game]:
    judge = build_judge(
        ScriptedJudgeConfig.model_validate({"rule": rule}), JudgeExecutionConfig(), lambda question, text: None
    )
    return list(asyncio.run(judge_pairs(judge, pairs(answers), JudgeExecutionConfig(), lambda done, total, note: None)))


class RecordingJudge:
    """Prefers the answer `good`; takes a few turns of the event loop for each comparison."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.open = self.most_open = self.closed = self.finished = 0
        self.fail_at = fail_at

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        pass

    async def judge(self, comparison: Comparison) -> Judgment:
        first, second = comparison.first.turns[0], comparison.second.turns[0]
        self.seen.append((comparison.question.id, first, second))
        if len(self.seen) == self.fail_at:
            raise DensePathError("the judge is gone")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        for _ in range(len(self.seen) % 3 + 1):
            await asyncio.sleep(0)
        self.open -= 1
        self.finished += 1
        return Judgment(FIRST if first == "good" else SECOND, "words", {"model": "m"})

    def status(self) -> str:
        return ""

    async def close(self) -> None:
        self.closed += 1


def test_each_pair_is_asked_in_both_orders_and_mapped_back() -> None:
    judge, progress = RecordingJudge(), []
    played = asyncio.run(
        judge_pairs(
            judge,
            pairs([("good", "bad"), ("bad", "good"), ("good", "bad")]),
            JudgeExecutionConfig(concurrency=2),
            lambda done, total, note: progress.append((done, total)),
        )
    )
    assert sorted(judge.seen) == [
        ("q0", "bad", "good"),
        ("q0", "good", "bad"),
        ("q1", "bad", "good"),
        ("q1", "good", "bad"),
        ("q2", "bad", "good"),
        ("q2", "good", "bad"),
    ]
    assert [(g.question_id, g.candidate_first, g.verdict, g.score) for g in played] == [
        ("q0", True, FIRST, 1.0),
        ("q0", False, SECOND, 1.0),
        ("q1", True, SECOND, 0.0),
        ("q1", False, FIRST, 0.0),
        ("q2", True, FIRST, 1.0),
        ("q2", False, SECOND, 1.0),
    ]
    assert progress == [(i, 6) for i in range(1, 7)]
    assert (judge.most_open, judge.closed) == (2, 1)
    assert played[1].as_dict() == {
        "question_id": "q0",
        "candidate_first": False,
        "verdict": "second",
        "score": 1.0,
        "raw": "words",
        "details": {"model": "m"},
    }


def test_the_first_failure_stops_the_rest_and_closes_the_judge() -> None:
    judge = RecordingJudge(fail_at=3)
    with pytest.raises(DensePathError, match="the judge is gone"):
        asyncio.run(
            judge_pairs(
                judge,
                pairs([("good", "bad")] * 50),
                JudgeExecutionConfig(concurrency=4),
                lambda done, total, note: None,
            )
        )
    assert judge.closed == 1
    assert len(judge.seen) < 20


def test_nothing_to_judge() -> None:
    assert judged("longer", []) == []


def test_win_rate_by_hand() -> None:
    # Prompt means: won twice 1; lost twice 0; contradictory .5; win and tie .75; one readable loss 0; none readable.
    rate = summarise(
        games(
            [
                (FIRST, SECOND),
                (SECOND, FIRST),
                (FIRST, FIRST),
                (FIRST, TIE),
                (UNREADABLE, FIRST),
                (UNREADABLE, UNREADABLE),
            ]
        ),
        bootstrap_samples=200,
        seed=0,
    )
    assert rate.win_rate == pytest.approx(100 * (1 + 0 + 0.5 + 0.75 + 0) / 5)
    assert (rate.wins, rate.ties, rate.losses, rate.unreadable) == (4, 1, 4, 3)
    assert rate.unreadable_share == pytest.approx(3 / 12)
    assert rate.contradiction_rate == pytest.approx(2 / 4)
    # Decided games: first second, second first, first first, first, first.
    assert rate.first_position_rate == pytest.approx(6 / 8)
    assert (rate.prompts, rate.scored_prompts) == (6, 5)


def test_a_rate_for_each_category_of_the_questions() -> None:
    played = games([(FIRST, SECOND), (FIRST, FIRST), (SECOND, FIRST), (UNREADABLE, UNREADABLE)])
    questions = [Question(f"q{i}", ("?",), category=name) for i, name in enumerate(("a", "a", "b", "b"))]
    rate = summarise(played, 200, 0, questions)
    assert {name: (each["mean"], each["prompts"]) for name, each in rate.by_category.items()} == {
        "a": (75.0, 2),
        "b": (0.0, 1),
    }
    whole = summarise(played[:4], 200, 0)
    assert [rate.by_category["a"][end] for end in ("low", "high")] == [whole.low, whole.high]
    assert rate.as_dict()["by_category"] == rate.by_category
    assert "by_category" not in summarise(played, 200, 0).as_dict()


def test_the_interval_equals_a_plain_loop_over_prompts() -> None:
    verdicts = [(FIRST, SECOND), (FIRST, FIRST), (SECOND, FIRST), (TIE, SECOND), (UNREADABLE, SECOND)] * 3
    means = [1.0, 0.5, 0.0, 0.75, 1.0] * 3
    rate = summarise(games(verdicts), bootstrap_samples=300, seed=11)
    generator = np.random.default_rng(11)
    resampled = []
    for _ in range(300):
        drawn = [means[int(i)] for i in generator.integers(0, len(means), len(means))]
        resampled.append(100 * sum(drawn) / len(drawn))
    resampled.sort()
    for end, share in ((rate.low, 0.025), (rate.high, 0.975)):
        place = share * 299
        below, above = resampled[int(place)], resampled[int(place) + 1]
        assert end == pytest.approx(below + (place - int(place)) * (above - below))
    assert rate == summarise(games(verdicts), bootstrap_samples=300, seed=11)
    assert rate != summarise(games(verdicts), bootstrap_samples=300, seed=12)


def test_both_games_of_a_prompt_are_resampled_together() -> None:
    # A judge that always prefers the first answer makes every prompt exactly 50, so there is nothing to resample.
    rate = summarise(judged("first", [("a", "b")] * 40), 500, seed=0)
    assert (rate.win_rate, rate.low, rate.high) == (50.0, 50.0, 50.0)
    assert (rate.contradiction_rate, rate.first_position_rate) == (1.0, 1.0)


def test_all_unreadable_is_no_win_rate() -> None:
    rate = summarise(judged("unreadable", [("a", "b")] * 3), 200, seed=0)
    assert (rate.win_rate, rate.low, rate.high) == (None, None, None)
    assert (rate.contradiction_rate, rate.first_position_rate) == (None, None)
    assert (rate.unreadable, rate.unreadable_share, rate.prompts, rate.scored_prompts) == (6, 1.0, 3, 0)


def test_the_same_answers_on_both_sides_are_a_tie() -> None:
    rate = summarise(judged("longer", [(text, text) for text in ("a", "bbb", "")]), 200, seed=0)
    assert (rate.win_rate, rate.ties, rate.contradiction_rate, rate.first_position_rate) == (50.0, 6, 0.0, None)


def test_a_clear_winner_and_a_single_prompt() -> None:
    assert summarise(judged("longer", [("long", "s")] * 5), 200, seed=0).low == 100.0
    one = summarise(judged("longer", [("long", "s")]), 200, seed=0)
    assert (one.win_rate, one.low, one.high) == (100.0, None, None)


def test_a_game_counted_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="q0 was judged twice in the same order"):
        summarise([*games([(FIRST, SECOND)]), Game("q0", True, FIRST, "")], 200, seed=0)
