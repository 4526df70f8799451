"""Dense-Path REINFORCE in its two readings: the paper's Algorithm 1, and the REINFORCE++ that its experiments ran."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from dpr_core import losses
from dpr_core.advantages import whiten
from dpr_core.config import training as config
from dpr_core.logprobs import TokenScores
from dpr_core.returns import reward_to_go


class Credit(NamedTuple):
    """(B, T): what each token is credited with."""

    returns: Tensor
    advantages: Tensor


class PolicyGradient(Protocol):
    """A method: how rewards become credit, and credit becomes a loss."""

    per: Literal["token", "sequence"]

    def credit(self, rewards: Tensor, log_old: Tensor, log_sft: Tensor, mask: Tensor) -> Credit: ...

    def __call__(self, scores: TokenScores, **values: Tensor) -> dict[str, Tensor]: ...


class Algorithm1:
    """L = -(1/B) sum_i sum_t log pi(a_t | s_t) G_t."""

    per: Literal["token", "sequence"] = "sequence"

    def __init__(self, settings: config.Algorithm1) -> None:
        self.gamma = settings.gamma

    def credit(self, rewards: Tensor, log_old: Tensor, log_sft: Tensor, mask: Tensor) -> Credit:
        returns = reward_to_go(rewards, mask, self.gamma)
        return Credit(returns, returns)

    def __call__(self, scores: TokenScores, **values: Tensor) -> dict[str, Tensor]:
        return {"loss": losses.reinforce(scores.log_probs, values["advantages"])}


class ReinforcePlusPlus:
    """Per-token KL inside the return, one whitening over the rollout batch, clipped ratio, mean over tokens."""

    per: Literal["token", "sequence"] = "token"

    def __init__(self, settings: config.ClippedReinforce) -> None:
        self.settings = settings

    def credit(self, rewards: Tensor, log_old: Tensor, log_sft: Tensor, mask: Tensor) -> Credit:
        kl = losses.k1_kl(log_old, log_sft, self.settings.kl_bound)
        returns = reward_to_go(rewards - self.settings.kl_weight * kl, mask, self.settings.gamma)
        return Credit(returns, whiten(returns, mask) if self.settings.whiten else returns)

    def __call__(self, scores: TokenScores, **values: Tensor) -> dict[str, Tensor]:
        old, advantages, clip = values["old_log_probs"], values["advantages"], self.settings.ratio_clip
        ratio = torch.exp(scores.log_probs.detach() - old)
        return {
            "loss": losses.clipped(scores.log_probs, old, advantages, clip),
            "clip_fraction": ((ratio - 1).abs() > clip).float(),
        }
