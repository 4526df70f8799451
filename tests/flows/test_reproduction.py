"""`dpr reproduce`: the exhibits as one graph, and one of them from nothing to its document."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.experiments.exhibits import EXHIBITS
from flows.merging import Experiment
from flows.reproduction import studies

TINY = Path(__file__).with_name("tiny.yaml")

Dpr = Callable[..., Any]


@pytest.mark.parametrize("quick", [True, False])
def test_one_sft_run_a_seed_serves_every_exhibit_asked_for_or_not(quick: bool) -> None:
    every = Experiment.of(studies(str(TINY), [], list(EXHIBITS), 2, quick))
    [sft, _] = [node for node in every.merged.nodes if node.stage == "sft"]
    for name in EXHIBITS:
        alone = Experiment.of(studies(str(TINY), [], [name], 1, quick))
        assert [node.config for node in alone.merged.nodes if node.stage == "sft"] == [sft.config]
    assert [table.name for table in every.tables()] == [f"experiment {name}" for name in EXHIBITS]


def test_seeds_and_values_make_the_points() -> None:
    [study] = studies(str(TINY), ["evaluation.controls={}"], ["figure2"], 3, True)
    assert [point.name for point in study.points()] == [
        f"gamma={gamma} seed={seed}" for gamma in (0.95, 1) for seed in (1, 2, 3)
    ]


@pytest.mark.integration
def test_the_plan_of_all_needs_no_run(dpr: Dpr) -> None:
    document = dpr("reproduce", "all", "--quick", "--seeds", 2, "--plan", "--json").json
    assert sum(step["stage"] == "sft" for step in document["plan"]) == 2
    assert [step["name"] for step in document["plan"]][-1] == f"experiment {list(EXHIBITS)[-1]}"
    assert document["stages"]["run"] == document["stages"]["shared"] < document["stages"]["unshared"]


@pytest.mark.integration
@pytest.mark.usefixtures("prefect_here")
def test_an_exhibit_ends_with_a_verdict_on_each_claim_and_a_document(dpr: Dpr, tmp_path: Path) -> None:
    out = tmp_path / "results" / "mine.md"
    command = (
        "reproduce",
        "figure2",
        "--quick",
        "--seeds",
        1,
        "--recipe",
        TINY,
        "--set",
        "sft.batch_size=2",
        "--out",
        out,
    )
    result = dpr(*command, "--json", home=tmp_path / "home")
    assert result.status == 0, result.stderr
    assert {claim["claim"] for claim in result.json["claims"]} == {claim.name for claim in EXHIBITS["figure2"].claimed}
    for claim in result.json["claims"]:
        assert {"claim", "verdict", "effect", "interval", "seeds"} <= set(claim)
    assert "identities" not in result.json
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# What reproduces, and what does not\n")
    assert f"## {EXHIBITS['figure2'].title}" in text
    plots = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert plots
    for plot in plots:
        assert (out.parent / plot).read_bytes().startswith(b"\x89PNG")
    shown = dpr(*command, home=tmp_path / "home").stdout
    for claim in result.json["claims"]:
        assert claim["verdict"] in shown
    assert f"Results: {out}" in shown
