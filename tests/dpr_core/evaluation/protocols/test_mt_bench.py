"""Pairwise judging as FastChat does it: prompts, the reading of replies, and the file that its tools read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.ask import REFUSED
from dpr_core.evaluation.official import FORMATS
from dpr_core.evaluation.pairwise import Answer, Game, Pair, Verdict, summarise
from dpr_core.evaluation.protocols import protocol_of
from dpr_core.evaluation.protocols.mt_bench import MTBenchProtocol
from dpr_core.evaluation.protocols.protocol import JudgingProtocol, OfficialPrompt, Played
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import Row, read_rows

PROMPTS = Path(__file__).parents[5] / "shared" / "bench" / "mt_bench" / "judge_prompts.jsonl"
OFFICIAL = os.environ.get("DENSE_PATH_FASTCHAT", "")
"""A checkout of lm-sys/FastChat."""


def row(name: str, template: str, **changes: Any) -> Row:
    told = {"system_prompt": "Judge.", "prompt_template": template, "output_format": "[[A]]"}
    return {"name": name, **told, **changes}


ROWS = [
    row("pair-v2", "Q {question} A {answer_a} B {answer_b} {{kept}}"),
    row("pair-math-v1", "Q {question} R {ref_answer_1} A {answer_a} B {answer_b}"),
    row("pair-v2-multi-turn", "{question_1} {question_2} A {answer_a_1} {answer_a_2} B {answer_b_1} {answer_b_2}"),
    row("pair-math-v1-multi-turn", "R {ref_answer_1} {ref_answer_2} A {answer_a_2} B {answer_b_2}", system_prompt=""),
]
WRITING = Question("81", ("Write.", "Rewrite."), category="writing")
MATH = Question("111", ("Add.", "Double."), references=("3", "6"), category="math")


def pair(question: Question) -> Pair:
    return Pair(question, Answer(("mine {question}", "mine 2")), Answer(("its 1", "its 2")))


def read(folder: Path, rows: list[Row] = ROWS) -> JudgingProtocol:
    file = folder / "judge_prompts.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return protocol_of(str(file))


def played(protocol: JudgingProtocol, labels: list[str]) -> tuple[list[Played], list[Game]]:
    """Two letters for each turn of both questions: the verdict with the candidate first, and the one with it second."""
    rounds = [part for question in (WRITING, MATH) for part in protocol.rounds(pair(question))]
    found = []
    for part, both in zip(rounds, labels, strict=True):
        games = {}
        for first, letter in zip((True, False), both, strict=True):
            verdict = Verdict.UNREADABLE if letter in "?!" else protocol.verdict(letter)
            details = {REFUSED: "too long"} if letter == "!" else {}
            label = "" if letter in "?!" else letter
            games[first] = Game(part.question.id, first, verdict, f"So [[{letter}]]", details, label, part.turn)
        found.append(Played(part, {first: part.shown(first) for first in games}, games, "mine", "base"))
    return found, [game for each in found for game in each.games.values()]


def test_every_turn_is_asked_about_by_itself(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    asked = [part for question in (WRITING, MATH) for part in protocol.rounds(pair(question))]
    assert [part.turn for part in asked] == [1, 2, 1, 2]
    assert [protocol.messages(part.shown(True))[-1]["content"] for part in asked] == [
        "Q Write. A mine {question} B its 1 {kept}",
        "Write. Rewrite. A mine {question} mine 2 B its 1 its 2",
        "Q Add. R 3 A mine {question} B its 1",
        "R 3 6 A mine 2 B its 2",
    ]
    assert protocol.messages(asked[0].shown(False))[1]["content"] == "Q Write. A its 1 B mine {question} {kept}"
    assert [len(protocol.messages(part.shown(True))) for part in asked] == [2, 2, 2, 1]


def test_a_reply_is_read_as_fastchat_reads_it(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    replies = ("[[B]]", "not [[B]] but [[A]]", "it is [[C]].", "[A]", "[[D]]", "<think>[[A]]</think> [[C]]")
    assert [protocol.label(reply) for reply in replies] == ["B", "A", "C", None, None, "C"]
    prompt = OfficialPrompt(protocol, 100)
    judgment = prompt.judgment(pair(WRITING).shown(True), prompt.read("[[C]]", as_json=False), "[[C]]", {})
    assert (judgment.verdict, judgment.value) == (Verdict.TIE, "C")


def test_the_rows_are_fastchats(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    games, _ = played(protocol, ["AB", "AA", "C?", "B!"])
    name, text = protocol.file("mine", "org/gpt-4"), protocol.text(protocol.rows(games, "org/gpt-4"))
    rows = [json.loads(line) for line in text.splitlines()]
    assert name == "gpt-4_pair.jsonl"
    assert rows[0] == {
        "question_id": 81,
        "model_1": "mine",
        "model_2": "base",
        "judge": ["org/gpt-4", "pair-v2"],
        "turn": 1,
        "g1_winner": "model_1",
        "g1_user_prompt": "Q Write. A mine {question} B its 1 {kept}",
        "g1_judgment": "So [[A]]",
        "g2_winner": "model_1",
        "g2_user_prompt": "Q Write. A its 1 B mine {question} {kept}",
        "g2_judgment": "So [[B]]",
    }
    assert [(row["g1_winner"], row["g2_winner"]) for row in rows[1:]] == [
        ("model_1", "model_2"),
        ("tie", "error"),
        ("model_2", "error"),
    ]
    assert [row["judge"][1] for row in rows[2:]] == ["pair-math-v1", "pair-math-v1-multi-turn"]
    assert rows[3]["g2_judgment"] == "$ERROR$"


def test_the_games_of_two_turns_are_one_prompt(tmp_path: Path) -> None:
    _, games = played(read(tmp_path), ["AB", "AA", "CC", "BA"])
    assert [Game.of(json.loads(json.dumps(game.as_dict()))) for game in games] == games
    rate = summarise(games, 100, 0, [WRITING, MATH])
    assert (rate.prompts, rate.wins, rate.ties, rate.losses) == (2, 3, 2, 3)
    assert rate.win_rate == pytest.approx(100 * ((1 + 1 + 1 + 0) / 4 + (0.5 + 0.5 + 0 + 0) / 4) / 2)
    assert rate.contradiction_rate == pytest.approx(1 / 4)
    assert {name: each["mean"] for name, each in rate.by_category.items()} == {"math": 25.0, "writing": 75.0}
    with pytest.raises(ValueError, match="judged twice in the same order"):
        summarise([*games, games[0]], 100, 0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:3], "no judge prompt called pair-math-v1-multi-turn, which pairwise judging needs"),
        ([row("pair-v2", "{answer_a} {question}"), *ROWS[1:]], r"pair-v2 has no \{answer_b\}"),
        ([row("pair-v2", "{answer_a} {answer_b} {ref_answer_1}"), *ROWS[1:]], r"has the field \{ref_answer_1\}"),
        ([row("pair-v2", "{answer_a} {answer_b}", output_format="[[rating]]"), *ROWS[1:]], r"not for a \[\[A\]\]"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_a_sentence(tmp_path: Path, rows: list[Row], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, rows)


def test_other_prompts_and_questions_of_three_turns(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    assert "is not as lm-sys/FastChat at 0e6d3e4 has it" in protocol.warnings("gpt-4")[0]
    with pytest.raises(UsageError, match="question q has 3 turns"):
        protocol.refuse(Question("q", ("a", "b", "c")))
    (said,) = protocol.about([Question("q", ("a",), category="math")])
    assert "have no reference answer" in said


@pytest.mark.skipif(not PROMPTS.exists(), reason="the official files are not beside the repository")
def test_the_official_prompts_are_known() -> None:
    protocol = MTBenchProtocol.read_from(PROMPTS)
    assert protocol.warnings("gpt-4") == []
    assert "meant for the judge gpt-4" in protocol.warnings("gpt-4o")[0]
    (first, *_) = protocol.rounds(pair(WRITING))
    shown = protocol.messages(first.shown(True))
    template = next(each for each in read_rows(PROMPTS) if each["name"] == "pair-v2")
    assert shown[0]["content"] == template["system_prompt"]
    assert shown[1]["content"] == template["prompt_template"].format(
        question="Write.", answer_a="mine {question}", answer_b="its 1"
    )


def test_our_score_reads_the_file(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    games, _ = played(protocol, ["AB", "AA", "CC", "B?"])
    rows = protocol.rows(games, "gpt-4")
    found = FORMATS["mt-bench"](rows, [], [])["mine"]
    # Won in both orders; contradictory; a tie; one game that could not be read.
    assert found.official == {
        "win_rate": pytest.approx(1 / 3),
        "loss_rate": 0,
        "win_rate_adjusted": pytest.approx(2 / 3),
    }
    assert (found.n, found.unscored) == (4, 1)


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL, reason="DENSE_PATH_FASTCHAT names no checkout of lm-sys/FastChat")
def test_fastchats_own_code_reads_the_file_to_the_same_rate(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    games, _ = played(protocol, ["AB", "AA", "CC", "B?"])
    rows = protocol.rows(games, "gpt-4")
    name = protocol.file("mine", "gpt-4")
    (tmp_path / name).write_text(protocol.text(rows))
    script = Path(OFFICIAL) / "fastchat" / "llm_judge" / "show_result.py"
    options = ["--mode", "pairwise-baseline", "--baseline-model", "base", "--input-file", str(tmp_path / name)]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=True)
    model, *_, win_rate, loss_rate, adjusted = done.stdout.splitlines()[-1].split()
    found = FORMATS["mt-bench"](rows, [], [])["mine"].official
    assert model == "mine"
    expected = [found[each] for each in ("win_rate", "loss_rate", "win_rate_adjusted")]
    assert [float(each) for each in (win_rate, loss_rate, adjusted)] == pytest.approx(expected, abs=1e-6)
