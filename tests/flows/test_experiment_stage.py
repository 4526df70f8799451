"""The stage that puts reports side by side, on the tiny pipeline with two seeds and both ablations."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpr_core.config.pipeline import ExperimentConfig, PipelineConfig
from dpr_core.errors import UsageError
from dpr_core.experiments.exhibits import EXHIBITS
from flows import wiring
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome, run_stage
from tasks.stages.experiment import STAGE

pytestmark = [pytest.mark.integration, pytest.mark.slow]

POINTS: dict[str, dict[str, Any]] = {"seed=0": {"seed": 0}, "seed=1": {"seed": 1}}


@dataclass(frozen=True)
class Experiments:
    store: Store
    outcomes: list[dict[str, Outcome]]
    """Of each seed's pipeline, by the node's name."""

    def inputs(self) -> dict[str, str]:
        reports = {f"seed={seed}": each["report"].id for seed, each in enumerate(self.outcomes)}
        return reports | {f"diagnose seed={seed}": each["diagnose"].id for seed, each in enumerate(self.outcomes)}

    def run(self, exhibit: str, points: dict[str, dict[str, Any]] = POINTS, **more: Any) -> Outcome:
        config = ExperimentConfig.model_validate({"exhibit": exhibit, "title": f"A {exhibit}", "points": points})
        return run_stage(STAGE, config, more.pop("inputs", self.inputs()), store=self.store, **more)

    def read(self, outcome: Outcome, name: str) -> Any:
        text = (self.store.fetch(outcome.id).path / name).read_text(encoding="utf-8")
        return json.loads(text) if name.endswith(".json") else text


@pytest.fixture(scope="module")
def experiments(
    tmp_path_factory: pytest.TempPathFactory,
    open_store: Callable[[Path], Store],
    tiny: Callable[..., PipelineConfig],
    run_graph: Callable[..., dict[str, Outcome]],
) -> Experiments:
    store = open_store(tmp_path_factory.mktemp("experiments") / "home")
    small = ("diagnose={prompts: 4, samples: 2, demonstrations: 8, max_response_tokens: 12}",)
    ablated = [text for text in EXHIBITS["table2"].assignments if text != "diagnose=null"]
    configs = [tiny(*ablated, *small, f"seed={seed}") for seed in (0, 1)]
    return Experiments(store, [run_graph(store, wiring.nodes(config)) for config in configs])


def test_observations_are_what_the_reports_say(experiments: Experiments) -> None:
    outcome = experiments.run("table2")
    seen = experiments.read(outcome, "observations.json")
    assert [(each["point"], each["policy"]) for each in seen] == [
        (f"seed={seed}", policy) for seed in (0, 1) for policy in ("SFT", "DPR", "with-value", "without-baseline")
    ]
    for seed, made in enumerate(experiments.outcomes):
        table = json.loads((experiments.store.fetch(made["report"].id).path / "table.json").read_text())
        rows = {row["policy"]: row for row in table["rows"]}
        for each in (each for each in seen if each["seed"] == seed):
            row = rows[each["policy"]]
            assert each["win_rate"] == (50.0 if each["policy"] == "SFT" else row["win_rate"])
            assert (each["accuracy"], each["kl_to_sft"]) == (row["accuracy"], row["kl_to_sft"])
            assert each["sft"] == experiments.store.record(made["sft"].id).digest[:12]
            assert each["values"] == {}
    assert len(list(csv.reader(experiments.read(outcome, "observations.csv").splitlines()))) == 9


def test_metrics_come_from_the_policys_own_ancestors(experiments: Experiments) -> None:
    seen = experiments.read(experiments.run("table2"), "observations.json")
    metrics = {each["policy"]: each["metrics"] for each in seen if each["seed"] == 1}
    made, store = experiments.outcomes[1], experiments.store
    for policy, node, reward in (("DPR", "reinforce", "reward"), ("with-value", "with-value", "reward of with-value")):
        assert metrics[policy]["rollout/length"] == store.record(made[node].id).results["rollout/length"]
        assert metrics[policy]["reward/token_mean"] == store.record(made[reward].id).results["reward/token_mean"]
    auroc = store.record(made["diagnose"].id).results["diagnose/credit_auroc"]
    assert metrics["DPR"]["diagnose/credit_auroc"] == auroc
    # Another reward was not diagnosed, and SFT has none.
    assert not any(name.startswith("diagnose/") for name in metrics["with-value"])
    assert not any(name.startswith(("reward/", "diagnose/")) for name in metrics["SFT"])


def test_verdicts_tables_and_plots_are_written(experiments: Experiments) -> None:
    outcome = experiments.run("table2")
    claims = experiments.read(outcome, "claims.json")
    assert [each["claim"] for each in claims] == [claim.name for claim in EXHIBITS["table2"].claims]
    assert {each["seeds"] for each in claims} == {2}
    seen = experiments.read(outcome, "observations.json")
    rates = {(each["seed"], each["policy"]): each["win_rate"] for each in seen}
    effect = sum(rates[seed, "DPR"] - rates[seed, "with-value"] for seed in (0, 1)) / 2
    assert claims[0]["effect"] == pytest.approx(effect)
    folder = experiments.store.fetch(outcome.id).path
    assert sorted(path.name for path in (folder / "plots").iterdir()) == ["accuracy.png", "win_rate.png"]
    text = experiments.read(outcome, "results.md")
    assert "## A table2" in text
    assert "(plots/win_rate.png)" in text
    assert "A table2" in experiments.read(outcome, "results.html")
    counts = {name: value for name, value in outcome.metrics.items() if name.startswith("claims/")}
    assert sum(counts.values()) == len(claims)
    assert outcome.metrics["seconds/DPR"] > 0
    assert "seconds/SFT" not in outcome.metrics


def test_figure1_has_its_numbers_and_the_page(experiments: Experiments) -> None:
    outcome = experiments.run("figure1")
    aurocs = [each["diagnose"].metrics["diagnose/credit_auroc"] for each in experiments.outcomes]
    claims = {each["claim"]: each for each in experiments.read(outcome, "claims.json")}
    assert claims["r is low on a wrong token"]["effect"] == pytest.approx(sum(aurocs) / 2 - 0.5)
    reward = experiments.store.fetch(experiments.outcomes[0]["reward"].id)
    assert experiments.read(outcome, "credit.html") == (reward.path / "credit.html").read_text(encoding="utf-8")
    assert (experiments.store.fetch(outcome.id).path / "plots" / "detection.png").is_file()


def test_figure4a_reads_the_answers_by_position(experiments: Experiments) -> None:
    seen = experiments.read(experiments.run("figure4a"), "observations.json")
    profiles = {each["policy"]: each["profile"] for each in seen if each["seed"] == 0}
    answers = experiments.store.fetch(experiments.outcomes[0]["answer DPR on lab"].id)
    assert profiles["DPR"] == json.loads((answers.path / "profile.json").read_text())
    assert profiles["DPR"][0]["answers"] == 12


def test_a_sweep_has_a_table_and_claims_nothing(experiments: Experiments) -> None:
    outcome = experiments.run("sweep", {"seed=0": {"seed": 0, "x": 1}, "seed=1": {"seed": 1, "x": 1}})
    assert not (experiments.store.fetch(outcome.id).path / "claims.json").exists()
    assert "| 1 | DPR | " in experiments.read(outcome, "results.md")


def test_points_stand_in_the_order_asked_for_and_the_missing_are_named(experiments: Experiments) -> None:
    points = {name: {"seed": seed} for name, seed in (("seed=1", 1), ("gone", 2), ("seed=0", 0))}
    outcome = experiments.run("table2", points)
    seen = experiments.read(outcome, "observations.json")
    assert list(dict.fromkeys(each["point"] for each in seen)) == ["seed=1", "seed=0"]
    for page in ("results.md", "results.html"):
        assert "Missing, without a report: gone." in experiments.read(outcome, page)


def test_a_policy_whose_name_ends_like_another_is_not_taken_for_it(experiments: Experiments) -> None:
    from tasks.stages.experiment import observed

    records = {
        "judge of A-DPR": SimpleNamespace(stage="judge", inputs={"candidate": "A-DPR", "baseline": "SFT"}),
        "judge of DPR": SimpleNamespace(stage="judge", inputs={"candidate": "DPR", "baseline": "SFT"}),
    }
    report = SimpleNamespace(
        path=experiments.store.fetch(experiments.outcomes[0]["report"].id).path,
        inputs={"A-DPR on lab": "judge of A-DPR", "DPR on lab": "judge of DPR", "with-value on lab": "judge of DPR",
                "without-baseline on lab": "judge of DPR"},
    )  # fmt: skip
    asked: list[tuple[str, str]] = []
    ancestry = SimpleNamespace(
        record=records.get,
        policy=lambda name, answers: asked.append((name, answers)),
        sft=lambda source: SimpleNamespace(config={"seed": 0}, digest="d"),
        metrics=lambda source: {},
    )
    observed("p", {}, report, ancestry, False)  # type: ignore[arg-type]
    assert asked[:2] == [("SFT", "SFT"), ("DPR", "DPR")]


def test_the_same_inputs_are_the_same_bytes(experiments: Experiments) -> None:
    first = experiments.run("table2")
    second = experiments.run("table2", not_before=datetime.now(UTC))
    assert first.id != second.id
    assert experiments.store.record(first.id).digest == experiments.store.record(second.id).digest


def test_a_report_of_no_point_is_refused(experiments: Experiments) -> None:
    with pytest.raises(UsageError, match=r"the report 'seed=1' is of none of the points: seed=0"):
        experiments.run("table2", {"seed=0": {"seed": 0}})
    with pytest.raises(UsageError, match="at least one report"):
        experiments.run("table2", {}, inputs={})
