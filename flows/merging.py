"""Merging pipelines into one graph, with common stages deduplicated by content. Runs nothing."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dpr_core.config.pipeline import ExperimentConfig
from dpr_core.errors import UsageError
from dpr_core.experiments.points import Point, Study, label, short_names
from flows import wiring
from tasks.artifacts.identity import canonical_json
from tasks.artifacts.run_records import flatten
from tasks.graph import OTHER, Node
from tasks.schedule import Failure

REPORT, DIAGNOSE, EXPERIMENT = "report", "diagnose", "experiment"
SWEEP = "sweep"


@dataclass(frozen=True)
class MergedGraph:
    """The graph, and the nodes of each point in it."""

    nodes: list[Node]
    points_of: list[list[int]]
    """The points that each node serves, as places in the list that was merged."""
    reports: list[str]
    """The name of each point's last node."""

    @property
    def unshared(self) -> int:
        """How many stages these would be if no point shared any."""
        return sum(map(len, self.points_of))


def merge(points: Sequence[Point]) -> MergedGraph:
    """One node for all that are the same: the same stage, settings and inputs. Order: that of the points."""
    number_of: dict[str, int] = {}
    nodes: list[Node] = []
    points_of: list[list[int]] = []
    reports: list[int] = []
    for index, point in enumerate(points):
        number_by_name: dict[str, int] = {}
        for node in wiring.nodes(point.config):
            inputs = {role: _renamed(source, number_by_name) for role, source in node.inputs.items()}
            signature = canonical_json([node.stage, node.config.model_dump(mode="json"), inputs])
            number = number_by_name[node.name] = number_of.setdefault(signature, len(nodes))
            if number == len(nodes):
                nodes.append(Node(node.name, node.stage, node.config, inputs))
                points_of.append([])
            if index not in points_of[number][-1:]:
                points_of[number].append(index)
        if REPORT not in number_by_name:
            raise UsageError(f"point {point.name}: its evaluation has no benchmark, so there is nothing to compare")
        reports.append(number_by_name[REPORT])
    names = dict(enumerate(_names(nodes, points_of, points)))
    by_number = {str(number): name for number, name in names.items()}
    named = [
        Node(names[number], node.stage, node.config, {r: _renamed(s, by_number) for r, s in node.inputs.items()})
        for number, node in enumerate(nodes)
    ]
    return MergedGraph(named, points_of, [names[number] for number in reports])


def _renamed(source: str, names: Mapping[str, object]) -> str:
    return f"{OTHER}{names[source.removeprefix(OTHER)]}" if source.startswith(OTHER) else source


def _names(nodes: Sequence[Node], points_of: Sequence[Sequence[int]], points: Sequence[Point]) -> list[str]:
    """`reinforce (gamma=0.95 seed=1)`: a node's own name, and what the points that it serves have in common."""
    short = short_names(field for point in points for field in point.values)
    everywhere = _common(points)
    names: dict[str, None] = {}
    for node, users in zip(nodes, points_of, strict=True):
        common = _common([points[index] for index in users])
        settings = label({field: value for field, value in common.items() if field not in everywhere}, short)
        name = f"{node.name} ({settings})" if settings else node.name
        others = (f"{name} no={number}" for number in itertools.count(2))
        names[next(free for free in itertools.chain([name], others) if free not in names)] = None
    return list(names)


def _common(points: Sequence[Point]) -> dict[str, Any]:
    """The settings in which all of these points agree."""
    first, *others = points
    return {
        field: value
        for field, value in first.values.items()
        if all(field in point.values and point.values[field] == value for point in others)
    }


@dataclass(frozen=True)
class MergedStudies:
    """Studies that are run together: the points of each, and the graph of all."""

    studies: list[Study]
    points: list[list[Point]]
    graph: MergedGraph

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
        return dict(zip(names, self.graph.reports, strict=True))

    @property
    def description(self) -> str:
        return f"{len(self.reports)} points: {len(self.graph.nodes)} stages in place of {self.graph.unshared}"

    @property
    def over(self) -> dict[str, list[Any]]:
        """All that is varied, and the values that it takes."""
        found: dict[str, list[Any]] = {}
        for study in self.studies:
            for field, values in study.over.items():
                known = found.setdefault(field, [])
                known += [value for value in values if value not in known]
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the parent run in MLflow: where points differ, the values of all."""
        found: dict[str, dict[str, Any]] = {}
        for point in itertools.chain.from_iterable(self.points):
            for field, value in flatten(point.config.model_dump(mode="json", exclude={"place"})):
                found.setdefault(field, {}).setdefault(canonical_json(value), value)
        every = {field: list(values.values()) for field, values in found.items()}
        return {field: values[0] if len(values) == 1 else values for field, values in every.items()}

    def failed(self, failures: Mapping[str, Failure]) -> dict[str, str]:
        """Why a point has no report or a study no table, and what else failed: by the stage that was the cause."""
        ends = {**self.reports, **{node.name: node.name for node in self.tables()}}
        broken = {name: failures[node] for name, node in ends.items() if node in failures}
        named = {failure.node for failure in broken.values()}
        others = {failure.node: failure for failure in failures.values() if failure.node not in named}
        return {name: f"{failure.node}: {failure.error}" for name, failure in (broken | others).items()}

    def tables(self, missing: Collection[str] = ()) -> list[Node]:
        """The last node of each study, without the inputs that are missing; none where no report is present."""
        reports = iter(self.graph.reports)
        diagnoses = [
            (node.name, set(points))
            for node, points in zip(self.graph.nodes, self.graph.points_of, strict=True)
            if node.stage == DIAGNOSE and node.name not in missing
        ]
        first = 0
        nodes = []
        for study, points in zip(self.studies, self.points, strict=True):
            found = {point.name: report for point in points if (report := next(reports)) not in missing}
            indices = range(first, first + len(points))
            diagnosed = [name for name, users in diagnoses if users.intersection(indices)]
            first += len(points)
            if found:
                over = f"over {', '.join(short_names(study.over).values())}"
                name = f"{EXPERIMENT} {over if study.exhibit == SWEEP else study.exhibit}"
                inputs = {role: OTHER + source for role, source in found.items()} | {n: OTHER + n for n in diagnosed}
                values = {point.name: point.values for point in points}
                config = ExperimentConfig(title=study.title, exhibit=study.exhibit, points=values)
                nodes.append(Node(name, EXPERIMENT, config, inputs))
        return nodes
