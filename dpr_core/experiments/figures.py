"""Figures of an experiment: win rates by policy, curves over a swept field, means by position, detection."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpr_core.experiments.exhibits import TRAINED, Exhibit, is_number
from dpr_core.experiments.observations import (
    ACCURACY,
    AUROC,
    AUROC_LOG_SFT,
    BASELINE,
    EVEN,
    TOP1,
    TOP1_LOG_SFT,
    WIN_RATE,
    Estimate,
    Observation,
    Quantity,
    cells,
    estimate,
    estimate_of,
    swept,
)
from dpr_core.experiments.points import label, short_names
from dpr_core.reporting import plots
from dpr_core.reporting.plots import Valued

FEWEST_ANSWERS = 0.1
"""Positions that fewer answers reach than this share are not drawn."""


def draw(exhibit: Exhibit, observations: Sequence[Observation], folder: Path) -> dict[str, str]:
    """Write every plot that these observations allow; returns the captions with their file names."""
    drawn = {}
    if exhibit.by_position:
        panels = _by_position(observations)
        if any(panels.values()):
            plots.bands(folder / "by_position.png", exhibit.title, "position in the response", panels)
            drawn["KL to SFT and token reward by position"] = "by_position.png"
    elif exhibit.credit_page:
        groups = _detection(observations)
        if groups:
            plots.bars(folder / "detection.png", exhibit.title, "finding one replaced token", groups)
            drawn["Finding one replaced token"] = "detection.png"
    elif axis := _axis(observations):
        panels = _panels(axis, observations, (WIN_RATE, ACCURACY, *exhibit.shows))
        x_label = short_names(swept(observations))[axis]
        plots.bands(folder / "curves.png", exhibit.title, x_label, panels, {WIN_RATE.label: EVEN})
        drawn[f"{' and '.join(panels)} over {x_label}"] = "curves.png"
    elif swept(observations):
        plots.bars(folder / "bars.png", exhibit.title, WIN_RATE.label, _bars(observations), even=EVEN)
        drawn["Win rate by setting"] = "bars.png"
    else:
        for quantity, name in ((WIN_RATE, "win_rate"), (ACCURACY, "accuracy")):
            rows, even = _forest(observations, quantity)
            if rows:
                plots.intervals(folder / f"{name}.png", f"{quantity.label}, mean over seeds", rows, even=even)
                drawn[f"{quantity.label} of every policy, means over seeds"] = f"{name}.png"
    return drawn


def _axis(observations: Sequence[Observation]) -> str | None:
    """The field with numbers alone that takes the most values, and at least two."""
    values: dict[str, set[Any]] = {}
    for name in swept(observations):
        found = [each.values.get(name) for each in observations]
        if all(map(is_number, found)) and len(set(found)) > 1:
            values[name] = set(found)
    return max(values, key=lambda name: len(values[name]), default=None)


def _panels(
    axis: str, observations: Sequence[Observation], quantities: Sequence[Quantity]
) -> Mapping[str, Mapping[str, Sequence[tuple[float, Valued]]]]:
    short = short_names(swept(observations))
    panels: dict[str, dict[str, list[tuple[float, Valued]]]] = {}
    for quantity in quantities:
        for cell in cells(observations):
            found = None if _is_even(cell, quantity) else estimate(cell, quantity)
            if found is not None:
                others = {name: value for name, value in cell[0].values.items() if name != axis}
                series = panels.setdefault(quantity.label, {}).setdefault(
                    _name(cell[0], observations, others, short), []
                )
                series.append((cell[0].values[axis], _valued(found)))
    return {name: {each: sorted(points) for each, points in series.items()} for name, series in panels.items()}


def _bars(observations: Sequence[Observation]) -> Mapping[str, Mapping[str, Valued]]:
    short = short_names(swept(observations))
    groups: dict[str, dict[str, Valued]] = {}
    for cell in cells(observations):
        found = None if _is_even(cell, WIN_RATE) else estimate(cell, WIN_RATE)
        if found is not None:
            group = groups.setdefault(label(cell[0].values, short), {})
            group[_name(cell[0], observations, {}, short)] = _valued(found)
    return groups


def _forest(
    observations: Sequence[Observation], quantity: Quantity
) -> tuple[list[tuple[str, float, float, float]], float]:
    """A row for each policy, and the level of SFT."""
    rows, levels = [], []
    for cell in cells(observations):
        found = estimate(cell, quantity)
        if found is not None and cell[0].policy == BASELINE:
            levels.append(found.mean)
        if found is not None and not _is_even(cell, quantity):
            rows.append((_name(cell[0], observations, {}, {}), *_valued(found)))
    return rows, sum(levels) / len(levels) if levels else EVEN


def _by_position(observations: Sequence[Observation]) -> Mapping[str, Mapping[str, Sequence[tuple[float, Valued]]]]:
    short = short_names(swept(observations))
    panels: dict[str, dict[str, list[tuple[float, Valued]]]] = {"KL to SFT (nats)": {}, "token reward": {}}
    for cell in cells([each for each in observations if each.policy == TRAINED and each.profile]):
        most = max(at.answers for each in cell for at in each.profile)
        by_place: dict[int, list[tuple[float, float]]] = {}
        for each in cell:
            for at in each.profile:
                if at.answers >= FEWEST_ANSWERS * most:
                    by_place.setdefault(at.position, []).append((at.kl_to_sft, at.reward))
        name = " ".join([label(cell[0].values, short) or TRAINED, *_benchmark(cell[0], observations)])
        for i, panel in enumerate(panels.values()):
            panel[name] = [
                (float(position), _valued(estimate_of([pair[i] for pair in pairs])))
                for position, pairs in sorted(by_place.items())
            ]
    return panels


def _detection(observations: Sequence[Observation]) -> Mapping[str, Mapping[str, Valued]]:
    # Each benchmark repeats what was measured of the reward.
    trained = list({each.unit: each for each in observations if each.policy == TRAINED}.values())
    kinds = {"AUROC": (AUROC, AUROC_LOG_SFT), "top-1": (TOP1, TOP1_LOG_SFT)}
    groups: dict[str, dict[str, Valued]] = {}
    for group, pair in kinds.items():
        for name, quantity in zip(("r", "log pi_SFT"), pair, strict=True):
            if (found := estimate(trained, quantity)) is not None:
                groups.setdefault(group, {})[name] = _valued(found)
    return groups


def _is_even(cell: Sequence[Observation], quantity: Quantity) -> bool:
    """The win rate of SFT against itself is no measurement."""
    return quantity is WIN_RATE and cell[0].policy == BASELINE


def _name(
    each: Observation, observations: Sequence[Observation], values: Mapping[str, Any], short: Mapping[str, str]
) -> str:
    """The policy, with its benchmark where there are several, and what else sets it apart."""
    return " ".join(filter(None, [each.policy, *_benchmark(each, observations), label(values, short)]))


def _benchmark(each: Observation, observations: Sequence[Observation]) -> list[str]:
    several = len({other.benchmark for other in observations}) > 1
    return [f"({each.benchmark})"] if several else []


def _valued(found: Estimate) -> Valued:
    return found.mean, *(found.interval or (found.mean, found.mean))
