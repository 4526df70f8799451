"""Raters behind the real client, against a server on the loopback interface."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import JudgeExecutionConfig, OpenAIRaterConfig, RateConfig, ScriptedRaterConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation import canaries
from dpr_core.evaluation.budget import BudgetReachedError, Cost
from dpr_core.evaluation.canaries import CONSTANT
from dpr_core.evaluation.judge import build_rater, costs_money, rater_with_content_hash, rating_cost, rating_template
from dpr_core.evaluation.prompts import RATING_DIGEST
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rate import Rating, Turn, as_rows, rate_turns, turns_of
from dpr_core.hashing import hash_file
from tests.loopback import KEY, Call, Loopback, Reply, completion, refused

QUESTIONS = [Question(id=str(i), turns=("One?", "Two?")) for i in range(4)]
ANSWERED = [(question, (f"first {question.id}", f"second {question.id}")) for question in QUESTIONS]


def config(server: Loopback | None, judgings: int = 1, prompts: str | None = None, **changes: Any) -> RateConfig:
    url = server.url if server is not None else None
    by = OpenAIRaterConfig(model="m", base_url=url, temperature=0.7, max_answer_characters=100)
    execution = JudgeExecutionConfig(**{"retries": 0, "canaries": 0, "concurrency": 4, **changes})
    return RateConfig(by=by, judgings=judgings, prompts=prompts, execution=execution)


def rate(
    settings: RateConfig, cache: Path | None = None, answered: Any = ANSWERED
) -> tuple[list[tuple[Turn, Rating]], dict[str, float], str]:
    rater = build_rater(settings, rating_template(settings), cache)
    tried = asyncio.run(canaries.try_rater(rater, [question for question, _ in answered], settings.execution))
    turns = turns_of(answered, settings.judgings)
    rated = asyncio.run(rate_turns(rater, turns, settings.execution, lambda *progress: None))
    return rated, tried, rater.status()


def fixed(text: str, reason: str = "stop") -> Any:
    return lambda call: completion(text, reason)


def test_every_turn_is_rated_in_order_through_the_client(loopback: Loopback) -> None:
    def answer(call: Call) -> Reply:
        words = call.json["messages"][1]["content"]
        return completion(f"Reasons.\nRATING: [[{3 if 'second' in words else 9}]]")

    loopback.answer = answer
    rated, _, status = rate(config(loopback))
    assert [(turn.question.id, turn.number, each.score) for turn, each in rated] == [
        (str(i), number, score) for i in range(4) for number, score in ((1, 9.0), (2, 3.0))
    ]
    assert rated[0][1].details["system_fingerprint"] == "fp_1"
    assert status == "8 requests"
    (first,) = [body for body in loopback.requests if "first 0" in str(body) and "second" not in str(body)]
    assert (first["model"], first["temperature"], first["max_completion_tokens"]) == ("m", 0.7, 2048)


@pytest.mark.parametrize(
    ("text", "reason"), [("RATING: [[7]]", "length"), ("RATING: [[12]]", "stop"), ("I cannot say.", "stop")]
)
def test_what_cannot_be_read_has_no_score_and_is_asked_again(
    loopback: Loopback, tmp_path: Path, text: str, reason: str
) -> None:
    loopback.answer = fixed(text, reason)
    for _ in range(2):
        rated, _, _ = rate(config(loopback, unreadable_retries=1), tmp_path / "verdicts.sqlite")
        assert {(each.score, each.raw) for _, each in rated} == {(None, text)}
    assert len(loopback.requests) == 32


def test_a_rater_that_cannot_be_read_is_stopped_at_its_canaries(loopback: Loopback) -> None:
    loopback.answer = fixed("", "length")
    with pytest.raises(DensePathError, match=r"none of the 4 ratings .* 4 were cut at the length limit by\.max_tokens"):
        rate(config(loopback, canaries=2))
    assert len(loopback.requests) == 4


def test_a_refused_rating_is_a_row_as_fastchat_writes_a_failed_request(loopback: Loopback) -> None:
    def answer(call: Call) -> Reply:
        return refused(400, "too long") if "second 3" in str(call.json) else completion("RATING: [[5]]")

    loopback.answer = answer
    rated, _, _ = rate(config(loopback))
    rows = as_rows(rated, "m", "judge")
    assert [(row["score"], row["judgment"]) for row in rows[-2:]] == [(5, "RATING: [[5]]"), (-1, "$ERROR$")]
    assert "too long" in rows[-1]["details"]["refused"]
    assert len(loopback.requests) == 8


def test_several_judgings_are_several_draws_and_each_is_paid_for_once(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda call: completion(f"RATING: [[{len(loopback.requests) % 10 + 1}]]")
    cache = tmp_path / "verdicts.sqlite"
    once, _, _ = rate(config(loopback), cache)
    assert len(loopback.requests) == 8
    rated, _, status = rate(config(loopback, judgings=3), cache)
    assert len(loopback.requests) == 24
    assert status == "16 requests, 8 from the cache"
    kept = [(each.score, each.raw, each.shown, each.details) for turn, each in rated if turn.judging == 1]
    assert kept == [(each.score, each.raw, each.shown, each.details) for _, each in once]
    assert {turn.judging: turn.question.id for turn, _ in rated} == {1: "3", 2: "3", 3: "3"}
    again, _, _ = rate(config(loopback, judgings=3), cache)
    assert len(loopback.requests) == 24
    assert [each.score for _, each in again] == [each.score for _, each in rated]


def test_other_instructions_are_asked_anew(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = fixed("Rating: [[6]]")
    cache = tmp_path / "verdicts.sqlite"
    file = tmp_path / "judge_prompts.jsonl"
    names = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")

    def write(word: str) -> None:
        rows = [
            {"name": n, "system_prompt": "", "prompt_template": f"{word} {{answer{'_2' * ('turn' in n)}}}"}
            for n in names
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    rate(config(loopback), cache)
    for word, requests in (("Rate", 16), ("Rate", 16), ("Please rate", 24)):
        write(word)
        rated, _, _ = rate(config(loopback, prompts=str(file)), cache)
        assert len(loopback.requests) == requests
        assert rated[1][1].template == "single-v1-multi-turn"
    asked = sorted(body["messages"][-1]["content"] for body in loopback.requests[16:])
    assert asked == sorted(f"Please rate {text}" for _, texts in ANSWERED for text in texts)
    first, second = (rater_with_content_hash(config(loopback, prompts=p)).identity() for p in (None, str(file)))
    assert (first["by"]["template"], first["prompts_content"]) == (RATING_DIGEST, None)
    assert (second["by"]["template"], second["prompts_content"]) == (None, hash_file(file))
    pinned = rater_with_content_hash(config(loopback, prompts=str(file)))
    write("Rate")
    with pytest.raises(DensePathError, match="changed after its hash was noted"):
        rating_template(pinned)


def test_a_failure_that_passes_is_asked_later_and_one_that_does_not_ends_it(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr_core.evaluation.ask.MOST_SECONDS_BETWEEN_ROUNDS", 0.01)
    loopback.answer = lambda call: refused(500, "busy") if len(loopback.calls) < 4 else completion("RATING: [[5]]")
    rated, _, _ = rate(config(loopback))
    assert [each.score for _, each in rated] == [5.0] * 8
    loopback.answer = lambda call: refused(401, f"wrong key {KEY}")
    with pytest.raises(DensePathError, match="refused the key") as caught:
        rate(config(loopback))
    assert KEY not in str(caught.value)


def test_the_budget_holds(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = fixed("RATING: [[5]]")
    money: dict[str, Any] = {"dollars_per_million_read": 0.0, "dollars_per_million_written": 100.0, "concurrency": 1}
    with pytest.raises(BudgetReachedError):
        # A request can cost 2048 tokens, which are 0.2048 dollars, and does cost 20.
        rate(config(loopback, budget_dollars=0.21, **money), tmp_path / "verdicts.sqlite")
    assert 0 < len(loopback.requests) < 8
    rated, _, status = rate(config(loopback, budget_dollars=10.0, **money), tmp_path / "verdicts.sqlite")
    assert len(loopback.requests) == 8
    assert len(rated) == 8
    assert "$" in status


def test_a_long_answer_is_cut_and_counted(loopback: Loopback) -> None:
    loopback.answer = fixed("RATING: [[5]]")
    rated, _, _ = rate(config(loopback), answered=[(QUESTIONS[0], ("x" * 101, "short"))])
    assert [each.details.get("answers_cut") for _, each in rated] == [1, 1]
    assert "x" * 100 in rated[0][1].shown
    assert "x" * 101 not in str(loopback.requests)


@pytest.mark.parametrize(("constant", "complains"), [(2, False), (9, True)])
def test_the_constant_answer_is_tried_first(loopback: Loopback, constant: int, complains: bool) -> None:
    def says_nothing(request: dict[str, Any]) -> bool:
        return CONSTANT[:60] in request["messages"][1]["content"]

    loopback.answer = lambda call: completion(f"RATING: [[{constant if says_nothing(call.json) else 6}]]")
    rated, tried, _ = rate(config(loopback, canaries=2))
    assert tried == {"rate/canary_constant": constant}
    assert len(loopback.requests) == 4 + 8
    assert all(map(says_nothing, loopback.requests[:4]))
    found = canaries.warnings({**tried, "rate/average": 6.0})
    assert bool(found) is complains
    assert canaries.warnings({"rate/average": 6.0}) == []
    assert len(rated) == 8


def test_the_cost_before_anybody_is_asked() -> None:
    settings = config(None, judgings=3, canaries=1, dollars_per_million_read=1.0, dollars_per_million_written=10.0)
    cost = rating_cost(settings, rating_template(settings), ANSWERED)
    # Four questions of two turns, three times, and the canary's two turns.
    assert (cost.requests, cost.tokens_written_at_most) == (26, 26 * 2048)
    assert cost.dollars_at_most == pytest.approx((cost.tokens_read_about + 10 * 26 * 2048) / 1e6)
    free = RateConfig(by=ScriptedRaterConfig())
    assert rating_cost(free, rating_template(free), ANSWERED) == Cost()


def test_the_scripted_rater_goes_by_length() -> None:
    settings = RateConfig(by=ScriptedRaterConfig())
    rated, _, status = rate(settings, answered=[(QUESTIONS[0], ("", "x" * 40)), (QUESTIONS[1], ("x" * 999, "y"))])
    assert [each.score for _, each in rated] == [1.0, 3.0, 10.0, 1.0]
    assert status == ""
    assert not costs_money(settings.by)


def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = RateConfig(by=OpenAIRaterConfig(model="m"), prompts=str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match=r"none\.jsonl cannot be read"):
        rater_with_content_hash(settings)
    with pytest.raises(UsageError, match=r"cannot read .*none\.jsonl"):
        rating_template(settings)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    own = RateConfig(by=OpenAIRaterConfig(model="m"))
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
        build_rater(own, rating_template(own))


def test_nothing_to_rate() -> None:
    settings = RateConfig(by=ScriptedRaterConfig())
    rater = build_rater(settings, rating_template(settings))
    assert asyncio.run(rate_turns(rater, [], settings.execution, lambda *progress: None)) == []
