"""Presets: the members of the method's family, and SPIN and GSIL as their authors run them, each as settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dpr_core.config import reinforce
from dpr_core.config.base import Config, override
from dpr_core.errors import UsageError

PresetName = Literal["dpr", "srppo", "exopd", "opd", "sr", "ppo", "with_value", "without_baseline", "spin", "gsil"]


@dataclass(frozen=True)
class Preset:
    """What a method of the family sets; all else is as the recipe has it."""

    title: str
    paper: str
    """Its number on arXiv, or where it was published."""
    departs: str
    """What differs from the paper, or from its authors' code, beyond the recipe's own settings."""
    changes: tuple[str, ...] = ()
    """As `--set` takes them. An algorithm of another type keeps the settings that both types have."""
    self_play: Mapping[str, Any] = field(default_factory=dict)
    """For a method without a reward: the settings of its stage."""


PRESETS: dict[str, Preset] = {
    "dpr": Preset(
        "Dense-Path REINFORCE",
        "2510.02493",
        "nothing that the paper says",
        (
            "reward.formula=baseline_relative",
            "reward.reference=0.5",
            "reinforce.algorithm.type=reinforce_plus_plus",
            "reinforce.algorithm.gamma=1.0",
        ),
    ),
    "sr": Preset(
        "SR: the reward at the end of the response",
        "2510.02493",
        "nothing that the paper says",
        ("reinforce.algorithm.type=sequence_reinforce",),
    ),
    "ppo": Preset(
        "PPO on the reward at the end of the response",
        "2510.02493",
        "the critic's settings, of which the paper says nothing, are OpenRLHF's",
        ("reinforce.algorithm.type=ppo",),
    ),
    "with_value": Preset(
        "w/V: the reward before shaping", "2510.02493", "nothing that the paper says", ("reward.formula=with_value",)
    ),
    "without_baseline": Preset(
        "wo/Baseline: log pi_SFT as the reward",
        "2510.02493",
        "nothing that the paper says",
        ("reward.formula=without_baseline",),
    ),
    "srppo": Preset(
        "Self-Rewarding PPO",
        "2510.21090",
        "there is no code of the authors; KL weight, learning rates and the critic's settings are the recipe's; the "
        "prompts are unseen rows of the source of SFT's, unless `prompts` names another",
        ("reward.reference=0", "reinforce.algorithm.type=ppo", "prompts.overlap=0"),
    ),
    "exopd": Preset(
        "ExOPD: the token's own log-ratio, extrapolated by lambda = 1.25",
        "2602.12125",
        "pi_T is pi_SFT, so that lambda = 1 + 1 / kl_weight; the authors have a larger teacher (`reward.teacher` with "
        "`reward.reference=1`, for which lambda = 1 / kl_weight), and take one step of each rollout batch. Their cap "
        "of 5 is on the weights of responses that another engine has drawn: `reinforce.rollouts.importance_cap`",
        (
            "reinforce.algorithm.type=reinforce_plus_plus",
            "reinforce.algorithm.gamma=0.0",
            "reinforce.algorithm.kl_weight=4.0",
            "reinforce.algorithm.kl_schedule=null",
            "reinforce.algorithm.kl_bound=1.0e+6",
            "reinforce.algorithm.whiten=false",
        ),
    ),
    "opd": Preset(
        "On-policy distillation: reverse KL to a teacher, token by token",
        "2602.12125",
        "needs `reward.teacher`; log pi_T - log pi_old is the reward against pi_SFT less the KL estimate at weight 1, "
        "to the same number",
        (
            "reward.formula=baseline_relative",
            "reward.reference=1",
            "reinforce.algorithm.type=reinforce_plus_plus",
            "reinforce.algorithm.gamma=0.0",
            "reinforce.algorithm.kl_weight=1.0",
            "reinforce.algorithm.kl_schedule=null",
            "reinforce.algorithm.kl_bound=1.0e+6",
            "reinforce.algorithm.whiten=false",
        ),
    ),
    "spin": Preset(
        "SPIN, as its authors' four scripts run it",
        "2401.01335",
        "responses and demonstrations have one limit of 512 tokens, where the authors draw 256 and train on what 1024 "
        "tokens leave to the prompt",
        self_play={
            "type": "self_play",
            "method": {"type": "spin", "beta": 0.1, "last_beta": 5.0},
            "rounds": 4,
            "pairs": 50_000,
            "epochs": 6,
            "mix_previous": True,
            "temperature": 1.0,
            "optimizer": "rmsprop",
            "learning_rate": 5e-7,
            "later_learning_rate": 1e-7,
            "later_from_round": 3,
            "batch_size": 64,
            "warmup_ratio": 0.1,
            "decay": "linear",
            "max_prompt_tokens": 512,
            "max_response_tokens": 512,
        },
    ),
    "gsil": Preset(
        "GSIL, as its authors' script runs it",
        "EMNLP 2024",
        "a warm-up of 30 steps is given as their share of 484; responses and demonstrations have one limit of 512 "
        "tokens, where the authors draw 256",
        self_play={
            "type": "self_play",
            "method": {"type": "gsil", "loss": "bernoulli", "scale": 0.01, "shift": 2.0},
            "rounds": 1,
            "epochs": 1,
            "temperature": 0.0,
            "optimizer": "rmsprop",
            "learning_rate": 5e-7,
            "later_learning_rate": None,
            "batch_size": 128,
            "warmup_ratio": 0.062,
            "decay": "linear",
            "max_prompt_tokens": 512,
            "max_response_tokens": 512,
        },
    ),
}


ALGORITHMS: dict[str, type[Config]] = {
    "reinforce_plus_plus": reinforce.ReinforcePlusPlusConfig,
    "sequence_reinforce": reinforce.SequenceReinforceConfig,
    "ppo": reinforce.PPOConfig,
}
TYPE = "reinforce.algorithm.type="


def preset_named(name: str) -> Preset:
    """A preset, or a UsageError that says which there are."""
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of reward, REINFORCE and prompts, with those of a preset."""
    preset = preset_named(name)
    if preset.self_play:
        raise UsageError(
            f"preset {name} has no reward to train DPR on; it stands beside it: "
            f"--set 'methods={{{name}: {{preset: {name}}}}}'"
        )
    kept: dict[str, Any] = {}
    kind = next((change.removeprefix(TYPE) for change in preset.changes if change.startswith(TYPE)), None)
    if kind is not None:
        had = (values.get("reinforce") or {}).get("algorithm") or {}
        fields = ALGORITHMS[kind].model_fields
        kept = {name: value for name, value in had.items() if name in fields and name != "type"}
    changed = override(values, preset.changes, f"preset {name}")
    if kept:
        algorithm = changed["reinforce"]["algorithm"]
        algorithm.update({name: value for name, value in kept.items() if name not in algorithm})
    return changed
