"""`dpr plan`: what a run would need, by arithmetic alone, and the words for what cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.planning.hours import gpu_named
from flows import planning, recipes

Dpr = Callable[..., Any]

TINY = Path(__file__).with_name("tiny.yaml")
GIB = 2**30


def _stages(document: Any) -> dict[str, Any]:
    return {stage["name"]: stage for stage in document["stages"]}


def test_an_8b_model_does_not_fit_one_gpu_and_why(dpr: Dpr, tmp_path: Path) -> None:
    document = dpr("plan", "llama-3.1-8b", "--json").json
    weights = 4 * 8_030_261_248
    # 32 layers: four attention matrices, two of them with 8 of the 32 heads, and three of the feed-forward block.
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    sft, reinforce = (_stages(document)[name] for name in ("sft", "reinforce"))
    # REINFORCE is fullest while it draws, and has no gradients then.
    for parts, gradients in ((sft["parts"], weights), (reinforce["parts"], 0)):
        assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (weights, gradients, 2 * weights)
    assert (sft["parts"]["scorers"], reinforce["parts"]["scorers"]) == (0, 2 * weights)
    rounded = dpr("plan", "llama-3.1-8b", "--set", "reward.arithmetic=as_sft", "--json").json
    assert _stages(rounded)["reinforce"]["parts"]["scorers"] == 2 * (weights - 2 * linear)
    assert (sft["fits"], sft["nearest"]) == (False, None)
    assert 4 * weights < sft["least_bytes"] < 5 * weights
    assert _stages(document)["reward"]["fits"]
    assert _stages(rounded)["diagnose"]["nearest"] == {"rollout_rows": 64}
    assert not (tmp_path / "home").exists()


def test_the_nearest_settings_fit_when_they_are_set(dpr: Dpr) -> None:
    given = ("plan", "llama-3.1-8b", "--gpu-memory", "200", "--json")
    sft = _stages(dpr(*given).json)["sft"]
    assert not sft["fits"]
    assert sft["nearest"]
    changes = [f"sft.execution.{name}={value}" for name, value in sft["nearest"].items()]
    again = _stages(dpr(*given, *(word for change in changes for word in ("--set", change))).json)["sft"]
    assert again["fits"]
    assert again["bytes"] <= 180 * GIB < sft["bytes"]


def test_what_does_not_fit_is_a_failure(dpr: Dpr) -> None:
    for memory, status in ((80, 1), (400, 0)):
        for more in ((), ("--json",)):
            assert dpr("plan", "llama-3.1-8b", "--gpu-memory", memory, *more).status == status


def test_faster_settings_that_fit_are_as_fast_as_told_when_they_are_set(dpr: Dpr) -> None:
    given = ("plan", "llama-3.1-8b-lora", "--json")
    few = ("--set", "reinforce.execution.rollout_rows=8")
    reinforce = _stages(dpr(*given, *few).json)["reinforce"]
    changes = reinforce["faster"]["changes"]
    assert reinforce["fits"]
    assert changes["rollout_rows"] > 8
    more = [f"reinforce.execution.{name}={str(value).lower()}" for name, value in changes.items()]
    again = _stages(dpr(*given, *(word for change in more for word in ("--set", change))).json)["reinforce"]
    assert again["fits"]
    assert again["hours"] == pytest.approx(reinforce["faster"]["hours"])
    assert again["hours"] < 0.5 * reinforce["hours"]
    shown = dpr(*given[:-1], *few).stdout
    assert all(change in shown for change in more)


def test_times_are_a_range_by_what_was_measured(dpr: Dpr) -> None:
    given = ("plan", "llama-3.1-8b-lora")
    document = dpr(*given, "--json").json
    low, high = document["hours_range"]
    span = document["utilisation_range"]
    assert low < document["hours"] < high
    assert high / low == pytest.approx(span["most"] / span["least"])
    rows = json.loads((planning.RESULTS / span["sources"][0]).read_text())["benchmarks"]["real_hours"]["rows"]
    assert span["most"] == max(row["utilisation"] for row in rows)
    shown = dpr(*given).stdout
    for words in (" billion", " quintillion", " hours", f"perf/results/{span['sources'][0]}"):
        assert words in shown
    told = dpr(*given, "--utilisation", "0.4", "--json").json
    assert (told["utilisation_range"], told["hours_range"]) == (None, [document["hours"]] * 2)


def test_several_gpus_are_told_of_as_they_would_be(dpr: Dpr) -> None:
    document = dpr("plan", "llama-3.1-8b", "--gpus", "8", "--json").json
    sft = _stages(document)["sft"]
    assert sft["nearest"] is None
    assert sft["nearest_if_sharded"] is not None
    assert (sft["processes"], sft["strategy"], sft["bytes_on_each"]) == (1, None, sft["bytes"])
    assert any("leaves 7 GPUs idle" in said for said in document["assumed"])
    assert "launch.processes=8 launch.strategy=fsdp" in dpr("plan", "llama-3.1-8b", "--gpus", "8").stdout


def test_a_recipe_is_planned_for_the_processes_that_it_launches(dpr: Dpr) -> None:
    document = dpr("plan", "llama-3.1-8b-8gpu", "--json").json
    alone = dpr("plan", "llama-3.1-8b-8gpu", "--json", "--set", "launch.processes=1").json
    assert (document["gpus"], alone["gpus"]) == (8, 1)
    for shared, single in zip(document["stages"], alone["stages"], strict=True):
        assert (shared["processes"], shared["strategy"], shared["bytes"]) == (8, "fsdp", single["bytes"])
        assert shared["fits"]
        assert shared["bytes_on_each"] < 0.5 * single["bytes"] or shared["stage"] == "diagnose"
        assert shared["hours"] == pytest.approx(single["hours"] / 8)
    sixteen = _stages(dpr("plan", "llama-3.1-8b-8gpu", "--gpus", "16", "--json").json)["sft"]
    assert sixteen["processes"] == 16
    assert sixteen["bytes_on_each"] < _stages(document)["sft"]["bytes_on_each"]
    assert "on each GPU" in dpr("plan", "llama-3.1-8b-8gpu").stdout


def test_adapters_need_no_gradients_and_moments_of_all_weights(dpr: Dpr) -> None:
    sft = _stages(dpr("plan", "llama-3.1-8b-lora", "--json").json)["sft"]
    # Of each layer: 4 attention matrices, two with 8 of the 32 heads, and three of the feed-forward block, at rank 64.
    adapters = 4 * 32 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336))
    parts = sft["parts"]
    assert (parts["gradients"], parts["optimizer"]) == (adapters, 2 * adapters)
    # All of these matrices are held rounded, in half of the bytes.
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    assert parts["weights"] == 4 * 8_030_261_248 - 2 * matrices + adapters


BACKBONES = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B", "mistralai/Mistral-7B-v0.1", "google/gemma-3-4b-pt")


MACHINES = ("llama-3.1-8b-lora", "llama-3.1-8b-8gpu", "llama-3.1-8b-2nodes")


@pytest.mark.parametrize(
    ("recipe", "gpu", "backbone"),
    [*((recipe, "h100", each) for recipe in MACHINES for each in BACKBONES), ("gemma-3-4b", "h200", BACKBONES[-1])],
)
def test_the_recipes_for_machines_fit_the_gpus_that_they_are_for(recipe: str, gpu: str, backbone: str) -> None:
    """With the benchmarks of the longest prompts and of two turns, and with controls. For its own backbone, nothing
    that fits is faster; answers of all policies have one setting."""
    benchmarks = "evaluation.benchmarks={arena: {type: arena_hard}, turns: {type: mt_bench}}"
    controls = "evaluation.controls={x: {k: 2}, c: {type: contrastive, k: 2}, b: {type: best_of_n, n: 4, by: reward}}"
    config = recipes.load(recipe, [f"backbone.name={backbone}", benchmarks, controls])
    made = planning.plan(recipe, config, planning.PlanTarget(gpu_named(gpu), None, 0.4))
    assert {stage.stage for stage in made.stages} == {"sft", "reward", "diagnose", "reinforce", "answer"}
    assert [stage.name for stage in made.stages if not stage.fits] == []
    if backbone == recipes.load(recipe).backbone.model_dump()["name"]:
        best = {stage.stage for stage in made.stages if stage.faster is None}
        assert best == {"sft", "reward", "diagnose", "reinforce", "answer"}


def test_a_plan_for_people_holds_every_stage_and_the_dollars(dpr: Dpr) -> None:
    change = "evaluation.benchmarks.alpaca_eval={}"
    shown = dpr("plan", "qwen-2.5-7b", "--set", change, "--gpu", "h200").stdout
    for word in ("sft", "reinforce", "answer DPR", "does not fit", "hours", "What judging would cost", "H200 SXM"):
        assert word in shown


VLLM = ("--set", "reinforce.rollouts.type=vllm")


def _share(share: float) -> tuple[str, str]:
    return "--set", f"reinforce.rollouts.execution.memory_share={share}"


def test_a_vllm_server_takes_its_share_and_draws_in_place_of_the_stage(dpr: Dpr) -> None:
    given = ("plan", "gemma-3-4b", "--gpu", "h200", "--json")
    plain, served = (_stages(dpr(*given, *more).json) for more in ((), VLLM))
    assert plain.pop("reinforce")["server"] is None
    reinforce = served.pop("reinforce")
    assert served == plain, "other stages draw by themselves"
    assert reinforce["server"]["bytes"] == pytest.approx(0.4 * 141 * GIB, abs=1)
    assert reinforce["room_bytes"] == pytest.approx((0.9 - 0.4) * 141 * GIB, abs=1)
    assert set(reinforce["moments"]) == {"scoring", "learning"}
    shown = dpr(*given[:-1], *VLLM).stdout
    assert "vLLM server" in shown
    assert "56.4" in shown


def test_a_server_elsewhere_takes_nothing_here(dpr: Dpr) -> None:
    url = ("--set", "reinforce.rollouts.execution.url=http://127.0.0.1:8000")
    reinforce = _stages(dpr("plan", "gemma-3-4b", *VLLM, *url, "--json").json)["reinforce"]
    assert reinforce["server"] is None
    assert reinforce["room_bytes"] == 72 * GIB
    assert set(reinforce["moments"]) == {"scoring", "learning"}


def test_the_nearest_settings_fit_beside_a_server(dpr: Dpr) -> None:
    """They fit the whole GPU as they are."""
    given = ("plan", "llama-3.1-8b-lora", "--gpu-memory", "119", "--json")
    assert _stages(dpr(*given).json)["reinforce"]["fits"]
    more = (*VLLM, *_share(0.43))
    reinforce = _stages(dpr(*given, *more).json)["reinforce"]
    assert (reinforce["fits"], reinforce["server"]["fits"]) == (False, True)
    assert reinforce["nearest"]
    assert "rollout_rows" not in reinforce["nearest"]
    changes = [f"reinforce.execution.{name}={value}" for name, value in reinforce["nearest"].items()]
    again = _stages(dpr(*given, *more, *(word for change in changes for word in ("--set", change))).json)["reinforce"]
    assert again["fits"]
    assert again["bytes"] <= again["room_bytes"] == reinforce["room_bytes"] < reinforce["bytes"]


def test_a_share_that_does_not_hold_the_weights_is_refused_with_one_that_does(dpr: Dpr) -> None:
    given = ("plan", "llama-3.1-8b-lora", "--gpu", "h200", *VLLM)
    small = _stages(dpr(*given, *_share(0.1), "--json").json)["reinforce"]
    assert (small["fits"], small["server"]["fits"], small["nearest"]) == (False, False, {})
    assert "memory_share=0.11" in " ".join(dpr(*given, *_share(0.1)).stdout.split())
    assert _stages(dpr(*given, *_share(0.11), "--json").json)["reinforce"]["fits"]
    none = " ".join(dpr("plan", "llama-3.1-8b-lora", "--gpu-memory", "12", *VLLM).stdout.split())
    assert "which no share of this GPU is" in none


def test_methods_have_plans_of_their_own(dpr: Dpr) -> None:
    methods = 'methods={ppo: {changes: ["reinforce.algorithm.type=ppo"]}, spin: {type: self_play}}'
    stages = _stages(dpr("plan", "gemma-3-4b", "--set", methods, "--json").json)
    assert stages["spin"]["stage"] == "self_play"
    assert stages["ppo"]["parts"]["weights"] > 1.9 * stages["reinforce"]["parts"]["weights"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "demmo"], ["did you mean demo?"]),
        (["plan", TINY, "--gpu", "h1000"], ["no GPU 'h1000'", "did you mean h100", "4090"]),
    ],
)
def test_a_wrong_request_is_one_sentence(dpr: Dpr, arguments: list[Any], words: list[str]) -> None:
    dpr(*arguments).assert_refused(2, *words)


def test_a_checkpoint_of_another_architecture_is_refused(dpr: Dpr, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    backbone = f"backbone={{type: pretrained, name: {tmp_path / 'other'}}}"
    dpr("plan", TINY, "--set", backbone).assert_refused(2, "type 'gpt2'", "llama, qwen2, mistral, gemma3")


def test_missing_shards_are_named(dpr: Dpr, tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / names[0]).write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    said = dpr("plan", TINY, "--set", f"backbone={{type: pretrained, name: {folder}}}").assert_refused(2, "1 of 2")
    assert names[1] in said
    assert names[0] not in said
