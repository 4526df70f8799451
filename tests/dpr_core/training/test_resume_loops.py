"""REINFORCE and self-play, interrupted after any of their steps and taken up again, end with the same bits."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.imitation import GsilConfig, SelfPlayConfig, SpinConfig
from dpr_core.config.reinforce import (
    Algorithm1Config,
    KLLinearConfig,
    KLStopConfig,
    KLTargetConfig,
    PPOConfig,
    ReinforceConfig,
    ReinforcePlusPlusConfig,
    SequenceReinforceConfig,
    WitnessStopConfig,
)
from dpr_core.config.training import ExecutionConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.hooks import KEPT_FILE
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import optimizer_steps
from dpr_core.training.self_play_loop import SelfPlay
from dpr_core.training.trainer import Trainer
from tests.interruption import Interruptible, assert_the_same_however_interrupted

PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,), (1, 1)]
ROWS = [
    TokenSequence((1, 2), (3, 3, 0)),
    TokenSequence((3,), (1, 0)),
    TokenSequence((4, 4, 1), (2, 4, 1, 3, 0)),
    TokenSequence((2,), (0,)),
    TokenSequence((1,), (4, 2, 0)),
]
EOS = 0


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def decode(ids: Any) -> str:
    return " ".join(map(str, ids))


def disturbed(toy: Callable[..., Any]) -> Any:
    """The model of a new process, whose random numbers are anywhere."""
    model = toy(0)
    torch.manual_seed(random.randrange(1000))
    return model


SETTINGS: dict[str, dict[str, Any]] = {
    "algorithm 1": {"algorithm": Algorithm1Config(), "batch_size": 8},
    "target control": {
        "algorithm": ReinforcePlusPlusConfig(kl_weight=0.1, kl_schedule=KLTargetConfig(sequence_kl=0.05))
    },
    "linear control": {
        "algorithm": ReinforcePlusPlusConfig(kl_weight=0.1, kl_schedule=KLLinearConfig(final_weight=0.0))
    },
    "sequence reward": {"algorithm": SequenceReinforceConfig(), "samples_per_prompt": 2},
    "critic": {"algorithm": PPOConfig(critic_learning_rate=1e-2, critic_warmup_iterations=1, gae_lambda=0.9)},
    "stopped": {"guard": KLStopConfig(max_sequence_kl=0.35), "learning_rate": 5e-3},
    "stopped, one step each": {"guard": KLStopConfig(max_sequence_kl=0.35), "learning_rate": 2e-2, "batch_size": 8},
    "kept at KLs": {
        "keep_at_kl": (0.01, 0.1, 0.2, 9.0),
        "guard": KLStopConfig(max_sequence_kl=0.35),
        "learning_rate": 5e-3,
    },
    "rolled back": {"guard": WitnessStopConfig(window=2), "learning_rate": 5e-2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_reinforce(toy: Callable[..., Any], tmp_path: Path, name: str) -> None:
    small = {"batch_size": 4, "rollout_batch_size": 8, "iterations": 4, "max_response_tokens": 3, "learning_rate": 1e-2}
    config = ReinforceConfig(**{**small, **SETTINGS[name]})

    def run(recorder: Interruptible) -> Any:
        model = disturbed(toy)
        policy = Policy(model)
        trainer = Trainer(policy, config, optimizer_steps(len(PROMPTS), config), ExecutionConfig(), recorder=recorder)
        reward = TokenReward(Policy(toy(0)), Policy(toy(1)), "baseline_relative")
        shots = recorder.folder.with_name(f"{recorder.folder.name} kept")

        def keep(folder: Path) -> None:
            folder.mkdir(parents=True)
            torch.save(weights(model), folder / "weights")

        loop = ReinforceLoop(
            policy, InProcessEngine(model), reward, trainer, config, EOS, decode, recorder, keep, shots
        )
        measured = loop.run(PROMPTS)
        kept = {path.name: torch.load(path / "weights") for path in shots.glob("*")}
        told = {path.name: json.loads((path / KEPT_FILE).read_text()) for path in shots.glob("*")}
        return {"measured": measured, "weights": weights(model), "kept": kept, "told": told}

    kept = assert_the_same_however_interrupted(run, tmp_path / "runs")
    measured = run(Interruptible(tmp_path / "once more"))["measured"]
    stopped = name.startswith(("stopped", "kept"))
    assert ("guard/stopped_at_iteration" in measured) == stopped
    assert ("guard/kept_iteration" in measured) == (stopped or name == "rolled back")
    assert 1 < kept < 5 if stopped else kept == 5


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [None, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": SpinConfig(beta=0.3), "mix_previous": True, "rounds": 3},
        {"method": GsilConfig(loss="brier", scale=0.2, shift=0.3), "rounds": 2, "later_learning_rate": 3e-3},
    ],
    ids=["spin", "gsil"],
)
def test_self_play(toy: Callable[..., Any], tmp_path: Path, settings: dict[str, Any], pairs: int | None) -> None:
    config = SelfPlayConfig(
        **{"learning_rate": 1e-2, "batch_size": 2, "max_response_tokens": 4, "pairs": pairs, "epochs": 1} | settings
    )
    decoded = []

    def run(recorder: Interruptible) -> Any:
        model = disturbed(toy)
        engine = InProcessEngine(model, rows=1)
        draw_wave = engine._wave
        engine._wave = lambda *wave: decoded.append(0) or draw_wave(*wave)  # type: ignore[method-assign]
        loop = SelfPlay(Policy(model), engine, config, EOS, decode, recorder)
        return {"measured": loop.run(ROWS * 2), "weights": weights(model)}

    run(Interruptible(tmp_path / "whole"))
    drawn_in_one = len(decoded)
    kept = assert_the_same_however_interrupted(run, tmp_path / "runs")
    assert len(decoded) == drawn_in_one * (kept + 3), "no wave is drawn twice"
    waves = 2 if pairs is None else 1
    assert drawn_in_one == waves * config.rounds
