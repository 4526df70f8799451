"""Capability check beside the win rates: what a program measures of each policy's answers, paired with the baseline's.

A judge may prefer answers that are worse by what it does not look at: right results, repetition, refusals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dpr_core.evaluation.gold.measures import Measure, Values, differences, shares
from dpr_core.reporting.report import Section, listed, section
from dpr_core.reporting.tables import NONE, Table

FOLDED_FROM = 13
"""So many rows are folded up."""

NAMED = 5
"""Losses of a policy that a warning names; the others are counted."""

EXPLAINED = (
    "What a program measures of the answers, and in points how far that lies above the baseline's on the same prompts; "
    "95% bootstrap intervals over prompts, paired and not adjusted for their number."
)


@dataclass(frozen=True)
class Difference:
    """One measure of a policy's answers to a benchmark, and of the baseline's to the same prompts, from 0 to 1."""

    policy: str
    benchmark: str
    measure: str
    title: str
    prompts: int
    value: float
    baseline: float
    difference: float
    low: float | None
    """Lower end of the 95% bootstrap interval of the difference over prompts; None with fewer than two prompts."""
    high: float | None
    more_is_better: bool

    @property
    def is_loss(self) -> bool:
        """Whether the policy is worse, by an interval that does not hold 0."""
        if self.low is None or self.high is None:
            return False
        return self.high < 0 if self.more_is_better else self.low > 0

    @property
    def points(self) -> str:
        """The difference with its interval."""
        interval = "" if self.low is None or self.high is None else f" [{_signed(self.low)}, {_signed(self.high)}]"
        return f"{_signed(self.difference)}{interval}"


def compared(
    policy: str, benchmark: str, measures: Sequence[Measure], ours: Sequence[Values], theirs: Sequence[Values]
) -> list[Difference]:
    """A policy's answers against the baseline's, by every measure that both have."""
    mine, its, between = shares(measures, ours), shares(measures, theirs), differences(measures, ours, theirs)
    return [
        Difference(
            policy,
            benchmark,
            each.name,
            each.title,
            len(ours),
            mine[each.name],
            its[each.name],
            *between[each.name],
            each.more_is_better,
        )
        for each in measures
        if each.name in between
    ]


def losses(won: Mapping[str, Sequence[str]], found: Iterable[Difference], baseline: str) -> list[str]:
    """A warning for each policy that won on these benchmarks by the judge, and lost elsewhere."""
    lost: dict[str, list[Difference]] = {}
    for each in found:
        if each.policy in won and each.is_loss:
            lost.setdefault(each.policy, []).append(each)
    return [
        f"{policy} wins on {listed(won[policy])} by the judge, but is worse than {baseline} by what a program "
        f"measures: {listed([f'{each.title} {each.points} on {each.benchmark}' for each in worse], NAMED)}."
        for policy, worse in lost.items()
    ]


def capabilities_section(found: Sequence[Difference], baseline: str) -> Section | None:
    """A row for each policy on each benchmark, the baseline's first; None where nothing was measured."""
    if not found:
        return None
    titles = list(dict.fromkeys(each.title for each in found))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for benchmark in dict.fromkeys(each.benchmark for each in found):
        here = [each for each in found if each.benchmark == benchmark]
        rows[baseline, benchmark] = {each.title: f"{100 * each.baseline:.1f}" for each in here}
        for each in here:
            cell = f"{100 * each.value:.1f}, {each.points}"
            rows.setdefault((each.policy, benchmark), {})[each.title] = cell
    several = len({benchmark for _, benchmark in rows}) > 1
    table = Table(
        ["policy", *["benchmark"] * several, *titles],
        [
            [policy, *[benchmark] * several, *(cells.get(title, NONE) for title in titles)]
            for (policy, benchmark), cells in rows.items()
        ],
        1 + several,
    )
    folded = f"All {len(rows)} rows" if len(rows) >= FOLDED_FROM else ""
    return section("Did anything else break?", table, after=[EXPLAINED], folded=folded)


def _signed(share: float) -> str:
    return f"{100 * share:+z.1f}"
