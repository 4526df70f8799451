"""Which policies of one report differ: a paired test between every two that were judged against the same baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from dpr_core.reporting.judged import Judged
from dpr_core.reporting.page import Html, element, join
from dpr_core.reporting.section import Section
from dpr_core.reporting.tables import Table
from dpr_core.stats import PairedTest, holm, paired_test


@dataclass(frozen=True)
class ComparedPair:
    """Two policies on one benchmark: the first one's win rate minus the second one's, over the prompts of both."""

    benchmark: str
    first: str
    second: str
    prompts: int
    difference: float
    """In points."""
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    """Adjusted for all comparisons of the report."""


def compare(every: Sequence[Judged]) -> list[ComparedPair]:
    """Every two policies with the same benchmark and the same judge; the baseline of a benchmark is one for all."""
    tested: list[tuple[Judged, Judged, int, PairedTest]] = []
    for one, other in combinations(every, 2):
        if (one.benchmark, one.judge) != (other.benchmark, other.judge):
            continue
        common = [question for question in one.scores if question in other.scores]
        first, second = ([judged.scores[question] for question in common] for judged in (one, other))
        if (test := paired_test(first, second, one.samples, one.seed)) is not None:
            tested.append((one, other, len(common), test))
    adjusted = holm([test.p_value for *_, test in tested])
    return [
        ComparedPair(one.benchmark, one.policy, other.policy, count, t.difference, (t.low, t.high), t.p_value, p_holm)
        for (one, other, count, t), p_holm in zip(tested, adjusted, strict=True)
    ]


def section(pairs: Sequence[ComparedPair]) -> Section | None:
    """The comparisons as a part of the report; None where there is nothing to compare."""
    if not pairs:
        return None
    several = len({pair.benchmark for pair in pairs}) > 1
    rows = [
        [
            *[pair.benchmark] * several,
            f"{pair.first} \u2212 {pair.second}",
            f"{pair.difference:+z.1f} [{pair.interval[0]:+z.1f}, {pair.interval[1]:+z.1f}]",
            p_text(pair.p_value),
            p_text(pair.p_holm),
            str(pair.prompts),
        ]
        for pair in pairs
    ]
    table = Table(["benchmark"] * several + ["policies", "points", "p", "p (Holm)", "prompts"], rows, 1 + several)
    count = len(pairs)
    caption = (
        f"Differences of win rates over the prompts that both policies were judged on. {count} "
        f"{'comparison was' if count == 1 else 'comparisons were'} made; the last p is adjusted for all of them by "
        "Holm's method. p is that of flipping the signs of the prompts' differences; brackets are 95% bootstrap "
        "intervals over prompts, not adjusted."
    )
    shown: Html = table.as_html()
    if count > 6:
        shown = element("details", element("summary", f"All {count} comparisons"), shown)
    return Section(
        "Differences between policies",
        join(element("p", caption, class_="quiet"), shown),
        f"{table.as_markdown()}\n\n{caption}",
    )


def p_text(p: float) -> str:
    """A p-value with as many digits as are of use."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
