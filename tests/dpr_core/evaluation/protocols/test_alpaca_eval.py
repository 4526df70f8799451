import asyncio
import json
import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import (
    JudgeConfig,
    JudgeExecutionConfig,
    OpenAIJudgeConfig,
    OpenAIRaterConfig,
    RateConfig,
    ScriptedJudgeConfig,
)
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.batch.lines import BatchReply
from dpr_core.evaluation.endpoint import Endpoint
from dpr_core.evaluation.judge import build_judge, judging_by, rater_with_content_hash
from dpr_core.evaluation.pairwise import Answer, Comparison, Game, Pair, Verdict, judge_pairs
from dpr_core.evaluation.protocols import official, protocol_of
from dpr_core.evaluation.protocols.alpaca_eval import ANNOTATORS
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import read_rows
from tests.dpr_core.evaluation.protocols.made import (
    BENCH,
    MESSAGES,
    PAIR,
    RANKING,
    WEIGHTED,
    annotator,
    judged,
    logprobs,
)
from tests.loopback import Call, Loopback, Reply, completion, refused

PACKAGE = pytest.mark.skipif(find_spec("alpaca_eval") is None, reason="alpaca-eval is not installed")

ANNOTATIONS = BENCH / "alpaca_eval/results/alpaca-7b/annotations_ae2.json"

RANKED = "[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]"


def test_the_template_becomes_messages_and_what_looks_like_a_field_stays(tmp_path: Path) -> None:
    protocol = protocol_of(str(annotator(tmp_path, RANKING)))
    shown = Comparison(Question("q", ("{output_1}",)), Answer.of("{{x}} {output_2}"), Answer.of("<|im_end|>"))
    assert protocol.messages(shown) == [
        {"role": "system", "content": "You choose."},
        {"role": "user", "content": '{output_1}\n{ "one": """{{x}} {output_2}""", "two": """< |im_end|>""" }'},
    ]
    assert protocol.settings == {"temperature": 0.0, "max_tokens": 50}


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        (RANKED, "2.0"),
        (RANKED.replace("2}", "1}"), "1.0"),
        ("<think>hm</think>" + RANKED, "2.0"),
        (RANKED.replace("2}", "3}"), None),
        ("[{'model': 'model_2', 'rank': 1}]", None),
        ("__import__('os').abort()", None),
        ("[" * 5000, None),
        ("1", None),
        ("", None),
    ],
)
def test_a_ranking_is_read_and_never_run(tmp_path: Path, reply: str, label: str | None) -> None:
    protocol = protocol_of(str(annotator(tmp_path, RANKING)))
    assert protocol.label(reply) == label
    assert label is None or protocol.verdict(label) is (Verdict.FIRST if label == "1.0" else Verdict.SECOND)


@pytest.mark.parametrize(
    ("told", "preference"),
    [
        ({"m": math.log(0.6), "M": math.log(0.2), "x": math.log(0.2)}, 1.25),
        ({"M": -0.1}, 2.0),
        ({"m": -30.0}, 1.0),
        ({"m": -0.7, "M": -0.7}, 1.5),
        ({"x": -0.1}, None),
    ],
)
def test_a_preference_is_weighed_by_the_first_token(
    tmp_path: Path, told: dict[str, float], preference: float | None
) -> None:
    protocol = protocol_of(str(annotator(tmp_path, WEIGHTED)))
    label = protocol.label(logprobs(**told))
    assert (None if label is None else float(label)) == pytest.approx(preference)
    if preference == 1.5:
        assert protocol.verdict(str(label)) is Verdict.TIE
    assert protocol.label("m") is None
    assert protocol.label('{"logprobs": {"content": []}}') is None


@pytest.mark.parametrize(
    ("values", "template", "words"),
    [
        ({**RANKING, "fn_completion_parser": "regex_parser"}, MESSAGES, "read by regex_parser, which is not known"),
        ({**RANKING, "batch_size": 5}, MESSAGES, "several pairs at once"),
        (RANKING, MESSAGES.replace("{output_2}", ""), "is not one of messages with the fields"),
        (RANKING, "{instruction} {output_1} {output_2}", "is not one of messages with the fields"),
        ({**RANKING, "completions_kwargs": {"max_tokens": 5}}, MESSAGES, "no `temperature`"),
    ],
)
def test_annotators_of_other_kinds_are_refused(
    tmp_path: Path, values: dict[str, Any], template: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        protocol_of(str(annotator(tmp_path, values, template)))
    assert words in str(caught.value)


def test_the_row_is_of_the_order_that_the_package_draws(tmp_path: Path) -> None:
    protocol = protocol_of(str(annotator(tmp_path, RANKING)))
    first_wins = RANKED.replace("2}", "1}")
    rows = []
    for text in ("Why?", "How?", "Who?", "When?"):
        pair = Pair(Question("q", (text,)), PAIR.candidate, PAIR.baseline)
        rows += json.loads(judged(protocol, pair, {True: first_wins, False: first_wins}).text)
    assert {row["preference"] for row in rows} == {1.0, 2.0}, "both orders are drawn"
    assert {(row["output_1"], row["generator_1"]) for row in rows} == {("who knows", "theirs")}
    same = Pair(PAIR.question, PAIR.baseline, PAIR.baseline)
    (row,) = json.loads(judged(protocol, same, {True: first_wins, False: first_wins}).text)
    assert row["preference"] == 1.5
    (row,) = json.loads(judged(protocol, PAIR, {True: "?", False: "?"}).text)
    assert row["preference"] is None


@pytest.mark.skipif(not ANNOTATIONS.is_file(), reason="the official files are not beside the repository")
@PACKAGE
def test_published_annotations_come_out_as_they_were(tmp_path: Path) -> None:
    """Of 802 replies that were kept, each in the order in which it was asked."""
    protocol = protocol_of("weighted_alpaca_eval_gpt4_turbo")
    kept = [row for row in read_rows(ANNOTATIONS) if row.get("raw_completion")]
    pairs, games = [], []
    for row in kept:
        raw = json.dumps(row["raw_completion"])
        label = str(protocol.label(raw))
        pair = Pair(Question("q", (row["instruction"],)), Answer.of(row["output_2"]), Answer.of(row["output_1"]))
        pairs.append(pair)
        # Whichever of the two is taken, the package asked in that order.
        games += [Game("q", first, protocol.verdict(label), raw, label=label) for first in (True, False)]
    written = json.loads(official(protocol, pairs, games, "alpaca-7b", ["b"] * len(pairs), OpenAIJudgeConfig()).text)
    assert [row["preference"] for row in written] == pytest.approx([row["preference"] for row in kept], abs=1e-9)
    assert len(written) == 802


@PACKAGE
def test_the_installed_annotators_are_known_by_their_hash() -> None:
    for name in ANNOTATORS:
        protocol = protocol_of(name)
        assert protocol.name == name
        assert protocol.warnings(protocol.model) == []


@pytest.mark.slow
@pytest.mark.skipif(
    None in (find_spec("alpaca_eval"), find_spec("pkg_resources")), reason="the extra `official` is not installed"
)
def test_the_package_goes_on_from_our_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody: every pair is found in the file."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("logging.root.level", logging.WARNING)
    from alpaca_eval.annotators import PairwiseAnnotator
    from alpaca_eval.metrics import get_winrate

    protocol = protocol_of("weighted_alpaca_eval_gpt4_turbo")
    pairs = [Pair(Question(str(i), (f"Why {i}?",)), PAIR.candidate, PAIR.baseline) for i in range(6)]
    raw = logprobs(m=math.log(0.75), M=math.log(0.25))
    label = str(protocol.label(raw))
    games = [
        Game(each.question.id, first, protocol.verdict(label), raw, label=label)
        for each in pairs
        for first in (True, False)
    ]
    written = official(protocol, pairs, games, "mine", ["theirs"] * len(pairs), "judge")
    written.write(tmp_path)
    rows = json.loads(written.text)
    annotate = PairwiseAnnotator(annotators_config=protocol.name, caching_path=tmp_path / written.file)
    asked = [{name: row[name] for name in ("instruction", "output_1", "output_2")} for row in rows]
    found = annotate.annotate_pairs(asked)
    assert [row["preference"] for row in found] == pytest.approx([row["preference"] for row in rows])
    assert {row["preference"] for row in rows} == {1.25, 1.75}
    assert get_winrate(found)["win_rate"] == pytest.approx(written.scores["official"]["win_rate"])


def test_a_rule_reads_no_prompts() -> None:
    with pytest.raises(UsageError, match="the scripted judge reads no prompts"):
        judging_by(JudgeConfig(by=ScriptedJudgeConfig(), prompts=ANNOTATORS[0]))


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr_core.evaluation.protocols.alpaca_eval.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dense-path\[official\]'"):
        protocol_of(ANNOTATORS[0])


def weighing(call: Call) -> Reply:
    """Prefers "who knows" by three to one, in one token."""
    first = '"one": """who knows' in call.json["messages"][-1]["content"]
    told = {"m": 0.75 if first else 0.25, "M": 0.25 if first else 0.75}
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in told.items()]
    reply = completion("m" if first else "M", finish_reason="length")
    choices = [{**reply.body["choices"][0], "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}]  # type: ignore[index]
    return Reply({**reply.body, "choices": choices})  # type: ignore[dict-item]


def test_log_probabilities_of_a_batch_are_read_as_well(loopback: Loopback, tmp_path: Path) -> None:
    body = weighing(Call("POST", "/", "", {}, json.dumps({"messages": [{"content": ""}]}).encode())).body
    config = OpenAIJudgeConfig(model="judge", base_url=loopback.url, top_logprobs=5)
    reply = Endpoint(config, JudgeExecutionConfig()).reply(BatchReply.model_validate(body))
    assert reply.is_whole
    assert protocol_of(str(annotator(tmp_path, WEIGHTED))).label(reply.text) == "1.75"


def judging(loopback: Loopback, prompts: Path, cache: Path) -> tuple[list[Game], JudgeConfig]:
    config = JudgeConfig(
        by=OpenAIJudgeConfig(model="judge", base_url=loopback.url),
        prompts=str(prompts),
        execution=JudgeExecutionConfig(retries=0, rounds=0, unreadable_retries=0),
    )
    pinned, protocol = judging_by(config)
    judge = build_judge(pinned.by, pinned.execution, lambda question, text: None, cache, protocol)
    return list(asyncio.run(judge_pairs(judge, [PAIR], pinned.execution, lambda *note: None))), pinned


def test_log_probabilities_are_asked_for_read_and_kept(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = weighing
    prompts = annotator(tmp_path, WEIGHTED)
    games, pinned = judging(loopback, prompts, tmp_path / "verdicts.sqlite")
    (body, _) = loopback.requests
    assert {name: body[name] for name in ("logprobs", "top_logprobs", "max_completion_tokens", "temperature")} == {
        "logprobs": True,
        "top_logprobs": 5,
        "max_completion_tokens": 1,
        "temperature": 1.0,
    }
    assert [(game.candidate_first, float(game.label), game.score) for game in games] == [
        (True, pytest.approx(1.75), 0.0),
        (False, pytest.approx(1.25), 0.0),
    ]
    again, _ = judging(loopback, prompts, tmp_path / "verdicts.sqlite")
    assert again == games
    assert len(loopback.requests) == 2, "what was paid for is kept"
    assert [Game.of(game.as_dict()) for game in games] == games
    identity = pinned.identity()
    assert identity["by"]["template"] == protocol_of(str(prompts)).digest
    moved = annotator(tmp_path / "elsewhere", WEIGHTED)
    again, elsewhere = judging(loopback, moved, tmp_path / "verdicts.sqlite")
    assert (again, elsewhere.identity(), len(loopback.requests)) == (games, identity, 2), "only what they say counts"
    assert not {"prompts"} & JudgeConfig().identity().keys(), "keys of stages stay the same"
    assert "top_logprobs" not in JudgeConfig().identity()["by"]
    rating = rater_with_content_hash(RateConfig(by=OpenAIRaterConfig(top_logprobs=5)))
    assert rating == rater_with_content_hash(RateConfig(by=OpenAIRaterConfig())), "a rating is a text"


@pytest.mark.parametrize("said", [("", "content_filter"), ("I", "content_filter"), ("", "stop")])
def test_a_reply_that_was_kept_back_is_an_unreadable_game_and_no_end(
    loopback: Loopback, tmp_path: Path, said: tuple[str, str]
) -> None:
    loopback.answer = lambda call: completion(said[0], finish_reason=said[1])
    games, _ = judging(loopback, annotator(tmp_path, WEIGHTED), tmp_path / "verdicts.sqlite")
    assert [game.verdict for game in games] == [Verdict.UNREADABLE] * 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda call: completion("m", finish_reason="length"), "sends no log-probabilities for judge"),
        (lambda call: refused(400, "logprobs are not supported"), "use judge prompts that need no log-probabilities"),
    ],
)
def test_an_endpoint_without_log_probabilities_ends_it_in_a_sentence(
    loopback: Loopback, tmp_path: Path, answer: Any, words: str
) -> None:
    loopback.answer = answer
    with pytest.raises(DensePathError) as caught:
        judging(loopback, annotator(tmp_path, WEIGHTED), tmp_path / "verdicts.sqlite")
    assert words in str(caught.value)
