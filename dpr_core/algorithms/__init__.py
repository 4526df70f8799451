"""One algorithm, one file, and the tables by which a configuration finds its algorithm."""

from collections.abc import Callable
from typing import Any

from dpr_core.algorithms.base import PolicyGradient
from dpr_core.algorithms.dense_path_reinforce import Algorithm1, ReinforcePlusPlus
from dpr_core.algorithms.full_vocabulary import FullVocabulary
from dpr_core.algorithms.gsil import Gsil
from dpr_core.algorithms.pair_loss import PairLoss
from dpr_core.algorithms.ppo import PPO
from dpr_core.algorithms.sequence_reinforce import SequenceReinforce
from dpr_core.algorithms.spin import Spin
from dpr_core.config.imitation import SelfPlayMethod
from dpr_core.config.reinforce import Algorithm

POLICY_GRADIENTS: dict[str, Callable[[Any], PolicyGradient]] = {
    "algorithm1": Algorithm1,
    "reinforce_plus_plus": ReinforcePlusPlus,
    "sequence_reinforce": SequenceReinforce,
    "ppo": PPO,
    "full_vocabulary": FullVocabulary,
}


def policy_gradient(settings: Algorithm) -> PolicyGradient:
    """The method that a configuration names."""
    return POLICY_GRADIENTS[settings.type](settings)


SELF_PLAY: dict[str, Callable[[Any], PairLoss]] = {"spin": Spin, "gsil": Gsil}


def self_play_loss(settings: SelfPlayMethod) -> PairLoss:
    """The loss that a configuration names."""
    return SELF_PLAY[settings.type](settings)
