"""Presets: what each sets on a recipe, what it leaves, and that the page of papers has them all."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from dpr_core.config.base import commented_yaml, parse
from dpr_core.config.imitation import GsilConfig, SelfPlayConfig, SpinConfig
from dpr_core.config.pipeline import PipelineConfig, Variant
from dpr_core.config.presets import PRESETS, PresetName, with_preset
from dpr_core.config.reinforce import PPOConfig, ReinforcePlusPlusConfig, extrapolation
from dpr_core.errors import UsageError
from flows import recipes

PAGE = Path(__file__).parents[3] / "docs" / "paper-index.md"
OWN = {"kl_weight": 0.1, "kl_bound": 3.0, "ratio_clip": 0.3}
"""What a recipe may set, and what all algorithms but one have."""


def variant(preset: str, *changes: str) -> Variant:
    methods = {"x": {"preset": preset, "changes": changes}}
    values = {"backbone": {"type": "lab"}, "reinforce": {"algorithm": OWN}, "methods": methods}
    return parse(PipelineConfig, values, "x").variants()["x"]


def test_every_preset_has_its_name_its_settings_and_its_line() -> None:
    assert set(PRESETS) == set(get_args(PresetName))
    page = PAGE.read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        assert bool(preset.changes) != bool(preset.self_play)
        assert preset.departs
        assert re.search(rf"preset:? {name}\b", page), f"docs/paper-index.md has no command for {name}"
        assert preset.paper in page


@pytest.mark.parametrize("name", ["dpr", "sr", "ppo", "with_value", "without_baseline", "srppo"])
def test_a_preset_leaves_what_it_does_not_set_though_the_algorithm_is_of_another_type(name: str) -> None:
    algorithm = variant(name).reinforce.algorithm
    assert {field: getattr(algorithm, field) for field in OWN} == OWN


def test_self_rewarding_ppo() -> None:
    found = variant("srppo")
    assert found.reward.reference == 0
    assert isinstance(found.reinforce.algorithm, PPOConfig)
    assert found.prompts is not None
    assert (found.prompts.source, found.prompts.overlap) == (None, 0)
    half = variant("srppo", "prompts.overlap=0.5", "reinforce.algorithm.gae_lambda=0.9")
    assert half.prompts is not None
    assert half.prompts.overlap == 0.5
    assert half.reinforce.algorithm.gae_lambda == 0.9  # type: ignore[union-attr]


def test_exopd_extrapolates_by_a_quarter() -> None:
    algorithm = variant("exopd").reinforce.algorithm
    assert isinstance(algorithm, ReinforcePlusPlusConfig)
    assert extrapolation(algorithm.kl_weight) == 1.25
    assert (algorithm.gamma, algorithm.whiten, algorithm.kl_schedule, algorithm.ratio_clip) == (0, False, None, 0.3)


def test_distillation_needs_a_teacher() -> None:
    found = variant("opd", "reward.teacher={name: x}")
    assert (found.reward.reference, found.reinforce.algorithm.gamma) == (1, 0)
    with pytest.raises(UsageError, match=r"methods.x.changes: reward: against reference 1.*it needs reward.teacher"):
        variant("opd")


def test_self_play_is_written_out_under_what_is_said_of_it() -> None:
    methods = {"SPIN": {"preset": "spin", "pairs": 320, "seed": 3}, "GSIL": {"preset": "gsil"}}
    config = parse(PipelineConfig, {"backbone": {"type": "lab"}, "seed": 5, "methods": methods}, "x")
    spin, gsil = config.methods.values()
    assert isinstance(spin, SelfPlayConfig)
    assert isinstance(gsil, SelfPlayConfig)
    assert spin.method == SpinConfig(beta=0.1, last_beta=5)
    assert (spin.rounds, spin.epochs, spin.optimizer, spin.later_from_round) == (4, 6, "rmsprop", 3)
    assert (spin.pairs, spin.seed, gsil.seed) == (320, 3, 5)
    assert (gsil.temperature, gsil.batch_size, gsil.optimizer) == (0, 128, "rmsprop")
    own = {name: {"preset": name, "method": {"beta" if name == "spin" else "scale": 0.2}} for name in ("spin", "gsil")}
    spin, gsil = parse(PipelineConfig, {"backbone": {"type": "lab"}, "methods": own}, "x").methods.values()
    assert spin.method == SpinConfig(beta=0.2, last_beta=5)  # type: ignore[union-attr]
    assert gsil.method == GsilConfig(loss="bernoulli", scale=0.2, shift=2.0)  # type: ignore[union-attr]
    assert parse(PipelineConfig, config.model_dump(mode="json"), "x") == config


def test_a_preset_of_the_trained_policy_goes_under_the_changes() -> None:
    plain = recipes.load("demo")
    config = recipes.load("demo", ["reinforce.algorithm.kl_weight=2"], "exopd")
    algorithm = config.reinforce.algorithm
    assert (algorithm.gamma, algorithm.kl_weight) == (0, 2)  # type: ignore[union-attr]
    assert (config.sft, config.reward, config.reinforce.guard) == (plain.sft, plain.reward, plain.reinforce.guard)
    assert "# lambda is 1.5 here, without a teacher and reward.normalise.\n    kl_weight: 2.0\n" in commented_yaml(
        config
    )
    with pytest.raises(UsageError, match="preset spin has no reward to train DPR on; it stands beside it"):
        recipes.load("demo", [], "spin")
    with pytest.raises(UsageError, match="there is no preset 'exod'; presets: dpr, sr,"):
        with_preset({}, "exod")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({}, "methods.x.changes: without a preset and without changes this is the pipeline's own policy again"),
        ({"preset": "exod"}, "methods.x.preset: input should be 'dpr'"),
        ({"preset": "spin", "rouns": 1}, "methods.x.rouns: no such field; did you mean rounds?"),
    ],
)
def test_a_preset_that_is_none_is_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        recipes.load("demo", [f"methods={json.dumps({'x': method})}"])
    assert len(str(raised.value).splitlines()) == 1


def test_lambda_of_no_kl_is_without_bound() -> None:
    assert [extrapolation(beta) for beta in (1e-5, 0.1, 4.0, 0.0)] == pytest.approx([100_001, 11, 1.25, float("inf")])
    assert extrapolation(0.8, taught=True) == 1.25
