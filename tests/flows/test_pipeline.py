"""The whole method on the tiny lab, stage by stage, without Prefect."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import UsageError
from flows import wiring
from flows.dispatch import dispatch
from flows.requests import RunRequest
from flows.run_document import pipeline_run, stage_entry
from tasks.artifacts.store import Store
from tasks.graph import plan
from tasks.run_stage import Outcome
from tasks.stages import judge as judge_stage

pytestmark = pytest.mark.integration

Tiny = Callable[..., PipelineConfig]
RunGraph = Callable[..., dict[str, Outcome]]
OpenStore = Callable[[Path], Store]


@dataclass(frozen=True)
class Built:
    """A pipeline run in this process."""

    store: Store
    parent: str
    outcomes: dict[str, Outcome]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.store.home / 'mlflow.db'}")

    def last_step(self, name: str) -> int:
        return max(metric.step for metric in self.client.get_run(self.outcomes[name].id).data._metric_objs)

    def files(self, name: str) -> set[str]:
        """Every file of a stage's MLflow run, or of the pipeline's own."""
        run_id = self.parent if name == "pipeline" else self.outcomes[name].id
        found, folders = set(), [""]
        while folders:
            for entry in self.client.list_artifacts(run_id, folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    found.add(entry.path)
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, open_store: OpenStore, run_graph: RunGraph, tiny: Tiny) -> Built:
    store = open_store(tmp_path_factory.mktemp("built") / "home")
    config = tiny()
    with pipeline_run(store, dispatch(RunRequest(config=config), store).info) as document:
        outcomes = run_graph(store, wiring.nodes(config), document["run_id"])
        document["stages"] += [stage_entry(outcome) for outcome in outcomes.values()]
    return Built(store, document["run_id"], outcomes)


def digests(store: Store, ids: dict[str, str]) -> dict[str, str | None]:
    return {name: store.record(run_id).digest for name, run_id in ids.items()}


def ids_of(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.id for name, outcome in outcomes.items()}


def test_every_stage_runs_once_and_is_sound(built: Built, tiny: Tiny) -> None:
    assert list(built.outcomes) == [node.name for node in wiring.nodes(tiny())]
    assert {outcome.status for outcome in built.outcomes.values()} == {"ran"}
    for name, outcome in built.outcomes.items():
        assert built.store.verify(outcome.id) == [], name


def test_a_second_run_reuses_everything(built: Built, run_graph: RunGraph, tiny: Tiny) -> None:
    again = run_graph(built.store, wiring.nodes(tiny("name=renamed", "sft.execution.threads=1")))
    assert {outcome.status for outcome in again.values()} == {"reused"}
    assert ids_of(again) == ids_of(built.outcomes)
    assert {name: o.metrics for name, o in again.items()} == {name: o.metrics for name, o in built.outcomes.items()}


def test_a_changed_seed_of_reinforce_runs_only_what_is_built_on_it(
    built: Built, run_graph: RunGraph, tiny: Tiny
) -> None:
    config = tiny("reinforce.seed=1")
    nodes = wiring.nodes(config)
    anew = {"reinforce", "answer DPR on lab", "judge DPR on lab", "report"}
    planned = {step.name: step for step in plan(nodes, built.store, pipeline=config.name)}
    assert {name for name, step in planned.items() if step.status == "run"} == anew
    assert planned["reinforce"].why == "seed: 0 -> 1"
    outcomes = run_graph(built.store, nodes)
    assert {name for name, outcome in outcomes.items() if outcome.status == "ran"} == anew
    before, after = digests(built.store, ids_of(built.outcomes)), digests(built.store, ids_of(outcomes))
    assert {name for name in before if before[name] != after[name]} == anew


def test_the_same_seed_gives_the_same_digests_in_another_home_and_process(
    built: Built, made: Any, open_store: OpenStore
) -> None:
    elsewhere = {entry["name"]: entry["id"] for entry in made.result.json["stages"]}
    ours = ids_of(built.outcomes)
    assert set(ours.values()).isdisjoint(elsewhere.values())
    assert digests(built.store, ours) == digests(open_store(made.home), elsewhere)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "algorithm", "formula"),
    [
        ("llama", "algorithm1", "baseline_relative"),
        ("llama", "sequence_reinforce", "baseline_relative"),
        ("qwen2", "reinforce_plus_plus", "with_value"),
        ("mistral", "algorithm1", "without_baseline"),
        ("gemma3", "reinforce_plus_plus", "baseline_relative"),
    ],
)
def test_families_algorithms_and_formulas(
    family: str,
    algorithm: str,
    formula: str,
    tmp_path: Path,
    open_store: OpenStore,
    run_graph: RunGraph,
    tiny: Tiny,
) -> None:
    config = tiny(
        f"backbone.family={family}",
        f"reinforce.algorithm.type={algorithm}",
        f"reinforce.batch_size={8 if algorithm == 'algorithm1' else 4}",
        f"reward.formula={formula}",
        "evaluation.controls={}",
    )
    store = open_store(tmp_path / "home")
    trained = ("backbone", "subsample", "sft", "reward", "reinforce")
    outcomes = run_graph(store, [node for node in wiring.nodes(config) if node.stage in trained])
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(trained, "ran")
    assert outcomes["reinforce"].metrics["rollout/length"] > 0


def test_sft_starts_from_a_plain_checkpoint_of_the_disk(
    built: Built, tmp_path: Path, run_graph: RunGraph, tiny: Tiny
) -> None:
    exported = built.store.fetch(built.outcomes["backbone"].id).path / "model"
    pretrained = f"backbone={{type: pretrained, name: {exported}, dtype: float32}}"
    nodes = [node for node in wiring.nodes(tiny(pretrained)) if node.name in ("subsample", "sft")]
    outcomes = run_graph(built.store, nodes)
    assert outcomes["sft"].status == "ran"
    assert outcomes["sft"].metrics["train/loss"] == built.outcomes["sft"].metrics["train/loss"]


TRAINING = {"train/loss", "train/learning_rate", "train/tokens_per_second", "train/gradient_norm"}
ROLLOUTS = {f"rollout/{name}" for name in ("reward", "return", "kl", "entropy", "length", "eos_rate")}


@pytest.mark.parametrize(
    ("stage", "names", "points"),
    # The guard has the policy drawn from once more after the two iterations.
    [("sft", TRAINING, 3), ("reinforce", TRAINING | {"train/clip_fraction"}, 4), ("reinforce", ROLLOUTS, 3)],
)
def test_metrics_are_logged_over_steps(built: Built, stage: str, names: set[str], points: int) -> None:
    run_id = built.outcomes[stage].id
    for name in names:
        steps = {metric.step for metric in built.client.get_metric_history(run_id, name)}
        assert len(steps) == points, name


def test_params_are_the_settings_by_their_dotted_names(built: Built) -> None:
    params = built.client.get_run(built.outcomes["reinforce"].id).data.params
    assert params["algorithm.type"] == "reinforce_plus_plus"
    assert params["algorithm.kl_weight"] == "0.1"
    assert params["rollout_batch_size"] == "8"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("backbone", {"output/model/model.safetensors", "output/model/config.json"}),
        ("subsample", {"samples/demonstrations.json"}),
        ("sft", {f"output/checkpoints/{fraction}/model.safetensors" for fraction in ("0.34", "0.5", "1.0")}),
        (
            "reward",
            {"output/credit.html", "credit/credit.html", "output/demonstrations.jsonl", "plots/reward_by_position.png"},
        ),
        ("diagnose", {"output/diagnosis.json", "output/diagnosis.md", "plots/return_by_length.png"}),
        ("reinforce", {"output/policy/model.safetensors", "plots/training.png"}),
        ("answer DPR on lab", {"output/answers.jsonl", "samples/answers.json"}),
        ("judge DPR on lab", {"output/games.jsonl", "output/win_rate.json"}),
        ("report", {"output/table.json", "output/report.md", "output/report.html", "plots/win_rates.png"}),
    ],
)
def test_every_run_holds_its_config_manifest_payload_plots_and_samples(
    built: Built, stage: str, expected: set[str]
) -> None:
    files = built.files(stage)
    assert files >= expected | {"config.yaml", "MANIFEST.json"}


def test_reinforce_shows_samples_of_completions(built: Built) -> None:
    assert [path for path in built.files("reinforce") if path.startswith("samples/")]


@pytest.mark.parametrize(
    ("stage", "name", "context"),
    [
        ("subsample", "lab additions", "training"),
        ("sft", "demonstrations", "training"),
        ("reinforce", "demonstrations", "training"),
        ("answer DPR on lab", "lab", "evaluation"),
    ],
)
def test_mlflow_lists_the_datasets_that_a_stage_reads(built: Built, stage: str, name: str, context: str) -> None:
    [listed] = built.client.get_run(built.outcomes[stage].id).inputs.dataset_inputs
    assert (listed.dataset.name, listed.tags[0].value) == (name, context)
    if name == "demonstrations":
        sample = built.store.fetch(built.outcomes["subsample"].id).path
        assert json.loads((sample / "summary.json").read_text())["content_hash"].startswith(listed.dataset.digest)
        assert json.loads(listed.dataset.profile) == {"num_rows": 24}


def test_mlflow_lists_checkpoints_and_policies_as_models_with_what_was_measured_of_them(built: Built) -> None:
    sft, policy = built.outcomes["sft"].id, built.outcomes["reinforce"].id
    client = built.client
    models = {model.name: model for model in client.search_logged_models([client.get_run(sft).info.experiment_id])}
    assert set(models) == {"sft 0_34", "sft 0_5", "sft 1_0", "reinforce"}
    assert {model.status for model in models.values()} == {"READY"}
    for run_id, steps in ((sft, [1, 1, 3]), (policy, [built.last_step("reinforce")])):
        assert sorted(output.step for output in client.get_run(run_id).outputs.model_outputs) == steps
    assert models["sft 0_5"].tags["dpr.uri"] == f"runs:/{sft}/output/checkpoints/0.5"
    [loss] = models["sft 0_5"].metrics
    assert (loss.key, loss.step) == ("train/loss", 1)
    assert models["reinforce"].params["algorithm.kl_weight"] == "0.1"
    shown = {metric.key: (metric.value, metric.dataset_name) for metric in models["reinforce"].metrics}
    assert shown["rollout/kl"][1] is None
    judged = built.outcomes["judge DPR on lab"].metrics
    assert shown["judge/win_rate"] == (judged["judge/win_rate"], "lab")
    assert shown["answer/accuracy"][1] == "lab"
    assert not (built.store.home / "artifacts" / "models").exists()


def test_a_share_of_the_games_is_traced_with_what_they_were_worth(
    built: Built, run_graph: RunGraph, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, experiment = built.client, built.client.get_run(built.parent).info.experiment_id
    assert client.search_traces(locations=[experiment]) == []
    monkeypatch.setenv("DPR_TRACE_SHARE", "0.5")
    judge = run_graph(built.store, wiring.nodes(tiny("judge.bootstrap_samples=101")))["judge DPR on lab"]
    rows = (built.store.fetch(judge.id).path / "games.jsonl").read_text().splitlines()
    games = [json.loads(row) for row in rows]
    found = client.search_traces(locations=[experiment])
    traces = [trace for trace in found if trace.info.trace_metadata["mlflow.sourceRun"] == judge.id]
    assert 0 < len(traces) < len(games)
    for trace in traces:
        [assessment] = trace.info.assessments
        [span] = trace.data.spans
        [game] = [g for g in games if g["raw"] == span.outputs and trace.info.trace_id == _trace_id(judge.id, g)]
        assert (assessment.name, assessment.feedback.value) == ("candidate", game["score"])
        assert span.inputs["question"][0].startswith("Start at")
    monkeypatch.setenv("DPR_TRACE_SHARE", "5 %")
    with pytest.raises(UsageError, match="DPR_TRACE_SHARE: '5 %' is no share"):
        judge_stage.preflight([])


def _trace_id(run: str, game: dict[str, Any]) -> str:
    name = f"{run} {game['question_id']} {game['candidate_first']}"
    return f"tr-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def test_rows_of_policies_that_cannot_be_made_end_no_pipeline(
    built: Built, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("kl_to_sft")

    monkeypatch.setattr("flows.run_document.rows_of", fail)
    info = dispatch(RunRequest(config=tiny("judge.bootstrap_samples=103")), built.store).info
    with pipeline_run(built.store, info) as document:
        pass
    assert built.client.get_run(document["run_id"]).info.status == "FINISHED"
    assert "policies are not listed in MLflow: 'kl_to_sft'" in caplog.text


def test_one_parent_run_holds_the_stages_and_the_results(built: Built) -> None:
    parent = built.client.get_run(built.parent)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "tiny")
    assert built.files("pipeline") >= {"config.yaml", "run.json"}
    for name, outcome in built.outcomes.items():
        run = built.client.get_run(outcome.id)
        assert run.data.tags["mlflow.parentRunId"] == built.parent
        assert run.info.run_name == name
        assert len(run.data.tags["mlflow.note.content"]) > 20


def test_every_policy_is_a_row_under_its_pipeline(built: Built) -> None:
    under = f"tags.`mlflow.parentRunId` = '{built.parent}' AND tags.`dpr.policy` LIKE '%'"
    runs = {run.info.run_name: run for run in built.client.search_runs(["1"], under)}
    assert set(runs) == {"SFT", "DPR", "extrapolated"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    table = json.loads((built.store.fetch(built.outcomes["report"].id).path / "table.json").read_text())
    for row in table["rows"]:
        assert runs[row["policy"]].data.metrics == {
            "win_rate": 0.5 if row["policy"] == "SFT" else row["win_rate"] / 100,
            "accuracy": row["accuracy"],
            "kl": row["kl_to_sft"],
            "tokens": row["response_tokens"],
            "repetition": row["repetition"],
            "refusals": row["refusals"],
        }
    made_of = json.loads(runs["DPR"].data.tags["dpr.made_of"])
    assert made_of == {
        "reinforce": built.outcomes["reinforce"].id,
        "answer on lab": built.outcomes["answer DPR on lab"].id,
        "judge on lab": built.outcomes["judge DPR on lab"].id,
        "report": built.outcomes["report"].id,
    }
    assert all(
        f"(#/experiments/1/runs/{each})" in runs["DPR"].data.tags["mlflow.note.content"] for each in made_of.values()
    )
    assert runs["DPR"].data.params["reinforce.algorithm.kl_weight"] == "0.1"
    assert runs["extrapolated"].data.params["policy.k"] == "2.0"
    assert not {run.info.run_id for run in runs.values()} & {record.id for record in built.store.records()}


def test_a_reward_is_diagnosed_before_it_is_trained_on(built: Built) -> None:
    found = json.loads((built.store.fetch(built.outcomes["diagnose"].id).path / "diagnosis.json").read_text())
    metrics = built.outcomes["diagnose"].metrics
    assert ["go", "caution", "stop"].index(found["verdict"]) == metrics["diagnose/verdict"]
    assert all(reason["text"].endswith(".") for reason in found["reasons"])
    assert metrics["diagnose/answers"] == 8
    assert metrics["diagnose/corrupted"] == 4
    assert metrics["diagnose/noise_share"] < 1e-3
    assert found["measured"]["correctness"]["prompts"] == 4


def test_a_reward_of_demonstrations_that_announce_no_result_is_diagnosed_without_correctness(
    built: Built, tmp_path: Path, run_graph: RunGraph, tiny: Tiny
) -> None:
    sample = built.store.fetch(built.outcomes["subsample"].id).path / "demonstrations.jsonl"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(sample.read_text().replace("The answer is ", "So it is "))
    source = f"subsample.source={{type: file, path: {rows}, columns: {{prompt: prompt, system: system}}}}"
    wanted = ("backbone", "subsample", "sft", "reward", "diagnose")
    outcomes = run_graph(built.store, [node for node in wiring.nodes(tiny(source)) if node.stage in wanted])
    metrics = outcomes["diagnose"].metrics
    assert not any("auroc_return" in name or "accuracy" in name for name in metrics)
    assert metrics["diagnose/answers"] == 8
    page = (built.store.fetch(outcomes["diagnose"].id).path / "diagnosis.md").read_text()
    assert "not measured" in page
