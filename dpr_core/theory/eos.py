"""Length and EOS: appendix A.11, and what the baseline-relative reward of Eq. 5 does in place of its pathology."""

import torch
from torch import Tensor

from dpr_core.theory.soft_bellman import boltzmann, entropy, hard_q, log_boltzmann
from dpr_core.theory.token_mdp import EOS, Mdp, expected_return, token_tree


def with_eos(q: Tensor, margin: Tensor) -> Tensor:
    """The logits with EOS set to the best other token's plus `margin` (S,): at margins >= 0 the premise of A.11."""
    best = q[:, EOS + 1 :].max(-1).values
    return torch.cat([(best + margin)[:, None], q[:, EOS + 1 :]], dim=-1)


def immediate_eos_lead(mdp: Mdp, reward: Tensor) -> float:
    """The return of ending at once, less that of the best other response; above 0 where A.11's pathology strikes."""
    paths = mdp.trajectories
    returns = paths.along(reward).sum(1)
    at_once = paths.actions[:, 0] == EOS
    return float(returns[at_once].min() - returns[~at_once].max())


def best_return(mdp: Mdp, reward: Tensor) -> float:
    """The largest expected return of any policy, by backward induction without entropy."""
    return float((mdp.initial * hard_q(mdp, reward).max(-1).values).sum())


def log_mode(mdp: Mdp, sft: Tensor) -> float:
    """log of the most probable response's probability under pi_SFT: the maximum of A.11's J_naive, for one prompt."""
    return float(torch.log(mdp.trajectories.probabilities(boltzmann(sft)).max()))


def kl(sft: Tensor, ref: Tensor) -> Tensor:
    """KL(pi_SFT || pi_ref) in every state, (S,), as cross-entropy less entropy."""
    policy = boltzmann(sft)
    return -(policy * log_boltzmann(ref)).sum(-1) - entropy(policy)


def expected_relative_reward(sft: Tensor, ref: Tensor) -> Tensor:
    """E_{a ~ pi_SFT}[r_hat(s, a)] in every state, (S,): the KL of `kl`, so never negative (Eq. 5)."""
    return (boltzmann(sft) * (log_boltzmann(sft) - log_boltzmann(ref))).sum(-1)


def prefix_returns(mdp: Mdp, policy: Tensor, reward: Tensor) -> Tensor:
    """E_pi of the reward of a response's first k tokens, for k = 1 .. H, (H,)."""
    paths = mdp.trajectories
    return paths.probabilities(policy) @ paths.along(reward).cumsum(1)


def same_eos(sft: Tensor, ref: Tensor) -> Tensor:
    """Logits of a reference that stops as often as pi_SFT in every state and else keeps its own taste in tokens."""
    stop = log_boltzmann(sft)[:, :1]
    others = torch.log_softmax(ref[:, EOS + 1 :], -1) + torch.log1p(-stop.exp())
    return torch.cat([stop, others], dim=-1)


def stopping_with(sft: Tensor, stop: float) -> Tensor:
    """The policy that ends with probability `stop` in every state and else chooses as pi_SFT does."""
    others = torch.softmax(sft[:, EOS + 1 :], -1)
    return torch.cat([torch.full_like(others[:, :1], stop), (1 - stop) * others], dim=-1)


def return_by_stopping(mdp: Mdp, sft: Tensor, reward: Tensor, stops: tuple[float, ...]) -> Tensor:
    """J_r of pi_SFT with its chance of stopping set to each of `stops`."""
    return torch.stack([expected_return(mdp, stopping_with(sft, stop), reward) for stop in stops])


def a11_counter_example() -> tuple[float, float]:
    """A.11's premise everywhere but in the first state: returns of ending at once, and of the best other response.

    "A subset of high measure" may leave that state out, and it is the one that decides: pi_SFT(EOS) is 0.1 there, 0.9
    after it.
    """
    mdp = token_tree(2, 2)
    sft = torch.log(torch.tensor([[0.1, 0.9], [0.9, 0.1]], dtype=torch.float64))
    returns = mdp.trajectories.along(log_boltzmann(sft)).sum(1)
    at_once = mdp.trajectories.actions[:, 0] == EOS
    return float(returns[at_once].max()), float(returns[~at_once].max())


def relative_eos_counter_example() -> tuple[float, float]:
    """The same two returns under r_hat, where the baseline does not help: EOS grew likelier from pi_ref to pi_SFT.

    pi_SFT(EOS) = 0.6 and pi_ref(EOS) = 0.3 in both states: log 2 at once, at best log(4/7) + log 2 later.
    """
    mdp = token_tree(2, 2)
    sft = torch.log(torch.tensor([[0.6, 0.4], [0.6, 0.4]], dtype=torch.float64))
    ref = torch.log(torch.tensor([[0.3, 0.7], [0.3, 0.7]], dtype=torch.float64))
    returns = mdp.trajectories.along(log_boltzmann(sft) - log_boltzmann(ref)).sum(1)
    at_once = mdp.trajectories.actions[:, 0] == EOS
    return float(returns[at_once].max()), float(returns[~at_once].max())
