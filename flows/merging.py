"""Many pipelines as one graph, in which every stage that several of them need stands once. Runs nothing."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dpr_core.config.pipeline import ExperimentConfig
from dpr_core.errors import UsageError
from dpr_core.experiments.points import Point, Study, label, short_names
from flows import wiring
from tasks.artifacts.identity import canonical_json
from tasks.graph import OTHER, Node
from tasks.schedule import Failure

REPORT, DIAGNOSE, EXPERIMENT = "report", "diagnose", "experiment"
SWEEP = "sweep"


@dataclass(frozen=True)
class Merged:
    """The graph, and where each point is in it."""

    nodes: list[Node]
    points_of: list[list[int]]
    """The points that each node serves, as places in the list that was merged."""
    reports: list[str]
    """The name of each point's last node."""

    @property
    def unshared(self) -> int:
        """How many stages these would be if no point shared any."""
        return sum(map(len, self.points_of))


def merge(points: Sequence[Point]) -> Merged:
    """One node for all that are the same: the same stage, settings and inputs. Order: that of the points."""
    number_of: dict[str, int] = {}
    nodes: list[Node] = []
    points_of: list[list[int]] = []
    reports: list[int] = []
    for index, point in enumerate(points):
        place: dict[str, int] = {}
        for node in wiring.nodes(point.config):
            inputs = {role: _renamed(source, place) for role, source in node.inputs.items()}
            signature = canonical_json([node.stage, node.config.model_dump(mode="json"), inputs])
            number = place[node.name] = number_of.setdefault(signature, len(nodes))
            if number == len(nodes):
                nodes.append(Node(node.name, node.stage, node.config, inputs))
                points_of.append([])
            if index not in points_of[number][-1:]:
                points_of[number].append(index)
        if REPORT not in place:
            raise UsageError(f"point {point.name}: its evaluation has no benchmark, so there is nothing to compare")
        reports.append(place[REPORT])
    names = dict(enumerate(_names(nodes, points_of, points)))
    by_place = {str(place): name for place, name in names.items()}
    named = [
        Node(names[place], node.stage, node.config, {r: _renamed(s, by_place) for r, s in node.inputs.items()})
        for place, node in enumerate(nodes)
    ]
    return Merged(named, points_of, [names[place] for place in reports])


def _renamed(source: str, names: Mapping[str, object]) -> str:
    return f"{OTHER}{names[source.removeprefix(OTHER)]}" if source.startswith(OTHER) else source


def _names(nodes: Sequence[Node], points_of: Sequence[Sequence[int]], points: Sequence[Point]) -> list[str]:
    """`reinforce (gamma=0.95 seed=1)`: a node's own name, and what the points that it serves have in common."""
    short = short_names(field for point in points for field in point.values)
    everywhere = _common(points)
    names: dict[str, None] = {}
    for node, users in zip(nodes, points_of, strict=True):
        here = _common([points[index] for index in users])
        told = label({field: value for field, value in here.items() if field not in everywhere}, short)
        name = f"{node.name} ({told})" if told else node.name
        others = (f"{name} no={number}" for number in itertools.count(2))
        names[next(free for free in itertools.chain([name], others) if free not in names)] = None
    return list(names)


def _common(points: Sequence[Point]) -> dict[str, Any]:
    """What all of these points have set to the same value."""
    first, *others = points
    return {
        field: value
        for field, value in first.values.items()
        if all(field in point.values and point.values[field] == value for point in others)
    }


@dataclass(frozen=True)
class Experiment:
    """Studies that are run together: the points of each, and the graph of all."""

    studies: list[Study]
    points: list[list[Point]]
    merged: Merged

    @classmethod
    def of(cls, studies: Sequence[Study]) -> Self:
        exhibits = [study.exhibit for study in studies]
        if len(set(exhibits)) < len(exhibits):
            raise UsageError(f"each exhibit can be asked for once, not {', '.join(exhibits)}")
        points = [study.points() for study in studies]
        return cls(list(studies), points, merge([point for of_study in points for point in of_study]))

    @property
    def reports(self) -> dict[str, str]:
        """The name of its report, for every point; of several studies, with the exhibit in front."""
        studies = self.studies if len(self.studies) > 1 else [None]
        names = [
            f"{study.exhibit}: {point.name}" if study else point.name
            for study, points in zip(studies, self.points, strict=True)
            for point in points
        ]
        return dict(zip(names, self.merged.reports, strict=True))

    @property
    def description(self) -> str:
        return f"{len(self.reports)} points: {len(self.merged.nodes)} stages in place of {self.merged.unshared}"

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, as MLflow keeps it."""
        return {"studies": [study.model_dump(mode="json") for study in self.studies]}

    def failed(self, failures: Mapping[str, Failure]) -> dict[str, str]:
        """Why a point has no report or a study no table, and what else failed: by the stage at the bottom of it."""
        ends = {**self.reports, **{node.name: node.name for node in self.tables()}}
        broken = {name: failures[node] for name, node in ends.items() if node in failures}
        told = {failure.node for failure in broken.values()}
        others = {failure.node: failure for failure in failures.values() if failure.node not in told}
        return {name: f"{failure.node}: {failure.error}" for name, failure in (broken | others).items()}

    def tables(self, missing: Collection[str] = ()) -> list[Node]:
        """The last node of each study, without the inputs that are missing; none where no report is there."""
        reports = iter(self.merged.reports)
        diagnoses = [
            (node.name, set(points))
            for node, points in zip(self.merged.nodes, self.merged.points_of, strict=True)
            if node.stage == DIAGNOSE and node.name not in missing
        ]
        first = 0
        nodes = []
        for study, points in zip(self.studies, self.points, strict=True):
            found = {point.name: report for point in points if (report := next(reports)) not in missing}
            places = range(first, first + len(points))
            behind = [name for name, users in diagnoses if users.intersection(places)]
            first += len(points)
            if found:
                over = f"over {', '.join(short_names(study.over).values())}"
                name = f"{EXPERIMENT} {over if study.exhibit == SWEEP else study.exhibit}"
                inputs = {role: OTHER + source for role, source in found.items()} | {n: OTHER + n for n in behind}
                values = {point.name: point.values for point in points}
                config = ExperimentConfig(title=study.title, exhibit=study.exhibit, points=values)
                nodes.append(Node(name, EXPERIMENT, config, inputs))
        return nodes
