import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import OpenAIJudgeConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.official import FORMATS
from dpr_core.evaluation.pairwise import Answer, Comparison, Game, Verdict
from dpr_core.evaluation.protocols import official, protocol_of
from dpr_core.evaluation.questions import Question
from tests.dpr_core.evaluation.protocols.made import BENCH, PAIR, TOLD, arena, judged

CHECKOUT = os.environ.get("DENSE_PATH_ARENA_HARD")
"""A checkout of Arena-Hard's repository, whose own scripts read what is written here."""

PROMPTS = BENCH / "arena_hard" / "judge_prompts.json"
BATTLES = BENCH / "arena_hard/v0.1/model_judgment/gpt-4-1106__llama-3.1-8b-instruct.jsonl"


def shown(category: str, question: str = "Why?") -> Comparison:
    return Comparison(Question("q1", (question,), category=category), Answer.of("{QUESTION}"), Answer.of("<|end|>"))


def test_each_category_is_told_its_own_and_what_looks_like_a_field_stays(tmp_path: Path) -> None:
    protocol = protocol_of(str(arena(tmp_path)))
    for category, text in TOLD.items():
        assert protocol.messages(shown(category, "{ANSWER_B}")) == [
            {"role": "system", "content": text},
            {"role": "user", "content": "Q {ANSWER_B}\nA {QUESTION}\nB < |end|> {end}"},
        ]
        assert protocol.baseline(shown(category).question) == f"best at {category}"
    assert protocol.settings == {"temperature": 0.0, "max_tokens": 300}


def test_another_baseline_than_that_of_a_category_is_told_once(tmp_path: Path) -> None:
    protocol = protocol_of(str(arena(tmp_path)))
    own = [(shown(category).question, f"best at {category}") for category in TOLD]
    assert protocol.baseline_warnings(own) == []
    said = protocol.baseline_warnings([*own, *((question, "SFT") for question, _ in own * 2)])
    assert len(said) == len(TOLD)
    for line, category in zip(said, sorted(TOLD), strict=True):
        assert f"is meant for the baseline best at {category}, and here it is SFT" in line


@pytest.mark.parametrize(
    ("reply", "label", "verdict"),
    [
        ("First [[A>>B]], no: [[b>a]]", "B>A", Verdict.SECOND),
        ("[A>B] it is", "A>B", Verdict.FIRST),
        ("[A>B] but finally [[A=B]]", "A=B", Verdict.TIE),
        ("[[A<<B]]", "A<<B", Verdict.SECOND),
        ("<think>[[A>B]]</think> so [[B>>A]]", "B>>A", Verdict.SECOND),
        ("[[A>>>B]]", None, None),
        ("A is better", None, None),
    ],
)
def test_the_last_label_counts(tmp_path: Path, reply: str, label: str | None, verdict: Verdict | None) -> None:
    protocol = protocol_of(str(arena(tmp_path)))
    assert protocol.label(reply) == label
    assert (None if label is None else protocol.verdict(label)) == verdict


def test_both_games_become_a_row_that_scores_as_the_official_one(tmp_path: Path) -> None:
    protocol = protocol_of(str(arena(tmp_path)))
    written = judged(protocol, PAIR, {True: "[[A>>B]]", False: "[[B>A]]"})
    (row,) = map(json.loads, written.text.splitlines())
    assert written.file == "mine.jsonl"
    assert [game["score"] for game in row["games"]] == ["B>A", "A>>B"], "the baseline is first in the first game"
    assert row["games"][0]["prompt"] == protocol.messages(PAIR.shown(candidate_first=False))
    assert (row["category"], row["baseline"], row["judge"]) == ("hard", "theirs", "judge")
    assert written.scores["official"]["score_v2.0"] == 100
    questions = [{"uid": "q1", "prompt": "Why?", "category": "hard"}]
    answers = [{"uid": "q1", "model": "mine", "messages": [{"content": {"answer": "because"}}]}]
    assert FORMATS["arena-hard"]([row], answers, questions)["mine"].warnings == []
    lost = json.loads(judged(protocol, PAIR, {True: "[[A>>B]]", False: "no"}).text)
    assert [game["score"] for game in lost["games"]] == [None, "A>>B"]


def test_the_file_is_called_by_the_model_alone_and_has_what_the_judge_saw(tmp_path: Path) -> None:
    protocol = protocol_of(str(arena(tmp_path)))
    names = [protocol.file(name, "judge") for name in ("meta/Llama-3.1", "../../.ssh/x", "..", "a\0b")]
    assert names == ["Llama-3.1.jsonl", "x.jsonl", "model.jsonl", "a_b.jsonl"]
    long = type(PAIR)(PAIR.question, Answer.of("c" * 150), PAIR.baseline)
    games = [Game("q1", first, Verdict.TIE, "[[A=B]]", label="A=B") for first in (True, False)]
    by = OpenAIJudgeConfig(max_answer_characters=100)
    written = json.loads(official(protocol, [long], games, "mine", ["theirs"], by).text)
    assert "c" * 100 in (prompt := written["games"][0]["prompt"][1]["content"])
    assert "c" * 101 not in prompt


def test_no_code_of_the_repository_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "run"
    told = "JUDGE_SETTINGS = {'hard': {'baseline': 'b', 'system_prompt': TEXT}}"
    code = f"open({str(trap)!r}, 'w')\nTEXT = 'Judge.'\n{told}"
    protocol = protocol_of(str(arena(tmp_path, code)))
    assert protocol.messages(shown("hard"))[0]["content"] == "Judge."
    assert not trap.exists()


@pytest.mark.parametrize(
    ("code", "changes", "words"),
    [
        ("x = 1", {}, "has no JUDGE_SETTINGS"),
        ("JUDGE_SETTINGS = {", {}, "cannot be read as Python"),
        ("JUDGE_SETTINGS = {'hard': {'system_prompt': str(1), 'baseline': ''}}", {}, "no `system_prompt`"),
        (None, {"prompt_template": "{QUESTION} {ANSWER_A}"}, "has the fields ['ANSWER_A', 'QUESTION'], not"),
        (None, {"regex_patterns": ["("]}, "the pattern '(' cannot be read"),
        (None, {"regex_patterns": ["A|B"]}, "has 0 groups"),
        (None, {"max_tokens": True}, "no `max_tokens`"),
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, code: str | None, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        protocol_of(str(arena(tmp_path, code, **changes)))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_and_a_category_that_is_unknown_are_named(tmp_path: Path) -> None:
    file = arena(tmp_path)
    with pytest.raises(UsageError, match=r"question q1 is of the category 'x', for .* \(it does for easy, hard\)"):
        protocol_of(str(file)).refuse(shown("x").question)
    with pytest.raises(UsageError, match="question q1 has no category, which made-v1 needs"):
        protocol_of(str(file)).refuse(shown("").question)
    (tmp_path / "utils" / "judge_utils.py").unlink()
    with pytest.raises(UsageError, match="cannot read .*judge_utils.py: No such file"):
        protocol_of(str(file))
    with pytest.raises(UsageError, match="cannot read .*nowhere.yaml"):
        protocol_of(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(UsageError, match="is none of the files that are known here"):
        protocol_of(str(tmp_path / "other.yaml"))


def test_an_edit_of_what_the_judge_is_told_is_another_protocol_and_is_said(tmp_path: Path) -> None:
    protocols = [
        protocol_of(str(arena(tmp_path, **changes)))
        for changes in ({}, {"model_list": ["other"]}, {"prompt_template": "{QUESTION}{ANSWER_A}{ANSWER_B}"})
    ]
    one, same, other = (each.digest for each in protocols)
    assert one == same != other
    said = protocols[0].warnings("gpt")
    assert one[:12] in said[0]
    assert "meant for the judge judge, and judge.by.model is gpt" in said[1]


@pytest.fixture
def real(tmp_path: Path) -> dict[str, Path]:
    """The real texts, laid out as in the repository."""
    if not PROMPTS.is_file():
        pytest.skip("the official files are not beside the repository")
    told = json.loads(PROMPTS.read_text())
    code = f"JUDGE_SETTINGS = {told['settings']!r}"
    found = {}
    for version in ("v0.1", "v2.0"):
        name = f"arena-hard-{version}"
        own = {"judge_model": told[version]["judge"], "bench_name": name}
        own |= {key: told[version][key] for key in ("temperature", "max_tokens")}
        shared = {key: told[key] for key in ("prompt_template", "regex_patterns")}
        found[name] = arena(tmp_path / version, code, **own, **shared)
    return found


def test_the_official_texts_are_known_by_their_hash(real: dict[str, Path]) -> None:
    for name, file in real.items():
        protocol = protocol_of(str(file))
        assert protocol.name == name
        assert protocol.warnings(protocol.model) == []


def test_official_judgments_are_asked_and_read_as_they_were(real: dict[str, Path]) -> None:
    protocol = protocol_of(str(real["arena-hard-v0.1"]))
    answers = {
        row["uid"]: row["messages"][-1]["content"]["answer"]
        for row in map(json.loads, (BENCH / "arena_hard/v0.1/model_answer/gpt-4-0314.jsonl").read_text().splitlines())
    }
    compared = 0
    for row in map(json.loads, BATTLES.read_text().splitlines()):
        for game in row["games"]:
            if game["score"] in ("A>>B", "A>B", "A=B", "B>A", "B>>A"):
                assert protocol.label(game["judgment"]) == game["score"]
        prompt, first = row["games"][0]["user_prompt"], answers[row["question_id"]]
        start, end = "<|The Start of Assistant B's Answer|>\n", "\n<|The End of Assistant B's Answer|>"
        second = prompt.partition(start)[2].removesuffix(end)
        question = prompt.removeprefix("<|User Prompt|>\n").partition("\n\n<|The Start of Assistant A's Answer|>")[0]
        asked = Comparison(Question(row["question_id"], (question,)), Answer.of(first), Answer.of(second))
        if first in prompt:
            assert protocol.messages(asked)[1]["content"] == prompt
            compared += 1
    assert compared > 50


@pytest.mark.skipif(CHECKOUT is None, reason="DENSE_PATH_ARENA_HARD names no checkout of Arena-Hard's repository")
@pytest.mark.slow
def test_its_own_script_reads_our_judgments(tmp_path: Path) -> None:
    protocol = protocol_of(str(Path(str(CHECKOUT)) / "config" / "arena-hard-v2.0.yaml"))
    pair = type(PAIR)(Question("q1", ("Why?",), category="hard_prompt"), PAIR.candidate, PAIR.baseline)
    written = judged(protocol, pair, {True: "[[A>>B]]", False: "[[A>B]]"})
    folder = tmp_path / "data" / "arena-hard-v2.0" / "model_judgment" / "judge"
    folder.mkdir(parents=True)
    (folder / written.file).write_text(written.text)
    code = "from show_result import load_judgments as l; print(l(['judge'], 'arena-hard-v2.0').scores.mean())"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(told.stdout.split()[-1]) * 100 == written.scores["official"]["score_v2.0"] == 75
