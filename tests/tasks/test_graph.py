import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dpr_core.config.placing import STAGE_NAMES
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.store import Store
from tasks.graph import Node, Planned, in_order, plan, rerun_nodes, resolved
from tasks.registry import STAGES, stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.running.explain_rerun import changed_fields
from tasks.running.stage import Stage

Make = Callable[..., Outcome]
Run = Callable[[Node, dict[str, str]], Outcome]


def execute(nodes: list[Node], run: Run) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    for node in in_order(nodes):
        outcomes[node.name] = run(node, resolved(node, outcomes))
    return list(outcomes.values())


@pytest.fixture
def node(toys: dict[str, Stage]) -> Callable[..., Node]:
    def node(name: str, inputs: dict[str, str] | None = None, *, stage: str | None = None, **fields: Any) -> Node:
        return Node(name, stage or name, toys[stage or name].config(**fields), inputs or {})

    return node


@pytest.fixture
def run(store: Store, toys: dict[str, Stage]) -> Run:
    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        return run_stage(toys[node.stage], node.config, inputs, store=store, name=node.name)

    return run


@pytest.fixture
def diamond(node: Callable[..., Node]) -> Callable[..., list[Node]]:
    """number is used by add directly, and through double."""

    def diamond(value: int = 1, factor: int = 2) -> list[Node]:
        return [
            node("add", {"number": "@number", "double": "@double"}),
            node("double", {"number": "@number"}, factor=factor),
            node("number", value=value),
        ]

    return diamond


def lines(planned: list[Planned]) -> dict[str, tuple[str, str]]:
    return {step.name: (step.status, step.why) for step in planned}


# What changed


def test_changed_fields_have_dotted_names_and_both_values() -> None:
    old = {"learning_rate": 5e-5, "algorithm": {"type": "a", "clip": 0.2}, "kept": [1], "gone": 1}
    new = {"learning_rate": 1e-4, "algorithm": {"type": "b", "weight": 1.0}, "kept": [1]}
    assert changed_fields(old, new) == [
        "learning_rate: 5e-05 -> 0.0001",
        'algorithm.type: "a" -> "b"',
        "algorithm.weight: (unset) -> 1.0",
        "algorithm.clip: 0.2 -> (unset)",
        "gone: 1 -> (unset)",
    ]


def test_long_values_are_cut() -> None:
    [line] = changed_fields({"text": "a"}, {"text": "b" * 500})
    assert line == 'text: "a" -> "' + "b" * 56 + "..."


# Plans


def test_nothing_there_yet(store: Store, diamond: Callable[..., list[Node]]) -> None:
    planned = plan(diamond(), store)
    assert [(step.name, step.status, step.id, step.why) for step in planned] == [
        ("number", "run", None, "never ran"),
        ("double", "run", None, "never ran"),
        ("add", "run", None, "never ran"),
    ]
    assert store.records() == []


def test_all_there(store: Store, diamond: Callable[..., list[Node]], run: Run) -> None:
    outcomes = execute(diamond(), run)
    planned = plan(diamond(), store)
    assert {step.status for step in planned} == {"reuse"}
    assert [step.id for step in planned] == [outcome.id for outcome in outcomes]
    assert all(step.why.startswith("nothing changed since 20") for step in planned)


def test_a_change_is_named_and_what_it_entails(store: Store, diamond: Callable[..., list[Node]], run: Run) -> None:
    execute(diamond(), run)
    before = len(store.records())
    assert lines(plan(diamond(value=3), store)) == {
        "number": ("run", "value: 1 -> 3"),
        "double": ("run", "its input number (number) runs again"),
        "add": ("run", "its input number (number) runs again; its input double (double) runs again"),
    }
    assert len(store.records()) == before


def test_a_change_half_way_reuses_what_is_before_it(store: Store, diamond: Callable[..., list[Node]], run: Run) -> None:
    execute(diamond(), run)
    planned = lines(plan(diamond(factor=5), store))
    assert planned["number"][0] == "reuse"
    assert planned["double"] == ("run", "factor: 2 -> 5")
    assert planned["add"] == ("run", "its input double (double) runs again")


def test_the_nearest_artifact_is_the_one_compared_with(store: Store, make: Make, node: Callable[..., Node]) -> None:
    make("number", value=1, note="near")
    make("number", value=9, note="far", seed=4)
    assert lines(plan([node("number", value=2, note="near")], store)) == {"number": ("run", "value: 1 -> 2")}


def test_the_reasons_are_those_of_pipelines_of_the_same_name(
    store: Store, node: Callable[..., Node], toys: dict[str, Stage], about: Callable[..., PipelineInfo]
) -> None:
    def make(pipeline: str, value: int, fails: bool = False) -> Outcome:
        def body(config: Any, work: Any) -> dict[str, float]:
            if fails:
                raise KeyboardInterrupt
            return toys["number"].body(config, work)

        stage = dataclasses.replace(toys["number"], body=body)
        with store.parent_runs.running(about(pipeline)) as parent:
            return run_stage(stage, stage.config(value=value), {}, store=store, parent=parent)

    def why(pipeline: str, value: int) -> str:
        return lines(plan([node("number", value=value)], store, pipeline=pipeline))["number"][1]

    made = make("mine", 1)
    assert (why("mine", 2), why("theirs", 2)) == ("value: 1 -> 2", "never ran")
    with pytest.raises(KeyboardInterrupt):
        make("another", 5, fails=True)
    assert why("another", 6).startswith("never finished: run ")
    assert (why("mine", 5), why("theirs", 5)) == ("value: 1 -> 5", "never ran")
    described = {record.id: store._client.get_run(record.id).data.tags for record in store.records()}
    assert all("Ran because: never ran." in tags["mlflow.note.content"] for tags in described.values())
    third = make("mine", 3)
    note = store._client.get_run(third.id).data.tags["mlflow.note.content"]
    assert "Ran because: value: 1 -> 3." in note
    [step] = plan([node("number", value=1)], store, pipeline="theirs")
    assert (step.status, step.id) == ("reuse", made.id), "what is reused does not depend on who made it"


def test_another_input_is_named(store: Store, make: Make, node: Callable[..., Node]) -> None:
    make("double", {"number": make("number").id})
    other = make("number", value=2)
    assert lines(plan([node("double", {"number": other.id})], store)) == {"double": ("run", "input number changed")}


def test_added_and_dropped_inputs_are_named(store: Store, make: Make, node: Callable[..., Node]) -> None:
    number = make("number").id
    double = make("double", {"number": number}).id
    make("add", {"number": number, "double": double})
    with_more = node("add", {"number": number, "double": double, "more": number})
    assert lines(plan([with_more], store)) == {"add": ("run", "input more was added")}
    make("add", {"number": number, "double": double, "more": number})
    make("add", {"number": number, "double": double, "more": number}, seed=3)
    without = node("add", {"number": number, "double": double}, seed=3)
    assert lines(plan([without], store))["add"][1] in ("input more was left out", "seed: 0 -> 3")


def test_a_new_version_is_named(
    store: Store, make: Make, node: Callable[..., Node], toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    make("number")
    monkeypatch.setattr("tasks.registry.STAGES", toys | {"number": dataclasses.replace(toys["number"], version=2)})
    assert lines(plan([node("number")], store)) == {"number": ("run", "stage version: 1 -> 2")}


def test_force_is_named_until_it_is_done(
    store: Store, diamond: Callable[..., list[Node]], run: Run, make: Make
) -> None:
    execute(diamond(), run)
    moment = datetime.now(UTC)
    forced = ("run", "it was asked for by force")
    assert set(lines(plan(diamond(), store, moment)).values()) == {forced}
    again = make("number", force=True)
    [number, *others] = plan(diamond(), store, moment)
    assert (number.status, number.id) == ("reuse", again.id)
    assert {(step.status, step.why) for step in others} == {forced}


def test_damage_is_named(store: Store, make: Make, node: Callable[..., Node]) -> None:
    number = make("number")
    (store.fetch(number.id).path / "weights.bin").unlink()
    assert lines(plan([node("number")], store)) == {
        "number": ("run", f"artifact {number.id[:8]} (number) is damaged (weights.bin: missing)")
    }


def test_a_failed_attempt_is_named(store: Store, toys: dict[str, Stage], node: Callable[..., Node]) -> None:
    run = store.begin(
        stage="number",
        name="number",
        version=1,
        key="0" * 64,
        config=toys["number"].config(),
        inputs={},
        parent=None,
        description="",
    )
    run.end("FAILED")
    assert lines(plan([node("number")], store)) == {"number": ("run", f"never finished: run {run.id[:8]} is FAILED")}


def test_requests_that_mean_nothing(store: Store, make: Make, node: Callable[..., Node]) -> None:
    number = make("number").id
    double = make("double", {"number": number}).id
    for nodes, message in (
        ([node("double", {"number": "@nowhere"})], "input number of double: there is no stage called nowhere"),
        ([node("double", {"number": "@double"})], "double would have to be built on itself"),
        ([node("number"), node("number")], "two stages of this pipeline have the same name"),
        ([node("double")], r"double needs the input number \(an artifact of number\)"),
        ([node("double", {"number": double})], "is an artifact of stage double; one of stage number is needed"),
        (
            [node("add", {"number": "@double", "double": double}), node("double", {"number": number}, factor=9)],
            "@double is an artifact of stage double",
        ),
        ([node("double", {"number": "abcdef"})], "there is no artifact 'abcdef'"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(nodes, store)


# Reruns


def test_a_rerun_without_a_change_is_a_reuse(store: Store, make: Make) -> None:
    number = make("number", value=4, execution=7)
    [node] = rerun_nodes(store, number.id[:8], [], downstream=False)
    assert (node.name, node.stage, node.inputs, node.origin) == ("number", "number", {}, number.id)
    assert node.config.model_dump() == {"seed": 0, "value": 4, "note": "", "execution": 7}
    assert [step.id for step in plan([node], store)] == [number.id]


def test_a_rerun_alone_keeps_its_inputs(store: Store, make: Make, run: Run) -> None:
    number = make("number", value=4)
    double = make("double", {"number": number.id})
    nodes = rerun_nodes(store, double.id, ["factor=5"], downstream=False)
    assert [n.inputs for n in nodes] == [{"number": number.id}]
    assert lines(plan(nodes, store)) == {"double": ("run", "factor: 2 -> 5")}
    [outcome] = execute(nodes, run)
    assert outcome.metrics == {"value": 20.0}


def test_a_rerun_is_compared_with_the_artifact_it_makes_again(
    store: Store, make: Make, toys: dict[str, Stage], about: Callable[..., PipelineInfo]
) -> None:
    origin = make("number", value=1, note="origin")
    make("number", value=3, note="origin")
    [node] = rerun_nodes(store, origin.id, ["value=3", "seed=5"], downstream=False)
    assert lines(plan([node], store)) == {"number": ("run", "seed: 0 -> 5; value: 1 -> 3")}
    with store.parent_runs.running(about("rerun number")) as parent:
        made = run_stage(toys["number"], node.config, {}, store=store, parent=parent, origin=node.origin)
    note = store._client.get_run(made.id).data.tags["mlflow.note.content"]
    assert note.endswith("Ran because: seed: 0 -> 5; value: 1 -> 3.")


def test_a_failed_attempt_can_be_rerun(store: Store, toys: dict[str, Stage], run: Run) -> None:
    config = toys["number"].config(value=5)
    failed = store.begin(
        stage="number", name="number", version=1, key="0" * 64, config=config, inputs={}, parent=None, description=""
    )
    failed.end("FAILED")
    [outcome] = execute(rerun_nodes(store, failed.id, [], downstream=False), run)
    assert outcome.metrics == {"value": 5.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("valu=3", "number: valu: no such field; did you mean value"),
        ("value=x", "number: value: .*whole number"),
        ("value", "expected field=value"),
    ],
)
def test_a_wrong_override_is_named(store: Store, make: Make, override: str, message: str) -> None:
    number = make("number")
    with pytest.raises(UsageError, match=message):
        rerun_nodes(store, number.id, [override], downstream=False)


def test_downstream_of_a_diamond_points_both_ways_at_the_new_one(
    store: Store, diamond: Callable[..., list[Node]], run: Run
) -> None:
    number, double, both = execute(diamond(), run)
    nodes = rerun_nodes(store, number.id, ["value=10"], downstream=True)
    assert [(n.name, n.inputs, n.origin) for n in nodes] == [
        ("number", {}, number.id),
        ("double", {"number": "@number"}, double.id),
        ("add", {"double": "@double", "number": "@number"}, both.id),
    ]
    assert [step.status for step in plan(nodes, store)] == ["run", "run", "run"]
    outcomes = execute(nodes, run)
    assert [outcome.metrics["value"] for outcome in outcomes] == [10, 20, 30]
    inputs = store.record(outcomes[2].id).inputs
    assert inputs == {"number": outcomes[0].id, "double": outcomes[1].id}


def test_downstream_leaves_what_is_beside_it_alone(store: Store, make: Make) -> None:
    left, right = make("number", value=1), make("number", value=2)
    double = make("double", {"number": left.id})
    make("add", {"number": right.id, "double": double.id})
    nodes = rerun_nodes(store, left.id, ["value=7"], downstream=True)
    assert {n.name: n.inputs for n in nodes} == {
        "number": {},
        "double": {"number": "@number"},
        "add": {"number": right.id, "double": "@double"},
    }


def test_downstream_makes_each_different_artifact_once(store: Store, make: Make) -> None:
    number = make("number")
    twice = make("double", {"number": number.id})
    again = make("double", {"number": number.id}, force=True)
    thrice = make("double", {"number": number.id}, factor=3)
    make("add", {"number": number.id, "double": twice.id})
    latest = make("add", {"number": number.id, "double": again.id}, force=True)
    nodes = rerun_nodes(store, number.id, ["value=7"], downstream=True)
    assert {n.name: (n.inputs, n.origin) for n in nodes} == {
        "number": ({}, number.id),
        "double": ({"number": "@number"}, again.id),
        f"double-{thrice.id[:8]}": ({"number": "@number"}, thrice.id),
        "add": ({"number": "@number", "double": "@double"}, latest.id),
    }


def test_downstream_is_what_was_built_on_the_same_whoever_made_it(store: Store, make: Make) -> None:
    first = make("number")
    double = make("double", {"number": first.id})
    twin = make("number", force=True)
    both = make("add", {"number": twin.id, "double": double.id})
    assert store.record(first.id).digest == store.record(twin.id).digest
    for target in (first, twin):
        nodes = rerun_nodes(store, target.id, ["value=7"], downstream=True)
        assert {n.name: (n.inputs, n.origin) for n in nodes} == {
            "number": ({}, target.id),
            "double": ({"number": "@number"}, double.id),
            "add": ({"number": "@number", "double": "@double"}, both.id),
        }


def test_downstream_of_a_change_that_changes_nothing_is_all_reuse(
    store: Store, diamond: Callable[..., list[Node]], run: Run
) -> None:
    outcomes = execute(diamond(), run)
    planned = plan(rerun_nodes(store, outcomes[0].id, ["execution=3"], downstream=True), store)
    assert [(step.status, step.id) for step in planned] == [("reuse", outcome.id) for outcome in outcomes]


def test_a_circle_in_the_stored_lineage_ends(store: Store, make: Make) -> None:
    number = make("number")
    double = make("double", {"number": number.id})
    both = make("add", {"number": number.id, "double": double.id})
    store._client.set_tag(double.id, "dpr.inputs", f'{{"number":"{both.id}"}}')
    with pytest.raises(DensePathError, match="goes in a circle"):
        rerun_nodes(store, number.id, [], downstream=True)


# The table of stages


def test_the_table_names_every_stage_without_importing_it() -> None:
    assert tuple(STAGES) == STAGE_NAMES
    assert len(STAGES) == 14
    assert "sft" in STAGES
    assert "stf" not in STAGES
    with pytest.raises(UsageError, match="there is no stage 'rienforce'; did you mean reinforce"):
        stage_named("rienforce")


@pytest.mark.parametrize(
    ("tag", "value"), [("dpr.config", '{"value":9}'), ("dpr.inputs", "{}"), ("dpr.key", "0" * 64), ("dpr.version", "9")]
)
def test_what_the_store_says_wrongly_of_an_artifact_is_not_made_again(
    store: Store, make: Make, tag: str, value: str
) -> None:
    number = make("number")
    double = make("double", {"number": number.id})
    changed = double if tag == "dpr.inputs" else number
    rerun_nodes(store, changed.id, [], downstream=True)
    store._client.set_tag(changed.id, tag, value)
    with pytest.raises(DensePathError, match=f"does not agree with the tag {tag}; give its settings to `dpr run`"):
        rerun_nodes(store, changed.id, [], downstream=True)


def test_what_has_lost_its_manifest_can_be_made_again(store: Store, make: Make) -> None:
    number = make("number")
    (store.fetch(number.id).path.parent / "MANIFEST.json").unlink()
    assert [node.stage for node in rerun_nodes(store, number.id, [], downstream=True)] == ["number"]
