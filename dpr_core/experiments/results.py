"""Results of an experiment as Markdown, as a page and for a terminal: verdicts on its claims, table and plots."""

import base64
from collections.abc import Mapping, Sequence
from typing import get_args

from rich.table import Table as TerminalTable

from dpr_core.config.reinforce import extrapolation
from dpr_core.experiments.effect_claims import ClaimOutcome, ClaimVerdict
from dpr_core.experiments.exhibits import TRAINED, Exhibit
from dpr_core.experiments.observations import (
    ACCURACY,
    BASELINE,
    CUT,
    KL,
    REFUSALS,
    REPETITION,
    TOKENS,
    WIN_RATE,
    Observation,
    Quantity,
    cells,
    estimate,
    estimate_of,
    swept,
)
from dpr_core.experiments.points import short_names
from dpr_core.reporting.page import asset, page
from dpr_core.reporting.tables import NONE, Table, escaped

BESIDE = (TOKENS, CUT, REPETITION, REFUSALS, KL)
"""Shown as means without intervals."""

STOPPED = "guard/stopped_at_iteration"

CAPTION = (
    "Means over seeds; brackets are 95% intervals over seeds by Student's t. The win rate is against SFT of the same "
    "seed, both orders, ties 0.5. Stopped: seeds in which the guard ended the training."
)

DECIDED = (
    "A verdict follows the p-value of the paired t test over seeds, adjusted by Holm for the claims of this exhibit. "
)


def as_markdown(
    title: str,
    exhibit: Exhibit,
    observations: Sequence[Observation],
    verdicts: Sequence[ClaimVerdict],
    plots: Mapping[str, str],
    missing: Sequence[str] = (),
) -> str:
    """One section. `plots` maps a caption to a file beside the document; `missing` names points without a report."""
    parts = [f"## {escaped(title)}", f"{escaped(exhibit.runs)} {escaped(extent(observations))}"]
    if missing:
        parts.append(escaped(lacking(missing)))
    if verdicts:
        parts.append(claims_table(verdicts).as_markdown())
        parts += [f"- {escaped(best)}" for best in best_values(exhibit, observations)]
    parts += [table(exhibit, observations).as_markdown(), escaped(caption(verdicts))]
    parts += [f"![{escaped(caption)}]({file})" for caption, file in plots.items()]
    return "\n\n".join(parts) + "\n"


def as_html(
    title: str,
    exhibit: Exhibit,
    observations: Sequence[Observation],
    verdicts: Sequence[ClaimVerdict],
    plots: Mapping[str, bytes],
    missing: Sequence[str] = (),
) -> str:
    """One self-contained page. `plots` maps a caption to the bytes of a PNG file."""
    return page(
        "results.html",
        title,
        style=asset("report.css"),
        images=bool(plots),
        introduction=f"{exhibit.runs} {extent(observations)}",
        missing=lacking(missing) if missing else "",
        claims=claims_table(verdicts) if verdicts else None,
        best=best_values(exhibit, observations),
        table=table(exhibit, observations),
        caption=caption(verdicts),
        plots={caption: base64.b64encode(png).decode() for caption, png in plots.items()},
    )


def caption(verdicts: Sequence[ClaimVerdict]) -> str:
    """How the tables are to be read."""
    return DECIDED + CAPTION if verdicts else CAPTION


def as_terminal(title: str, verdicts: Sequence[ClaimVerdict]) -> TerminalTable:
    """The verdicts for a terminal."""
    return claims_table(verdicts, beside=False).as_terminal(title)


def claims_table(verdicts: Sequence[ClaimVerdict], beside: bool = True) -> Table:
    """One row for each claim; `beside` adds who claims it, the adjusted p-value and the effect in accuracy."""
    headings = ["claim", "verdict", "effect", "95% interval", "seeds", "unit"]
    rows = []
    for each in verdicts:
        digits = 1 if each.unit in (WIN_RATE.unit, TOKENS.unit) else 4
        effect = NONE if each.effect is None else f"{each.effect:+z.{digits}f}"
        unit = each.unit if each.margin is None else f"{each.unit}, within {each.margin:g}"
        row = [each.claim, each.verdict, effect, _interval(each.interval, digits), str(each.seeds), unit]
        if beside:
            accuracy = NONE if each.accuracy_effect is None else f"{each.accuracy_effect:+z.1f}"
            if each.accuracy_interval is not None:
                accuracy += f" {_interval(each.accuracy_interval, 1)}"
            row[4:4] = [p_text(each.adjusted)]
            row[1:1] = [each.by]
            row.append(accuracy)
        rows.append(row)
    if beside:
        headings[4:4] = ["p, Holm"]
        headings[1:1] = ["claimed by"]
        headings.append("effect on accuracy")
    return Table(headings, rows, texts=3 if beside else 2)


def p_text(value: float | None) -> str:
    """A p-value; of a tiny one, that it is."""
    return NONE if value is None else "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def summary(verdicts: Sequence[ClaimVerdict]) -> str:
    """How many claims came to which verdict, the paper's and the project's own apart."""
    sentences = []
    for by, whose in (("paper", "the paper's"), ("project", "the project's own")):
        found = [each.verdict for each in verdicts if each.by == by]
        counts = [f"{found.count(kind)} {kind}" for kind in get_args(ClaimOutcome) if kind in found]
        if found:
            sentences.append(f"Of {whose} {len(found)} claims: {', '.join(counts)}.")
    return " ".join(sentences)


def table(exhibit: Exhibit, observations: Sequence[Observation]) -> Table:
    """One row for each policy in each combination of the fields, averaged over seeds."""
    fields = short_names(swept(observations))
    several = len({each.benchmark for each in observations}) > 1
    kinds = dict.fromkeys((WIN_RATE, ACCURACY, *BESIDE, *exhibit.shows))
    shown = [quantity for quantity in kinds if any(quantity.read(each) is not None for each in observations)]
    headings = [*fields.values(), "policy", *(["benchmark"] if several else [])]
    texts = len(headings)
    rows = []
    baselines = set()
    for cell in cells(observations):
        first = cell[0]
        measured = [_cell(cell, quantity) for quantity in shown]
        places = [_value(name, first.values.get(name)) for name in fields]
        if first.policy == BASELINE and fields and _same_everywhere(first, observations, shown):
            if first.benchmark in baselines:
                continue
            baselines.add(first.benchmark)
            places = ["any"] * len(fields)
            cell = _one_a_unit(first, observations)
            measured = [_cell(cell, quantity) for quantity in shown]
        names = [first.policy, *[first.benchmark] * several]
        rows.append([*places, *names, *measured, _stopped(cell), str(len({each.unit for each in cell}))])
    return Table([*headings, *(quantity.label for quantity in shown), "stopped", "seeds"], rows, texts)


def training_times(metrics: Mapping[str, float]) -> str:
    """How long each policy trained, out of what the stage `experiment` measured; empty where nothing was trained."""
    seconds = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith("seconds/")}
    if not seconds:
        return ""
    times = ", ".join(f"{escaped(policy)} {value:.0f}" for policy, value in seconds.items())
    return f"Seconds of training after SFT, mean: {times}."


def extent(observations: Sequence[Observation]) -> str:
    """How many pipelines and seeds there are, and on which benchmarks."""
    seeds = sorted({each.seed for each in observations})
    benchmarks = sorted({each.benchmark for each in observations})
    points = len({each.point for each in observations})
    return (
        f"{points} {'pipeline' if points == 1 else 'pipelines'}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}; "
        f"asked on {', '.join(benchmarks)}."
    )


def lacking(missing: Sequence[str]) -> str:
    """Which points an experiment was to have and has not."""
    return f"Missing, without a report: {', '.join(missing)}."


def best_values(exhibit: Exhibit, observations: Sequence[Observation]) -> list[str]:
    """Which value of the one field that an exhibit varies has the highest win rate, by seed."""
    if len(exhibit.grid) != 1:
        return []
    (name,) = exhibit.grid
    best = []
    for unit in sorted({each.unit for each in observations}):
        means = {
            first.values[name]: mean
            for cell in cells([each for each in observations if each.unit == unit and each.policy == TRAINED])
            if name in (first := cell[0]).values and (mean := _mean_win_rate(observations, first)) is not None
        }
        if means:
            highest = max(means.values())
            *others, last = [_value(name, value) for value, mean in means.items() if mean == highest]
            winners = f"{', '.join(others)} and {last}" if others else last
            best.append(f"seed {unit[0]}: {winners}")
    return [f"Highest win rate at {short_names([name])[name]}, {'; '.join(best)}."] if best else []


def _mean_win_rate(observations: Sequence[Observation], like: Observation) -> float | None:
    """Over the benchmarks of one point."""
    same = [each for each in observations if (each.point, each.policy) == (like.point, like.policy)]
    values = [value for each in same if (value := WIN_RATE.read(each)) is not None]
    return estimate_of(values).mean if values else None


def _cell(cell: Sequence[Observation], quantity: Quantity) -> str:
    if quantity is WIN_RATE and cell[0].policy == BASELINE:
        return "baseline"
    found = estimate(cell, quantity)
    if found is None:
        return NONE
    return found.text(quantity.digits) if quantity not in BESIDE else f"{found.mean:.{quantity.digits}f}"


def _same_everywhere(like: Observation, observations: Sequence[Observation], shown: Sequence[Quantity]) -> bool:
    """Whether a policy is the same at all settings, as SFT is where they change what comes after it."""
    same = _like(like, observations)
    measured = {(each.unit, *(quantity.read(each) for quantity in shown)) for each in same}
    return len({each.point for each in same}) > 1 and len(measured) == len({each.unit for each in same})


def _one_a_unit(like: Observation, observations: Sequence[Observation]) -> list[Observation]:
    """Of a policy that is the same everywhere, every seed once: a setting may lack one that another has."""
    return list({each.unit: each for each in _like(like, observations)}.values())


def _like(like: Observation, observations: Sequence[Observation]) -> list[Observation]:
    return [each for each in observations if (each.policy, each.benchmark) == (like.policy, like.benchmark)]


def _stopped(cell: Sequence[Observation]) -> str:
    """The seeds in which the guard ended the training of a policy that has one."""
    stopped = [STOPPED in each.metrics for each in cell]
    guarded = any(stopped) or any("rollout/return" in each.metrics for each in cell)
    return str(sum(stopped)) if guarded else NONE


def _interval(interval: tuple[float, float] | None, digits: int) -> str:
    return NONE if interval is None else "[{:+z.{d}f}, {:+z.{d}f}]".format(*interval, d=digits)


def _value(name: str, value: object) -> str:
    """With lambda beside a KL weight."""
    text = f"{value:g}" if isinstance(value, float) else NONE if value is None else str(value)
    if name.endswith("kl_weight") and isinstance(value, int | float):
        text += f" (lambda {extrapolation(value):g})"
    return text
