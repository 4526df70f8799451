"""Scores from existing judgment files in the benchmarks' own formats: the official numbers, the paper's, and what is
wrong in the files."""

from collections.abc import Callable, Mapping

from dpr_core.evaluation.official import alpaca_eval, arena_hard, lima, mt_bench
from dpr_core.evaluation.official.files import Row
from dpr_core.evaluation.official.score import ModelScore

Score = Callable[[list[Row], list[Row], list[Row]], dict[str, ModelScore]]

FORMATS: Mapping[str, Score] = {
    "mt-bench": mt_bench.score,
    "arena-hard": arena_hard.score,
    "alpaca-eval": alpaca_eval.score,
    "lima": lima.score,
}
"""Judgments, answers and questions (the latter two may be empty) -> the score of every judged model."""
