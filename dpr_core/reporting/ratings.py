"""Ratings from 1 to 10 in the report: a table of their own, since they are no win rates."""

from collections.abc import Iterable
from dataclasses import dataclass

from dpr_core.evaluation.rating.results import Ratings
from dpr_core.reporting.page import element, join
from dpr_core.reporting.section import Section
from dpr_core.reporting.tables import NONE, Table, escaped
from dpr_core.text import escape_control

CAPTION = (
    "Single answers rated from 1 to 10, unreadable ratings left out. Brackets: 95% bootstrap interval over questions, "
    "all ratings of a question together."
)


@dataclass(frozen=True)
class Rated:
    """The ratings of one policy's answers to one benchmark."""

    policy: str
    benchmark: str
    judge: str
    ratings: Ratings
    complaints: tuple[str, ...] = ()
    """What its canary says against the rater."""


def table(rated: Iterable[Rated]) -> Table:
    """A row for each; the median where anybody was rated several times."""
    rows = list(rated)
    several = any(row.ratings.judgings > 1 for row in rows)
    headings = ["policy", "benchmark", "rated by", "turn 1", "turn 2", "average"]
    headings += ["median of judgings"] if several else []
    return Table(
        [*headings, "unreadable", "questions"],
        [
            [
                row.policy,
                row.benchmark,
                row.judge,
                _rating(row.ratings.turn1),
                _rating(row.ratings.turn2),
                _average(row.ratings),
                *([_rating(row.ratings.median_of_judgings)] if several else []),
                f"{row.ratings.unscored} of {row.ratings.n}",
                str(row.ratings.questions),
            ]
            for row in rows
        ],
        texts=3,
    )


def section(rated: Iterable[Rated]) -> Section | None:
    """The table with what it shows, and what is wrong with a rater; None where nothing was rated."""
    rows = list(rated)
    if not rows:
        return None
    shown = table(rows)
    lines = [CAPTION, *(f"{row.policy} on {row.benchmark}: {line}" for row in rows for line in row.complaints)]
    return Section(
        "Ratings",
        join(shown.as_html(), *(element("p", escape_control(line), class_="quiet") for line in lines)),
        "\n\n".join([shown.as_markdown(), *map(escaped, lines)]),
    )


def _average(ratings: Ratings) -> str:
    if ratings.average is None or ratings.low is None or ratings.high is None:
        return _rating(ratings.average)
    return f"{ratings.average:.2f} [{ratings.low:.2f}, {ratings.high:.2f}]"


def _rating(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
