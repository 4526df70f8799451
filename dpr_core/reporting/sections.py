"""Sections of a win-rate report: paired tests, response lengths, ratings from 1 to 10, links to the artifacts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from markupsafe import Markup

from dpr_core.evaluation.categories import CategoryScore
from dpr_core.evaluation.rate import Ratings
from dpr_core.reporting.judgments import JudgedAnswers
from dpr_core.reporting.page import render
from dpr_core.reporting.plots import BoxStats, ChartPoint, boxes, curves
from dpr_core.reporting.report import Section, section
from dpr_core.reporting.tables import NONE, Table, escaped
from dpr_core.stats import PairedTest, holm, mean_interval, paired_test

BINS = 5
"""Points of the chart of win rates by length."""

FEWEST = 20
"""Each of these points stands for at least as many prompts."""

JOINED_FROM = 3
"""So many of them are joined by a line: through two there is no trend to be seen."""

FOLDED_FROM = 7
"""So many comparisons are folded up."""

ID_LENGTH = 8
"""Characters of an ID that tell it from others."""


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


def compare_policies(every: Sequence[JudgedAnswers]) -> list[ComparedPair]:
    """Every two policies with the same benchmark and the same judge; the baseline of a benchmark is one for all."""
    tested: list[tuple[JudgedAnswers, JudgedAnswers, int, PairedTest]] = []
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


def paired_tests_section(pairs: Sequence[ComparedPair]) -> Section | None:
    """Which policies differ; None where there is nothing to compare."""
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
    folded = f"All {count} comparisons" if count >= FOLDED_FROM else ""
    return section("Differences between policies", table, before=[caption], folded=folded)


def p_text(p: float) -> str:
    """A p-value with as many digits as are of use."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def lengths_section(every: Sequence[JudgedAnswers], baseline: str) -> Section | None:
    """Both charts of every benchmark; the Markdown document has the quantiles in a table. None of nothing."""
    if not every:
        return None
    charts: list[tuple[str, Markup]] = []
    rows: list[list[str]] = []
    grouped = joined = False
    for benchmark in dict.fromkeys(judged.benchmark for judged in every):
        here = [judged for judged in every if judged.benchmark == benchmark]
        spread = {baseline: box([prompt.baseline.tokens for prompt in here[0].prompts])}
        spread |= {judged.policy: box([prompt.candidate.tokens for prompt in judged.prompts]) for judged in here}
        label = f"Length of the answers to {benchmark}"
        charts.append((label, boxes(label, "tokens", spread)))
        lines = {judged.policy: points for judged in here if len(points := win_rate_by_length(judged)) > 1}
        if lines:
            grouped, joined = True, joined or any(len(points) >= JOINED_FROM for points in lines.values())
            label = f"Win rate on {benchmark} by how much longer the answer is"
            x_label = f"tokens more than the answer of {baseline}"
            charts.append((label, curves(label, x_label, lines, even=50, joined_from=JOINED_FROM)))
        rows += [[name, benchmark, *(f"{value:.1f}" for value in each)] for name, each in spread.items()]
    headings = ["policy", "benchmark", "5%", "25%", "median", "75%", "95%", "mean"]
    explained = "Boxes hold half of the answers, whiskers 90%; the bar is the median, the dot and the number the mean."
    if grouped:
        explained += (
            f" Where win rates stand over the difference in length, each point is one of at most {BINS} groups of "
            "prompts with similar differences, with the 95% bootstrap interval over its prompts"
            f"{f'; lines join {JOINED_FROM} groups or more' if joined else ''}."
        )
    return Section(
        "Lengths",
        render("charts.html", explained=explained, charts=charts),
        f"{Table(headings, rows, 2).as_markdown()}\n\nTokens of an answer, all turns together: quantiles and mean.",
    )


def box(lengths: Sequence[int]) -> BoxStats:
    """What a box shows of lengths."""
    low, first, median, third, high = (float(q) for q in np.quantile(lengths, [0.05, 0.25, 0.5, 0.75, 0.95]))
    return BoxStats(low, first, median, third, high, float(np.mean(lengths)))


def win_rate_by_length(judged: JudgedAnswers) -> list[ChartPoint]:
    """Mean score, in percent, of groups of prompts with similar differences in length, none of them small.

    Prompts of one difference stay together.
    """
    pairs = sorted((prompt.candidate.tokens - prompt.baseline.tokens, score) for prompt, score in judged.scored)
    size = max(FEWEST, -(-len(pairs) // BINS))
    groups: list[list[tuple[int, float]]] = []
    for pair in pairs:
        if groups and (len(groups[-1]) < size or groups[-1][-1][0] == pair[0]):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    points = []
    for group in groups:
        scores = [score for _, score in group]
        interval = mean_interval(scores, judged.samples, judged.seed)
        if interval is not None and len(group) >= FEWEST:
            x = sum(difference for difference, _ in group) / len(group)
            points.append(ChartPoint(x, 100 * sum(scores) / len(scores), 100 * interval[0], 100 * interval[1]))
    return points


@dataclass(frozen=True)
class RatedAnswers:
    """The ratings of one policy's answers to one benchmark."""

    policy: str
    benchmark: str
    judge: str
    ratings: Ratings
    complaints: tuple[str, ...] = ()
    """What its canary says against the rater."""


def ratings_table(rated: Iterable[RatedAnswers]) -> Table:
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


def ratings_section(rated: Iterable[RatedAnswers]) -> Section | None:
    """The ratings, which are no win rates, and what is wrong with a rater; None where nothing was rated."""
    rows = list(rated)
    if not rows:
        return None
    warnings = [f"{row.policy} on {row.benchmark}: {line}" for row in rows for line in row.complaints]
    return section("Ratings", ratings_table(rows), after=[ratings_caption(rows), *warnings])


def ratings_caption(rows: Iterable[RatedAnswers]) -> str:
    """What the numbers are, and the brackets, where there are any."""
    caption = "Single answers rated from 1 to 10, unreadable ratings left out."
    if any(row.ratings.low is not None for row in rows):
        caption += " Brackets: 95% bootstrap interval over questions, all ratings of a question together."
    return caption


def _average(ratings: Ratings) -> str:
    if ratings.average is None or ratings.low is None or ratings.high is None:
        return _rating(ratings.average)
    return f"{ratings.average:.2f} [{ratings.low:.2f}, {ratings.high:.2f}]"


def _rating(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def categories_section(judged: Sequence[JudgedAnswers], rated: Sequence[RatedAnswers]) -> Section | None:
    """Win rates and ratings by category; None where no benchmark has several."""
    rates = {(each.benchmark, name, each.policy): score for each in judged for name, score in each.by_category.items()}
    ratings = {
        (each.benchmark, name, each.policy): score for each in rated for name, score in each.ratings.by_category.items()
    }
    rows = [(key, rates.get(key), ratings.get(key)) for key in sorted(rates.keys() | ratings.keys())]
    if not rows:
        return None
    table = Table(
        ["benchmark", "category", "policy", "win rate %", "rating", "prompts"],
        [
            [
                *key,
                _in_category(rate, 1),
                _in_category(rating, 2),
                *(str(score["prompts"]) for score in [rate or rating] if score),
            ]
            for key, rate, rating in rows
        ],
        texts=3,
    )
    caption = "Brackets: 95% bootstrap intervals over the prompts of a category, which are few in most."
    return section("Categories", table, after=[caption], folded=f"All {len(rows)} rows" if len(rows) > 8 else "")


def _in_category(score: CategoryScore | None, digits: int) -> str:
    if score is None:
        return NONE
    interval = "" if score["low"] is None else f" [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"
    return f"{score['mean']:.{digits}f}{interval}"


Address = Callable[[str], str | None]
"""Where an artifact is shown, by its ID; None where no server is known."""


@dataclass(frozen=True)
class ArtifactLinks:
    """The artifacts behind one row of a report."""

    policy: str
    benchmark: str
    artifacts: Mapping[str, str]
    """IDs, by what they are of the row: its policy, its answers, its judgment."""


class ArtifactLink(NamedTuple):
    run_id: str
    short: str
    command: str
    url: str | None


def links_section(rows: Sequence[ArtifactLinks], address: Address) -> Section:
    """The artifacts behind each row of the report: by command, and on the MLflow server where there is one."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.artifacts))
    links = [[_link(row.artifacts[kind], address) if kind in row.artifacts else None for kind in kinds] for row in rows]
    html = render("links.html", kinds=kinds, rows=list(zip(rows, links, strict=True)))
    commands = [
        [row.policy, row.benchmark, *("" if link is None else link.command for link in each)]
        for row, each in zip(rows, links, strict=True)
    ]
    texts = Table(["policy", "benchmark", *kinds], commands, texts=2 + len(kinds)).as_markdown()
    urls = [
        f"- [{escaped(f'{kind} of {row.policy} on {row.benchmark}')}](<{link.url}>)"
        for row, each in zip(rows, links, strict=True)
        for kind, link in zip(kinds, each, strict=True)
        if link is not None and link.url is not None
    ]
    return Section("Artifacts", html, "\n".join([texts, "", *urls]).rstrip())


def _link(run_id: str, address: Address) -> ArtifactLink:
    short = run_id[:ID_LENGTH]
    return ArtifactLink(run_id, short, f"dpr show {short}", web_address(address(run_id)))


def web_address(url: str | None) -> str | None:
    """An address that a page may link to: of the web, and without a name or password."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    safe = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return None if any(sign in safe for sign in "<>\"' \n\r") else safe
