"""Official scores of existing judgment files: the benchmark's own number, the paper's, and warnings about the files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dpr_core.errors import DensePathError, UsageError
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


@dataclass(frozen=True)
class Kind:
    """A kind of file, known by the fields of its rows."""

    fields: frozenset[str]
    title: str
    formats: tuple[str, ...]
    """Whose `score` reads it."""
    instead: str = ""


KINDS = (
    Kind(frozenset({"g1_winner"}), "MT-Bench's pairwise judgments", ("mt-bench",)),
    Kind(frozenset({"question_id", "model", "score", "turn"}), "MT-Bench judgments", ("mt-bench",)),
    Kind(frozenset({"model", "games"}), "Arena-Hard judgments", ("arena-hard",)),
    Kind(frozenset({"instruction", "preference"}), "AlpacaEval's annotations", ("alpaca-eval", "lima")),
    Kind(frozenset({"candidate_first", "verdict"}), "games of `dpr benchmark judge`", ("lima",)),
    *(
        Kind(
            frozenset(fields), "answers that nobody has judged", (), "`dpr benchmark judge` and `rate` have them judged"
        )
        for fields in ({"choices"}, {"messages"}, {"instruction", "output"})
    ),
)


def check_kind(row: Row, wanted: str, where: str) -> None:
    """UsageError where a file is known to hold something else than what the format's `score` reads."""
    for kind in KINDS:
        if kind.fields <= row.keys():
            if wanted not in kind.formats:
                instead = kind.instead or f"give --format {kind.formats[0]}"
                raise UsageError(f"{where} holds {kind.title}, not judgments of {wanted}; {instead}")
            return


def check_readable(scores: Mapping[str, ModelScore], most: float) -> None:
    """DensePathError for scores that rest on too few of their verdicts."""
    poor = {model: score for model, score in scores.items() if (score.unscored_share or 0) > most}
    if poor:
        named = "; ".join(
            f"{score.unscored} verdicts of {model}, {100 * (score.unscored_share or 0):.1f}%"
            for model, score in poor.items()
        )
        raise DensePathError(
            f"too many verdicts cannot be read: {named}, and --max-unreadable-share={most:g} allows less; have them "
            "judged again, or raise it to see the score all the same"
        )
