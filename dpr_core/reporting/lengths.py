"""Lengths beside win rates: how long every policy answers, and whether longer answers are those that win."""

from collections.abc import Sequence

import numpy as np

from dpr_core.reporting.charts import Box, ChartPoint, boxes, curves
from dpr_core.reporting.judged import Judged
from dpr_core.reporting.page import Html, element, join
from dpr_core.reporting.section import Section
from dpr_core.reporting.tables import Table
from dpr_core.stats import mean_interval

BINS = 5
"""Points of the second chart."""

FEWEST = 20
"""A point of the second chart stands for at least as many prompts."""


def section(every: Sequence[Judged], baseline: str) -> Section | None:
    """Both charts of every benchmark; the Markdown document has the quantiles in a table. None of nothing."""
    if not every:
        return None
    parts: list[Html] = []
    rows: list[list[str]] = []
    for benchmark in dict.fromkeys(judged.benchmark for judged in every):
        here = [judged for judged in every if judged.benchmark == benchmark]
        spread = {baseline: box([prompt.baseline.tokens for prompt in here[0].prompts])}
        spread |= {judged.policy: box([prompt.candidate.tokens for prompt in judged.prompts]) for judged in here}
        parts.append(boxes(f"Length of the answers to {benchmark}", "tokens", spread))
        lines = {judged.policy: points for judged in here if len(points := by_difference(judged)) > 1}
        if lines:
            label = f"Win rate on {benchmark} by how much longer the answer is"
            x_label = f"tokens more than the answer of {baseline}"
            parts.append(curves(label, x_label, lines, even=50))
        rows += [[name, benchmark, *(f"{value:.1f}" for value in each)] for name, each in spread.items()]
    headings = ["policy", "benchmark", "5%", "25%", "median", "75%", "95%", "mean"]
    explained = (
        "Boxes hold half of the answers and whiskers 90% of them; the bar is the median, the dot the mean. In the "
        f"second chart each point is one of at most {BINS} groups of prompts, by the difference in length, with the "
        "95% bootstrap interval over its prompts."
    )
    return Section(
        "Lengths",
        join(element("p", explained, class_="quiet"), *parts),
        f"{Table(headings, rows, 2).as_markdown()}\n\nTokens of an answer, all turns together: quantiles and mean.",
    )


def box(lengths: Sequence[int]) -> Box:
    """What a box shows of lengths."""
    low, first, median, third, high = (float(q) for q in np.quantile(lengths, [0.05, 0.25, 0.5, 0.75, 0.95]))
    return Box(low, first, median, third, high, float(np.mean(lengths)))


def by_difference(judged: Judged) -> list[ChartPoint]:
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
