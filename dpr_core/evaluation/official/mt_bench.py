"""MT-Bench in FastChat's files: single-answer ratings of two turns, or pairwise verdicts.

Official score: ratings of -1 are dropped, then the mean over all remaining rows, repeated ones included.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from dpr_core.errors import UsageError
from dpr_core.evaluation.official.layouts import LAYOUTS, Answers
from dpr_core.evaluation.official.score import UNCOMPARED, ModelScore, in_categories, interval, mean, shows, warning
from dpr_core.evaluation.rows import Row, check, need, unique

QUESTIONS = 80
UNREADABLE = -1
ID = (int, str)
FAILED = "$ERROR$"
ERROR = "error"
"""The winner of a game whose verdict could not be read."""

WITH_REFERENCES = ("math", "reasoning", "coding")
"""Categories whose judge is shown a reference answer."""

RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def read_rating(judgment: str) -> float:
    """`[[x]]`, else `[x]`, else -1."""
    for pattern in RATING:
        if match := pattern.search(judgment):
            return float(match.group(1))
    return UNREADABLE


def score(judgments: list[Row], answers: list[Row], questions: list[Row]) -> dict[str, ModelScore]:
    need(questions, ("question_id", "turns"), "MT-Bench questions")
    check(questions, "MT-Bench questions", question_id=ID, category=str)
    LAYOUTS["mt-bench"].questions(questions)
    asked = unique(questions, lambda row: row["question_id"], "question")
    if "g1_winner" in judgments[0]:
        return _score_pairs(judgments, asked)
    need(judgments, ("question_id", "model", "score", "turn"), "MT-Bench judgments")
    check(
        judgments,
        "MT-Bench judgments",
        question_id=ID,
        model=str,
        turn=int,
        judgment=str,
        user_prompt=str,
        judge=(list, str),
    )
    given = LAYOUTS["mt-bench"].answers(answers)
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in judgments:
        by_model[row["model"]].append({**row, "score": _score(row)})
    return {model: _score_model(model, rows, given, asked) for model, rows in sorted(by_model.items())}


def _score(row: Row) -> float:
    """A row without a score counts as unreadable; the official script leaves it out, too."""
    score = row["score"]
    if score is None or score != score:
        return UNREADABLE
    if isinstance(score, bool) or not isinstance(score, int | float) or abs(score) > 100:
        raise UsageError(
            f"question {row['question_id']}: `score` is {str(score)[:40]!r}, not a number (-1: unreadable)"
        )
    return score


def _score_model(model: str, rows: list[Row], answers: dict[str, Answers], questions: dict[Any, Row]) -> ModelScore:
    read = [row for row in rows if row["score"] != UNREADABLE]
    turns = {turn: [float(row["score"]) for row in read if row["turn"] == turn] for turn in (1, 2)}
    judgings: dict[tuple[Any, int], list[float]] = defaultdict(list)
    prompts: dict[Any, list[float]] = defaultdict(list)
    for row in read:
        judgings[row["question_id"], row["turn"]].append(float(row["score"]))
        prompts[row["question_id"]].append(float(row["score"]))
    official: dict[str, Any] = {
        "turn1": mean(turns[1]),
        "turn2": mean(turns[2]),
        "average": mean([float(row["score"]) for row in read]),
    }
    if questions and all("category" in row for row in questions.values()):
        official["categories"] = _by_category(read, questions)
    paper = {
        "score": official["average"],
        "interval": interval([fmean(scores) for scores in prompts.values()]),
        "median_of_judgings": mean([median(scores) for scores in judgings.values()]),
        **in_categories(prompts, _categories(questions)),
    }
    warnings = _warnings(model, rows, questions) + _join_warnings(model, rows, answers, questions)
    return ModelScore(official, paper, len(rows), len(rows) - len(read), warnings)


def _categories(questions: dict[Any, Row]) -> dict[Any, str]:
    return {name: question.get("category", "") for name, question in questions.items()}


def _by_category(rows: list[Row], questions: dict[Any, Row]) -> dict[str, float]:
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["question_id"] in questions:
            scores[questions[row["question_id"]]["category"]].append(float(row["score"]))
    return {category: fmean(values) for category, values in sorted(scores.items())}


def _warnings(model: str, rows: list[Row], questions: dict[Any, Row]) -> list[str]:
    times = Counter((row["question_id"], row["turn"]) for row in rows)
    judges = sorted({str(_judge(row)) for row in rows})
    expected = len(questions) or QUESTIONS
    found = warning(
        (_place(row) for row in rows if times[row["question_id"], row["turn"]] > 1),
        "questions were judged more than once; the official mean counts every row",
    )
    found += warning((_place(row) for row in rows if row["score"] == UNREADABLE), "ratings could not be read")
    found += warning(
        (_place(row) for row in rows if row["score"] != UNREADABLE and not 1 <= float(row["score"]) <= 10),
        "ratings are outside 1 to 10",
    )
    found += warning(
        (_place(row) for row in rows if "judgment" in row and read_rating(row["judgment"]) != float(row["score"])),
        "scores are not the rating that the judge wrote",
    )
    found += warning((_place(row) for row in rows if row.get("judgment") == FAILED), "judgments are failed requests")
    found += warning(
        (_place(row) for row in rows if FAILED in row.get("user_prompt", "")), "judged answers are failed requests"
    )
    if len(judges) > 1:
        found.append(f"{len(judges)} judges are mixed in one mean ({', '.join(judges)})")
    for turn in (1, 2):
        covered = len({row["question_id"] for row in rows if row["turn"] == turn})
        if covered < expected:
            found.append(f"turn {turn}: {covered} of {expected} questions were judged")
    return found


def _join_warnings(model: str, rows: list[Row], answers: dict[str, Answers], questions: dict[Any, Row]) -> list[str]:
    """Whether what was judged is what was asked, and what is answered now."""
    found = []
    shown = [row for row in rows if "user_prompt" in row]
    if answers and not shown:
        found.append(UNCOMPARED)
    if questions:
        found += warning(
            (_place(row) for row in rows if row["question_id"] not in questions), "judgments are of unknown questions"
        )
        found += warning(
            (_place(row) for row in shown if not _shows(row, questions.get(row["question_id"], {}).get("turns", []))),
            "judgments show another question than the one of their id",
        )
    mine = answers.get(model, {})
    if answers and not mine:
        others = ", ".join(sorted(answers))
        found.append(f"the answers given are not this model's but those of {others}; nothing was compared")
    elif answers:
        found += warning(
            (_place(row) for row in shown if not _shows(row, mine.get(str(row["question_id"]), ()))),
            "judgments are of answers that are no longer the current ones",
        )
        found += warning((q for q, turns in mine.items() if not all(map(str.strip, turns))), "answers are empty")
        found += warning(
            (q for q, turns in mine.items() if any(FAILED in turn for turn in turns)), "answers are failed requests"
        )
    return found


def _shows(row: Row, texts: Sequence[str]) -> bool:
    """A judgment of the first turn shows the first text only; one of the second turn shows both."""
    return all(shows(row["user_prompt"], text) for text in texts[: row["turn"]])


def _place(row: Row) -> str:
    return f"{row['question_id']} turn {row['turn']}"


def _judge(row: Row) -> Any:
    judge = row.get("judge")
    return judge[0] if isinstance(judge, list) and judge else judge


def _score_pairs(rows: list[Row], questions: dict[Any, Row]) -> dict[str, ModelScore]:
    """FastChat's pairwise mode: both games must agree on a winner, anything else is a tie; error rows are dropped."""
    what = "MT-Bench pairwise judgments"
    need(rows, ("question_id", "model_1", "model_2", "g1_winner", "g2_winner"), what)
    check(rows, what, question_id=ID, model_1=str, model_2=str, g1_winner=str, g2_winner=str, turn=int)
    outcomes: dict[str, dict[tuple[Any, Any], list[float]]] = defaultdict(lambda: defaultdict(list))
    games: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    failed: Counter[str] = Counter()
    for row in rows:
        winners = (row["g1_winner"], row["g2_winner"])
        for mine in ("model_1", "model_2"):
            if ERROR in winners:
                failed[row[mine]] += 1
                continue
            agreed = winners[0] if winners[0] == winners[1] else "tie"
            outcomes[row[mine]][row["question_id"], row.get("turn", 1)].append(_points(agreed, mine))
            games[row[mine]][row["question_id"]] += [_points(winner, mine) for winner in winners]
    scores = {}
    for model in sorted({*outcomes, *failed}):
        results = [value for values in outcomes[model].values() for value in values]
        by_question = {name: [fmean(values)] for name, values in games[model].items()}
        prompts = [value for (value,) in by_question.values()]
        twice = (f"{q} turn {turn}" for (q, turn), values in outcomes[model].items() if len(values) > 1)
        rate = mean(results)
        scores[model] = ModelScore(
            {
                "win_rate": mean([float(value == 1) for value in results]),
                "loss_rate": mean([float(value == 0) for value in results]),
                "win_rate_adjusted": rate,
            },
            {
                "win_rate": None if not prompts else 100 * fmean(prompts),
                "interval": interval(prompts, 100),
                **in_categories(by_question, _categories(questions), 100),
            },
            len(results) + failed[model],
            failed[model],
            warning(twice, "questions were judged more than once"),
        )
    return scores


def _points(winner: str, mine: str) -> float:
    return 0.5 if winner == "tie" else float(winner == mine)
