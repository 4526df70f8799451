"""`dpr reproduce`: the exhibits as one graph, and one of them from nothing to its document."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dpr_core.experiments.exhibits import EXHIBITS
from flows.merging import MergedStudies
from flows.reproduction import studies
from tasks.artifacts.parent_runs import PipelineInfo, StoredRequest
from tasks.artifacts.store import Store

TINY = Path(__file__).with_name("tiny.yaml")

Dpr = Callable[..., Any]


@pytest.mark.parametrize("quick", [True, False])
def test_one_sft_run_a_seed_serves_every_exhibit_asked_for_or_not(quick: bool) -> None:
    every = MergedStudies.of(studies(str(TINY), [], list(EXHIBITS), 2, quick))
    [sft, _] = [node for node in every.graph.nodes if node.stage == "sft"]
    for name in EXHIBITS:
        alone = MergedStudies.of(studies(str(TINY), [], [name], 1, quick))
        assert [node.config for node in alone.graph.nodes if node.stage == "sft"] == [sft.config]
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


@pytest.mark.slow
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
        "--jobs",
        1,
    )
    result = dpr(*command, "--json", home=tmp_path / "home")
    assert result.status == 0, result.stderr
    assert {claim["claim"] for claim in result.json["claims"]} == {claim.name for claim in EXHIBITS["figure2"].claims}
    for claim in result.json["claims"]:
        assert {"claim", "verdict", "effect", "interval", "seeds"} <= set(claim)
    assert "identities" not in result.json
    assert {path.name for path in (out.parent / "mine").iterdir()} == {"experiment-figure2", "verdicts.json"}
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


def an_ended_run(monkeypatch: pytest.MonkeyPatch, **more: Any) -> dict[str, Any]:
    """`dpr reproduce` finds its run at an end, with one claim judged and no artifacts."""
    claim = {"claim": "a > b", "by": "paper", "verdict": "undecided", "effect": 1.0, "interval": None, "seeds": 1}
    results = {"experiment table1": {"observations": [], "claims": [claim | {"unit": "points"}]}}
    document = {"stages": [], "results": results, **more}

    def ended(*_: object) -> tuple[dict[str, Any], None]:
        document["run_id"] = Store.open().parent_runs.begin(PipelineInfo("reproduce", "", {}, StoredRequest({})))
        return document, None

    monkeypatch.setattr("flows.cli.experiments._run_or_plan", ended)
    return document


@pytest.mark.integration
def test_all_has_claims_and_identities_and_keeps_them_with_its_run(
    dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = an_ended_run(monkeypatch)
    out = tmp_path / "new" / "mine.md"
    told = dpr("reproduce", "all", "--instances", 2, "--recipe", TINY, "--out", out, "--json").json
    assert [claim["claim"] for claim in told["claims"]] == ["a > b"]
    assert {"name", "residual", "tolerance", "holds"} <= set(told["identities"][0])
    assert told["run_id"] == document["run_id"]
    text = out.read_text(encoding="utf-8")
    assert "\n## Theory\n" in text
    kept = mlflow.artifacts.download_artifacts(
        run_id=told["run_id"], artifact_path="results", tracking_uri=f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    )
    assert Path(kept, "mine.md").read_text(encoding="utf-8") == text
    for verdicts in (Path(kept, "mine", "verdicts.json"), out.parent / "mine" / "verdicts.json"):
        assert json.loads(verdicts.read_text()) == {name: told[name] for name in ("claims", "identities")}


@pytest.mark.integration
def test_what_the_document_quotes_is_shown_to_the_letter(
    dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_ended_run(monkeypatch, failed={"seed=1": "judge: 502 <b>\n# \x1b[31mBad | gateway"})
    monkeypatch.setattr("sys.argv", ["dpr", "reproduce", "table1", "--set", "description=a `b` c"])
    out = tmp_path / "mine.md"
    shown = dpr("reproduce", "table1", "--recipe", TINY, "--out", out, "--json")
    assert shown.json["failed"]
    text = out.read_text(encoding="utf-8")
    assert "Made by `` dpr reproduce table1 --set 'description=a `b` c' ``." in text
    [failed] = [line for line in text.splitlines() if line.startswith("- ")]
    assert failed == "- seed=1: judge: 502 \\<b\\>\u21b5\\# \u27e8U+001B\u27e9\\[31mBad \\| gateway"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table1", "--out", "{here}"], "give the name of a file"),
        (["table1", "--out", "{here}/results"], "give the name of a file"),
        (["table1", "--out", "{here}/file/results.md"], "cannot be made"),
        (["theory", "--plan"], "theory trains nothing"),
        (["theory", "--set", "seed=1"], "theory trains nothing"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_done(
    dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr("flows.cli.experiments._run_or_plan", lambda *_: pytest.fail("ran"))
    monkeypatch.setattr("flows.cli.experiments._theory", lambda *_: pytest.fail("ran"))
    (tmp_path / "file").write_text("")
    dpr("reproduce", *(argument.format(here=tmp_path) for argument in arguments)).assert_refused(2, words)
