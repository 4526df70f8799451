"""One method, one file. This table is how a configuration finds its method."""

from collections.abc import Callable
from typing import Any

from dpr_core.algorithms.dense_path_reinforce import Algorithm1, PolicyGradient, ReinforcePlusPlus
from dpr_core.algorithms.sequence_reinforce import SequenceReinforce
from dpr_core.config.training import Algorithm

POLICY_GRADIENTS: dict[str, Callable[[Any], PolicyGradient]] = {
    "algorithm1": Algorithm1,
    "reinforce_plus_plus": ReinforcePlusPlus,
    "sequence_reinforce": SequenceReinforce,
}


def policy_gradient(settings: Algorithm) -> PolicyGradient:
    """The method that a configuration names."""
    return POLICY_GRADIENTS[settings.type](settings)
