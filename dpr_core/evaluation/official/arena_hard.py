"""Arena-Hard: two games a question against one baseline, with the places swapped, and five labels.

Official v0.1: a Bradley-Terry model in which `>>` counts three times. With one baseline its win rate is the weighted
share of wins, ties 0.5. A game without a label is left out.
Official v2.0: the mean of the same weighted outcomes, where a question with one unreadable game is left out whole.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import numpy as np

from dpr_core.errors import UsageError
from dpr_core.evaluation.official.layouts import LAYOUTS, Answers, arena_question
from dpr_core.evaluation.official.score import (
    RESAMPLES,
    SEED,
    UNCOMPARED,
    ModelScore,
    in_categories,
    interval,
    shows,
    warning,
)
from dpr_core.evaluation.rows import Row, check, need, unique

WEIGHT = 3
LABEL = re.compile(r"\[([AB<>=]+)\]")
"""In double brackets, or in single ones, which the newer script takes as well."""

PROMPTS = {"arena-hard-v0.1": 500, "hard_prompt": 500, "creative_writing": 250}
"""By category; files of the older schema name none, and have 500."""

Outcome = tuple[float, int]
"""Points and weight."""

LABELS: dict[str, Outcome] = {
    "A>>B": (1.0, WEIGHT),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, WEIGHT),
}
"""The outcome for the answer that is shown first."""

SPELLED_BACKWARDS = {"A<B": "B>A", "A<<B": "B>>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}
"""Labels that only the newer script understands."""


def score(judgments: list[Row], answers: list[Row], questions: list[Row]) -> dict[str, ModelScore]:
    need(judgments, ("model", "games"), "Arena-Hard judgments")
    check(judgments, "Arena-Hard judgments", model=str, baseline=str, category=str)
    asked = {name: arena_question(row).prompt for name, row in unique(questions, _id, "question").items()}
    given = LAYOUTS["arena-hard"].answers(answers)
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in judgments:
        _id(row)
        by_model[row["model"]].append(row)
    return {model: _score_model(model, rows, given, asked) for model, rows in sorted(by_model.items())}


def _score_model(model: str, rows: list[Row], answers: dict[str, Answers], questions: dict[Any, str]) -> ModelScore:
    games = [(row, [_outcome(game, place) for place, game in enumerate(_games(row))]) for row in rows]
    old = [
        _expanded(outcome)
        for row, pair in games
        for outcome, game in zip(pair, _games(row), strict=True)
        if outcome and _label(game) in LABELS
    ]
    whole = [(row, pair) for row, pair in games if len(pair) == 2 and all(pair)]
    new = [_expanded(outcome) for _, pair in whole for outcome in pair if outcome]
    prompts: dict[Any, list[float]] = defaultdict(list)
    for row, pair in games:
        prompts[_id(row)] += [points for points, _ in filter(None, pair)]
    by_prompt = {name: [fmean(points)] for name, points in prompts.items() if points}
    means = [value for (value,) in by_prompt.values()]
    unscored = sum(outcome is None for _, pair in games for outcome in pair)
    official: dict[str, Any] = {
        "score_v0.1": _percent(old),
        "ci": _bootstrap(old, 0.025),
        "score_v2.0": _percent(new),
        "ci_v2.0": _bootstrap(new, 0.05),
    }
    if len({row.get("category") for row in rows}) > 1:
        official["categories_v2.0"] = _by_category(whole)
    decided = [(place, outcome) for _, pair in games for place, outcome in enumerate(pair) if outcome]
    firsts = [points if place else 1 - points for place, (points, _) in decided if points != 0.5]
    both = [[points for points, _ in filter(None, pair)] for _, pair in whole]
    paper = {
        "win_rate": 100 * fmean(means) if means else None,
        "interval": interval(means, 100),
        "contradiction_rate": fmean(a != b for a, b in both) if both else None,
        "first_position_rate": fmean(firsts) if firsts else None,
        **in_categories(by_prompt, {_id(row): row.get("category", "") for row in rows}, 100),
    }
    warnings = _warnings(rows, questions) + _join_warnings(model, rows, answers, questions)
    return ModelScore(
        official, paper, len(prompts), unscored, warnings, unscored / (sum(len(pair) for _, pair in games) or 1)
    )


def battles(rows: Iterable[Row]) -> list[tuple[str, str, float]]:
    """Model, question and outcome of what v2.0 counts, the second game of a question first, as its script has it."""
    found = []
    for row in rows:
        pair = [_outcome(game, place) for place, game in enumerate(_games(row))]
        if len(pair) == 2 and all(pair):
            weighted = [value for outcome in reversed(pair) if outcome for value in _expanded(outcome)]
            found += [(row["model"], _id(row), value) for value in weighted]
    return found


def _games(row: Row) -> list[Row | None]:
    games = row["games"]
    if not isinstance(games, list) or not all(game is None or _is_game(game) for game in games):
        raise UsageError(f"question {_id(row)}: `games` must be a list of two games")
    return games


def _is_game(game: object) -> bool:
    return isinstance(game, dict) and isinstance(game.get("score"), str | None)


def _outcome(game: Row | None, place: int) -> Outcome | None:
    """For the judged model, which is shown second in the first game and first in the second one."""
    label = str(_label(game))
    verdict = LABELS.get(SPELLED_BACKWARDS.get(label, label))
    if verdict is None:
        return None
    points, weight = verdict
    return (points if place else 1 - points), weight


def _expanded(outcome: Outcome) -> list[float]:
    points, weight = outcome
    return [points] * weight


def _percent(outcomes: list[list[float]]) -> float | None:
    values = [value for repeated in outcomes for value in repeated]
    return 100 * fmean(values) if values else None


def _bootstrap(outcomes: list[list[float]], tail: float) -> list[float] | None:
    """As the official scripts do, over outcomes rather than over questions; only how often each is drawn matters."""
    times = Counter(value for repeated in outcomes for value in repeated)
    count = times.total()
    if count < 2:
        return None
    drawn = np.random.default_rng(SEED).multinomial(count, np.array(list(times.values())) / count, RESAMPLES)
    low, high = np.quantile(drawn @ np.array(list(times)) / count, [tail, 1 - tail])
    return [100 * float(low), 100 * float(high)]


def _by_category(whole: list[tuple[Row, list[Outcome | None]]]) -> dict[str, float | None]:
    outcomes: dict[str, list[list[float]]] = defaultdict(list)
    for row, pair in whole:
        outcomes[str(row.get("category"))] += [_expanded(outcome) for outcome in pair if outcome]
    return {category: _percent(values) for category, values in sorted(outcomes.items())}


def _warnings(rows: list[Row], questions: dict[Any, str]) -> list[str]:
    times = Counter(_id(row) for row in rows)
    baselines = sorted({row["baseline"] for row in rows if "baseline" in row})
    judges = sorted({str(row["judge"]) for row in rows if "judge" in row})
    found = warning(
        (name for name, count in times.items() if count > 1),
        "questions were judged more than once; the official score counts every row",
    )
    found += warning(_where(rows, lambda game: game is None), "games failed")
    found += warning(
        _where(rows, lambda game: game is not None and game.get("score") is None), "verdicts could not be read"
    )
    found += warning(
        _where(rows, lambda game: _label(game) is not None and _label(game) not in {*LABELS, *SPELLED_BACKWARDS}),
        "labels are unknown and count as unreadable",
    )
    found += warning(
        _where(rows, lambda game: _label(game) is not None and _label(game) not in _written(game)),
        "labels are not in the judge's text",
    )
    found += warning((_id(row) for row in rows if len(row["games"]) != 2), "questions do not have two games")
    if len(baselines) > 1:
        found.append(f"{len(baselines)} baselines are mixed in one score ({', '.join(baselines)})")
    if len(judges) > 1:
        found.append(f"{len(judges)} judges are mixed in one score ({', '.join(judges)})")
    if questions and len(times.keys() & questions.keys()) < len(questions):
        found.append(f"{len(times.keys() & questions.keys())} of {len(questions)} questions were judged")
    elif not questions and len(times) < (expected := _expected(rows)):
        found.append(f"{len(times)} of {expected} questions were judged")
    return found


def _expected(rows: list[Row]) -> int:
    """How many questions there should be in all the categories that are there."""
    return sum(PROMPTS.get(category, 0) for category in {row.get("category", "arena-hard-v0.1") for row in rows})


def _join_warnings(model: str, rows: list[Row], answers: dict[str, Answers], questions: dict[Any, str]) -> list[str]:
    found = []
    if (questions or answers) and not any(_prompt(game) for row in rows for game in _games(row) if game is not None):
        found.append(UNCOMPARED)
    if questions:
        found += warning((_id(r) for r in rows if _id(r) not in questions), "judgments are of unknown questions")
        found += warning(
            (_id(r) for r in rows if _id(r) in questions and not _shown(r, questions[_id(r)])),
            "judgments show another question than the one of their id",
        )
    mine = {question: turns[0] for question, turns in answers.get(model, {}).items()}
    if answers and not mine:
        others = ", ".join(sorted(answers))
        found.append(f"the answers given are not this model's but those of {others}; nothing was compared")
    elif answers:
        found += warning(
            (_id(r) for r in rows if not _shown(r, mine.get(_id(r), "\0"))),
            "judgments are of answers that are no longer the current ones",
        )
        found += warning((q for q, text in mine.items() if not text.strip()), "answers are empty")
    return found


def _where(rows: list[Row], wrong: Any) -> Iterable[str]:
    return (f"{_id(row)} game {i}" for row in rows for i, game in enumerate(_games(row), start=1) if wrong(game))


def _label(game: Row | None) -> str | None:
    return None if game is None else game.get("score")


def _written(game: Row | None) -> set[str]:
    """The labels in the judge's text; all of them where the text is not in the file."""
    judgment = None if game is None else game.get("judgment")
    text = judgment.get("answer") if isinstance(judgment, dict) else judgment
    return set(LABEL.findall(text.upper())) if isinstance(text, str) else {*LABELS, *SPELLED_BACKWARDS}


def _shown(row: Row, text: str) -> bool:
    """Whether every game that says what the judge was shown shows this text."""
    prompts = [_prompt(game) for game in _games(row) if game is not None]
    return all(shows(prompt, text) for prompt in prompts if prompt is not None)


def _prompt(game: Row) -> str | None:
    if "user_prompt" in game:
        return str(game["user_prompt"])
    messages = game.get("prompt")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return str(last["content"]) if isinstance(last, dict) and "content" in last else None


def _id(row: Row) -> str:
    for name in ("uid", "question_id"):
        if name in row:
            return str(row[name])
    raise UsageError(
        f"these are not Arena-Hard rows: one has neither uid nor question_id ({', '.join(sorted(row)[:8])})"
    )
