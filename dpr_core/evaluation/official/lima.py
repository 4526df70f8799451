"""LIMA's 300 prompts have no official script: pairwise annotations in AlpacaEval's layout, or this project's games."""

from collections import defaultdict
from statistics import fmean

from dpr_core.errors import UsageError
from dpr_core.evaluation.official import alpaca_eval
from dpr_core.evaluation.official.score import ModelScore, interval, warning
from dpr_core.evaluation.rows import Row, need

PROMPTS = 300
CANDIDATE = "candidate"


def score(judgments: list[Row], answers: list[Row], questions: list[Row]) -> dict[str, ModelScore]:
    if "preference" not in judgments[0]:
        return {CANDIDATE: _score_games(judgments)}
    scores = alpaca_eval.score(judgments, answers, questions)
    for each in scores.values():
        each.official = {}
        each.warnings = [line.replace(f"of {alpaca_eval.EXAMPLES} ", f"of {PROMPTS} ") for line in each.warnings]
    return scores


def _score_games(games: list[Row]) -> ModelScore:
    what = "LIMA judgments (annotations or games.jsonl)"
    need(games, ("question_id", "candidate_first", "score"), what)
    for number, game in enumerate(games, start=1):
        if not isinstance(game["question_id"], str) or not isinstance(game["candidate_first"], bool):
            raise UsageError(f"these are not {what}: row {number} is not a game of this project")
        if game["score"] not in (None, 0, 0.5, 1):
            raise UsageError(f"these are not {what}: `score` of row {number} is none of 0, 0.5, 1 and null")
    orders: dict[str, list[bool]] = defaultdict(list)
    points: dict[str, list[float]] = defaultdict(list)
    for game in games:
        orders[game["question_id"]].append(game["candidate_first"])
        if game["score"] is not None:
            points[game["question_id"]].append(float(game["score"]))
    prompts = [fmean(values) for values in points.values()]
    found = warning((q for q, seen in orders.items() if sorted(seen) != [False, True]), "prompts lack one of two games")
    found += warning((g["question_id"] for g in games if g["score"] is None), "prompts have unreadable verdicts")
    if len(orders) < PROMPTS:
        found.append(f"{len(orders)} of {PROMPTS} prompts were judged")
    paper = {"win_rate": 100 * fmean(prompts) if prompts else None, "interval": interval(prompts, 100)}
    unscored = sum(game["score"] is None for game in games)
    return ModelScore({}, paper, len(orders), unscored, found, unscored / len(games))
