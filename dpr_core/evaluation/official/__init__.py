"""Official scores of existing judgment files: the benchmark's own number, the paper's, and warnings about the files."""

from collections.abc import Callable, Mapping

from dpr_core.evaluation.official import alpaca_eval, arena_hard, lima, mt_bench
from dpr_core.evaluation.official.score import ModelScore
from dpr_core.evaluation.rows import Row

Score = Callable[[list[Row], list[Row], list[Row]], dict[str, ModelScore]]

FORMATS: Mapping[str, Score] = {
    "mt-bench": mt_bench.score,
    "arena-hard": arena_hard.score,
    "alpaca-eval": alpaca_eval.score,
    "lima": lima.score,
}
"""Judgments, answers and questions (the latter two may be empty) -> the score of every judged model."""
