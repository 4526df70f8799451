"""AlpacaEval's annotations: one preference between 1 (output_1, the reference) and 2 (output_2, the model) a row.

Official: 100 times the mean of preference - 1; a draw is 1.5 (0 in older files); rows without a preference leave the
denominator.
"""

import math
from collections import Counter, defaultdict
from statistics import fmean, stdev
from typing import Any

from dpr_core.evaluation.official.score import ModelScore, in_categories, interval, warning
from dpr_core.evaluation.rows import Row, check, need, unique

EXAMPLES = 805
DRAW = 1.5


def score(judgments: list[Row], answers: list[Row], questions: list[Row]) -> dict[str, ModelScore]:
    need(judgments, ("instruction", "generator_2", "preference"), "AlpacaEval annotations")
    check(judgments, "AlpacaEval annotations", instruction=str, generator_2=str)
    need(answers, ("instruction", "output", "generator"), "AlpacaEval outputs")
    check(answers, "AlpacaEval outputs", instruction=str, generator=str)
    need(questions, ("instruction",), "AlpacaEval instructions")
    check(questions, "AlpacaEval instructions", instruction=str)
    asked = unique(questions, lambda row: row["instruction"], "instruction")
    given = unique(answers, lambda row: (row["generator"], row["instruction"]), "output")
    by_model: dict[str, list[Row]] = defaultdict(list)
    for row in judgments:
        by_model[row["generator_2"]].append(row)
    return {model: _score_model(model, rows, given, asked) for model, rows in sorted(by_model.items())}


def _score_model(model: str, rows: list[Row], answers: dict[Any, Row], questions: dict[Any, Row]) -> ModelScore:
    preferences = [value for row in rows if (value := preference(row)) is not None]
    wins = [value - 1 for value in preferences]
    discrete = [_rounded(value) - 1 for value in preferences]
    by_instruction: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (value := preference(row)) is not None:
            by_instruction[row["instruction"]].append(_rounded(value) - 1)
    official = {
        "win_rate": 100 * fmean(wins) if wins else None,
        "standard_error": 100 * stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else None,
        "discrete_win_rate": 100 * fmean(discrete) if discrete else None,
        "n_wins": sum(win > 0.5 for win in wins),
        "n_wins_base": sum(win < 0.5 for win in wins),
        "n_draws": sum(win == 0.5 for win in wins),
        "n_total": len(wins),
    }
    by_prompt = {text: [fmean(values)] for text, values in by_instruction.items()}
    prompts = [value for (value,) in by_prompt.values()]
    paper = {
        "win_rate": 100 * fmean(prompts) if prompts else None,
        "interval": interval(prompts, 100),
        "characters": _mean_length(rows, "output_2"),
        "baseline_characters": _mean_length(rows, "output_1"),
        **in_categories(by_prompt, {row["instruction"]: str(row.get("dataset", "")) for row in rows}, 100),
    }
    warnings = _warnings(model, rows, answers, questions)
    return ModelScore(official, paper, len(rows), len(rows) - len(preferences), warnings)


def preference(row: Row) -> float | None:
    """Between 1 and 2, or None where there is none. An older file's 0 is a draw."""
    try:
        value = float(row["preference"])
    except (TypeError, ValueError, OverflowError):
        return None
    if value == 0:
        return DRAW
    return value if 1 <= value <= 2 else None


def _rounded(value: float) -> float:
    """The winner alone; only an exact 1.5 is a draw."""
    return value if value == DRAW else float(round(value))


def _mean_length(rows: list[Row], name: str) -> float | None:
    lengths = [len(row[name]) for row in rows if isinstance(row.get(name), str)]
    return fmean(lengths) if lengths else None


def _warnings(model: str, rows: list[Row], answers: dict[Any, Row], questions: dict[Any, Row]) -> list[str]:
    times = Counter(row["instruction"] for row in rows)
    expected = len(questions) or EXAMPLES
    baselines = sorted({str(row["generator_1"]) for row in rows if "generator_1" in row})
    annotators = sorted({str(row["annotator"]) for row in rows if "annotator" in row})
    found = warning(
        (_short(text) for text, count in times.items() if count > 1),
        "instructions were judged more than once; the official mean counts every row",
    )
    found += warning((_short(r["instruction"]) for r in rows if preference(r) is None), "rows have no valid preference")
    found += warning((_short(r["instruction"]) for r in rows if _is_empty(r, "output_2")), "answers are empty")
    found += warning(
        (_short(r["instruction"]) for r in rows if _is_empty(r, "output_1")), "answers of the baseline are empty"
    )
    if len(baselines) > 1:
        found.append(f"{len(baselines)} baselines are mixed in one mean ({', '.join(baselines)})")
    if len(annotators) > 1:
        found.append(f"{len(annotators)} annotators are mixed in one mean ({', '.join(annotators)})")
    if questions:
        found += warning(
            (_short(text) for text in times if text not in questions), "judgments are of unknown instructions"
        )
    covered = len(times.keys() & questions.keys()) if questions else len(times)
    if covered < expected:
        found.append(f"{covered} of {expected} instructions were judged")
    mine = {text: row["output"] for (name, text), row in answers.items() if name == model}
    if answers and not mine:
        others = sorted({name for name, _ in answers})
        found.append(f"the outputs given are not this model's but those of {', '.join(others)}; nothing was compared")
    elif answers:
        found += warning(
            (_short(row["instruction"]) for row in rows if mine.get(row["instruction"]) != row.get("output_2")),
            "judgments are of answers that are no longer the current ones",
        )
    return found


def _is_empty(row: Row, name: str) -> bool:
    return name in row and not str(row[name] or "").strip()


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
