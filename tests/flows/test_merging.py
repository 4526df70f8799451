"""Many pipelines as one graph: what is shared, what it is called, which tables stand at the end."""

from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.pipeline import ExperimentConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.experiments.points import Study
from flows import recipes, wiring
from flows.merging import MergedStudies
from tasks.graph import Node, in_order
from tasks.schedule import Failure

TINY = str(Path(__file__).with_name("tiny.yaml"))
GAMMA = "reinforce.algorithm.gamma"


def study(*assignments: str, exhibit: Any = "sweep", **over: list[Any]) -> Study:
    fields = {field.replace("__", "."): values for field, values in over.items()}
    return Study(title="t", exhibit=exhibit, config=recipes.load(TINY, assignments), over=fields)


GRID = MergedStudies.of([study(reinforce__algorithm__gamma=[0.9, 1.0], seed=[1, 2])])
NODES = {node.name: node for node in GRID.graph.nodes}


def test_what_is_the_same_stands_once_and_is_named_by_what_its_points_share() -> None:
    of = {stage: [node.name for node in GRID.graph.nodes if node.stage == stage] for stage in ("sft", "reinforce")}
    assert of["sft"] == ["sft (seed=1)", "sft (seed=2)"]
    assert of["reinforce"] == [
        "reinforce (gamma=0.9 seed=1)",
        "reinforce (gamma=0.9 seed=2)",
        "reinforce (gamma=1 seed=1)",
        "reinforce (gamma=1 seed=2)",
    ]
    assert NODES["reinforce (gamma=1 seed=2)"].inputs == {"reward": "@reward (seed=2)"}
    users = dict(zip(NODES, GRID.graph.points_of, strict=True))
    assert users["answer SFT on lab (seed=1)"] == [0, 2]
    assert users["report (gamma=1 seed=1)"] == [2]


def test_no_stage_of_a_point_is_lost_and_none_changes() -> None:
    """Each point, read back from the merged graph, is the graph of that point alone."""
    points = [point for of_study in GRID.points for point in of_study]
    assert GRID.graph.unshared == sum(len(wiring.nodes(point.config)) for point in points)
    for point, report in zip(points, GRID.graph.reports, strict=True):
        alone = {node.name: node for node in wiring.nodes(point.config)}

        def same(merged: Node, own: Node, alone: dict[str, Node] = alone) -> None:
            assert (merged.stage, merged.config) == (own.stage, own.config)
            assert list(merged.inputs) == list(own.inputs)
            for role, source in own.inputs.items():
                same(NODES[merged.inputs[role].removeprefix("@")], alone[source.removeprefix("@")])

        same(NODES[report], alone["report"])


def test_a_sweep_of_the_temperature_trains_once() -> None:
    merged = MergedStudies.of([study(answer__temperature=[0.3, 0.7, 1.0])]).graph
    trained = [node.name for node in merged.nodes if node.stage in ("sft", "reward", "diagnose", "reinforce")]
    assert trained == ["sft", "reward", "diagnose", "reinforce"]
    assert sum(node.stage == "answer" for node in merged.nodes) == 9


def test_how_work_is_done_keeps_stages_apart() -> None:
    merged = MergedStudies.of([study(sft__execution__threads=[1, 2])]).graph
    assert [node.name for node in merged.nodes if node.stage == "sft"] == ["sft (threads=1)", "sft (threads=2)"]


def test_names_that_would_be_equal_get_a_number() -> None:
    asked = MergedStudies.of([study(seed=[1]), study("reward.formula=with_value", exhibit="table1", seed=[1])])
    rewards = [node.name for node in asked.graph.nodes if node.stage == "reward"]
    assert rewards == ["reward", "reward no=2"]
    assert sum(node.stage == "sft" for node in asked.graph.nodes) == 1


def test_the_table_has_every_report_under_its_points_name_and_the_diagnoses() -> None:
    [table] = GRID.tables()
    assert (table.name, table.stage) == ("experiment over gamma, seed", "experiment")
    assert table.inputs["gamma=0.9 seed=1"] == "@report (gamma=0.9 seed=1)"
    assert set(table.inputs) == {*GRID.reports, "diagnose (seed=1)", "diagnose (seed=2)"}
    assert isinstance(table.config, ExperimentConfig)
    assert table.config.points["gamma=1 seed=2"] == {GAMMA: 1.0, "seed": 2}
    in_order([*GRID.graph.nodes, table])


def test_a_table_is_made_of_what_is_there_and_names_all_points() -> None:
    missing = {"report (gamma=0.9 seed=1)", "diagnose (seed=2)"}
    [table] = GRID.tables(missing)
    assert set(table.inputs) == {*GRID.reports, "diagnose (seed=1)"} - {"gamma=0.9 seed=1"}
    assert isinstance(table.config, ExperimentConfig)
    assert set(table.config.points) == set(GRID.reports)
    assert GRID.tables(GRID.graph.reports) == []


def test_several_studies_have_tables_of_their_own() -> None:
    asked = MergedStudies.of([study(exhibit="table1", seed=[1]), study(exhibit="figure2", seed=[1, 2])])
    assert list(asked.reports) == ["table1: seed=1", "figure2: seed=1", "figure2: seed=2"]
    assert {table.name: [role for role in table.inputs if role.startswith("seed")] for table in asked.tables()} == {
        "experiment table1": ["seed=1"],
        "experiment figure2": ["seed=1", "seed=2"],
    }
    with pytest.raises(UsageError, match="asked for once"):
        MergedStudies.of([study(seed=[1]), study(seed=[2])])


def test_a_failed_point_is_told_with_the_stage_at_the_bottom_of_it() -> None:
    broken = Failure("sft (seed=2)", DensePathError("no luck"))
    names = [name for name in NODES if name.endswith("seed=2)")]
    assert GRID.failed(dict.fromkeys(names, broken)) == {
        "gamma=0.9 seed=2": "sft (seed=2): no luck",
        "gamma=1 seed=2": "sft (seed=2): no luck",
    }


def test_a_failure_that_costs_no_report_is_told_too() -> None:
    broken = Failure("diagnose (seed=2)", DensePathError("no luck"))
    assert GRID.failed({"diagnose (seed=2)": broken}) == {"diagnose (seed=2)": "diagnose (seed=2): no luck"}


def test_points_without_a_benchmark_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="point seed=1: its evaluation has no benchmark"):
        MergedStudies.of([study("evaluation.benchmarks={}", seed=[1])])
