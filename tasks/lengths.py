"""Context lengths: whether what a stage is to draw fits the model that its inputs are built on, known before work."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from dpr_core.config.base import StageConfig
from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.planning.architecture import known_positions

DRAWING = ("diagnose", "reinforce", "self_play", "answer")
"""Stages that draw responses of up to `max_response_tokens` behind a prompt."""


class Made(NamedTuple):
    """What an input is: an artifact, or a node that is still to make one."""

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]


Sources = Callable[[str], Made | None]
"""What is behind an input; None where that is not known."""


def check_lengths(stage: str, config: StageConfig, inputs: Mapping[str, str], sources: Sources) -> None:
    """Refuse responses that leave no room for a prompt in the context of the model, where that is known."""
    longest = getattr(config, "max_response_tokens", 0) if stage in DRAWING else 0
    positions = _positions(inputs.values(), sources) if longest else None
    if positions is not None and longest >= positions:
        raise UsageError(
            f"{stage}: max_response_tokens is {longest}, which leaves no room for a prompt: the model that its inputs "
            f"are built on has {positions} positions; lower it"
        )


def lengths_below(inputs: Iterable[str], sources: Sources) -> dict[str, int]:
    """The limits of the SFT run that inputs are built on."""
    sft = _sft(inputs, sources)
    names = ("max_prompt_tokens", "max_response_tokens")
    return {name: sft.config[name] for name in names if name in sft.config} if sft else {}


def _positions(inputs: Iterable[str], sources: Sources) -> int | None:
    sft = _sft(inputs, sources)
    if sft is None:
        return None
    if not (backbone := sft.config.get("backbone")):
        return LabBackboneConfig.positions
    return known_positions(PretrainedBackboneConfig.model_validate(backbone))


def _sft(inputs: Iterable[str], sources: Sources) -> Made | None:
    """The nearest SFT run; prompts that were drawn beside its rows lead to no model."""
    queue = list(inputs)
    while queue:
        made = sources(queue.pop(0))
        if made is not None and made.stage == "sft":
            return made
        queue += [] if made is None else [source for role, source in made.inputs.items() if role != "prompts"]
    return None
