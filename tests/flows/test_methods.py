"""The methods without a reward on the tiny lab: their stages, what they start from and what they leave."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from dpr_core.config.imitation import ContinuedSFTConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.training import SFTConfig
from flows import wiring
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome
from tasks.stages.continued_sft import as_sft

METHODS = """methods={
    SPIN: {type: self_play, rounds: 2, pairs: 12, batch_size: 4, learning_rate: 1.0e-3, max_response_tokens: 12},
    GSIL: {type: self_play, method: {type: gsil, loss: brier}, rounds: 1, batch_size: 8, max_response_tokens: 12},
    more: {type: continued_sft, learning_rate: 1.0e-3, batch_size: 8, epochs: 2}}"""

NAMES = ("SPIN", "GSIL", "more")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    open_store: Callable[[Path], Store],
    run_graph: Callable[..., dict[str, Outcome]],
    tiny: Callable[..., PipelineConfig],
) -> tuple[Store, dict[str, Outcome]]:
    """The methods and their answers, without the reward's stages."""
    store = open_store(tmp_path_factory.mktemp("methods") / "home")
    needed = {"backbone", "subsample", "sft", "answer SFT on lab", *NAMES, *(f"answer {name} on lab" for name in NAMES)}
    return store, run_graph(store, [node for node in wiring.nodes(tiny(METHODS)) if node.name in needed])


def _weights(store: Store, outcome: Outcome, folder: str) -> torch.Tensor:
    weights = load_file(store.fetch(outcome.id).path / folder / "model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.integration
def test_each_method_leaves_a_policy_that_answers(trained: tuple[Store, dict[str, Outcome]]) -> None:
    store, outcomes = trained
    before = _weights(store, outcomes["sft"], "checkpoints/1.0")
    found = [_weights(store, outcomes[name], "policy") for name in NAMES]
    assert all(not weights.equal(before) for weights in found)
    assert not found[0].equal(found[1])
    for name in NAMES:
        assert outcomes[f"answer {name} on lab"].metrics["answer/prompts"] == 12
        assert outcomes[name].metrics["data/demonstrations"] == 24


@pytest.mark.integration
def test_continued_sft_starts_at_the_sft_model(trained: tuple[Store, dict[str, Outcome]]) -> None:
    """Its first loss is the SFT model's own, not the backbone's."""
    store, outcomes = trained
    assert _first(store, outcomes["more"], "train/loss") < _first(store, outcomes["sft"], "train/loss") - 0.1


def _first(store: Store, outcome: Outcome, metric: str) -> float:
    history = MlflowClient(f"sqlite:///{store.home / 'mlflow.db'}").get_metric_history(outcome.id, metric)
    return float(min(history, key=lambda point: point.step).value)


@pytest.mark.integration
def test_self_play_reports_its_rounds(trained: tuple[Store, dict[str, Outcome]]) -> None:
    store, outcomes = trained
    client = MlflowClient(f"sqlite:///{store.home / 'mlflow.db'}")
    run = outcomes["SPIN"].id
    rounds = {"rollout/eos_rate": {0, 3}, "train/accuracy": set(range(1, 10))}
    for name, steps in rounds.items():
        # The results of a stage are logged once more at its end.
        assert {point.step for point in client.get_metric_history(run, name)} == steps | {9}
    assert _first(store, outcomes["SPIN"], "train/loss") == pytest.approx(0.6931, abs=1e-3)
    shown = {entry.path for entry in client.list_artifacts(run, "samples")}
    assert shown == {"samples/round-01.json", "samples/round-02.json"}


def test_continued_sft_is_sft_with_its_settings() -> None:
    settings = ContinuedSFTConfig(
        learning_rate=1e-4, batch_size=3, epochs=2, max_prompt_tokens=9, decay="linear", seed=4
    )
    expected = SFTConfig(
        learning_rate=1e-4,
        batch_size=3,
        epochs=2,
        max_prompt_tokens=9,
        decay="linear",
        seed=4,
        checkpoints=(1.0,),
    )
    assert as_sft(settings) == expected


def test_descriptions_say_what_is_done(tiny: Callable[..., PipelineConfig]) -> None:
    said = {name: stage_named(method.type).describe(method) for name, method in tiny(METHODS).methods.items()}  # type: ignore[arg-type]
    assert said["SPIN"].startswith("SPIN: 2 round(s) of self-play, learning rate 0.001, batches of 4 pairs")
    assert said["GSIL"].startswith("GSIL (brier): 1 round(s)")
    assert said["more"].startswith("Supervised fine-tuning, continued: 2 pass(es), learning rate 0.001")
