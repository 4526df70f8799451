"""Length bias and early EOS: appendix A.11, and how the baseline-relative reward of Eq. 5 changes them."""

import torch
from torch import Tensor

from dpr_core.theory.claim import Case, Measured, TheoryClaim, equal
from dpr_core.theory.soft_bellman import boltzmann, entropy, hard_q, log_boltzmann, relative_reward
from dpr_core.theory.token_mdp import EOS, Mdp, expected_return, token_tree

STOPS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


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


def _likely_eos(case: Case, spread: float = 1.0) -> Tensor:
    margin = spread * torch.rand(case.tree.states, generator=case.generator(), dtype=torch.float64)
    return with_eos(case.sft, margin)


def _immediate_eos(case: Case) -> Measured:
    prompt_only = torch.where(case.tree.initial[:, None] > 0, _likely_eos(case), case.sft)
    leads = [immediate_eos_lead(case.single, log_boltzmann(q)) for q in (_likely_eos(case), prompt_only)]
    relative = _likely_eos(case), with_eos(case.ref, torch.zeros(case.tree.states, dtype=torch.float64) - 0.5)
    still = immediate_eos_lead(case.single, log_boltzmann(relative[0]) - log_boltzmann(relative[1]))
    return Measured(-min(leads), facts={"least": min(leads), "relative": float(still > 0)})


def _eos_elsewhere(case: Case) -> Measured:
    likely, unlikely = _likely_eos(case), with_eos(case.sft, torch.full((case.tree.states,), -3.0).double())
    q = torch.where(case.tree.initial[:, None] > 0, unlikely, likely)
    return Measured(-immediate_eos_lead(case.single, log_boltzmann(q)))


def _naive_is_the_mode(case: Case) -> Measured:
    best = best_return(case.single, log_boltzmann(case.sft))
    lead = immediate_eos_lead(case.single, log_boltzmann(case.sft))
    likeliest = float(case.sft[0].argmax() == 0)
    return equal(best, log_mode(case.single, case.sft), empty=float(lead > 0), premise=likeliest)


def _baseline_removes_it(case: Case) -> Measured:
    lead = immediate_eos_lead(case.single, relative_reward(case.sft, case.ref))
    return Measured(lead, facts={"still": float(lead > 0)})


def _kl(case: Case) -> Measured:
    divergence = kl(case.sft, case.ref)
    measured = equal(expected_relative_reward(case.sft, case.ref), divergence)
    return Measured(max(measured.residual, float(-divergence.min())), facts={"kl": float(divergence.mean())})


def _prefixes_grow(case: Case) -> Measured:
    policy = boltzmann(case.sft)
    relative = prefix_returns(case.tree, policy, relative_reward(case.sft, case.ref))
    naive = prefix_returns(case.tree, policy, log_boltzmann(case.sft))
    falls = max(float((relative[:-1] - relative[1:]).max()), float((naive[1:] - naive[:-1]).max()), -float(relative[0]))
    return Measured(falls, facts={"whole": float(relative[-1]), "naive": float(naive[-1])})


def _length_bias_cancels(case: Case) -> Measured:
    relative = prefix_returns(case.tree, boltzmann(case.sft), relative_reward(case.sft, case.ref))
    return equal(relative, 0.0)


def _by_stopping(mdp: Mdp, case: Case) -> tuple[Tensor, Tensor]:
    ref = same_eos(case.sft, case.ref)
    relative = log_boltzmann(case.sft) - log_boltzmann(ref)
    returns = return_by_stopping(mdp, case.sft, relative, STOPS)
    return returns, return_by_stopping(mdp, case.sft, log_boltzmann(case.sft), STOPS)


def _longer_pays(case: Case) -> Measured:
    returns, naive = _by_stopping(case.tree, case)
    rises = float((returns[1:] - returns[:-1]).max())
    return Measured(rises, facts={"gain": float(returns[0] - returns[-1]), "naive": float(naive[0] - naive[-1])})


CLAIMS = [
    TheoryClaim(
        "A.11: immediate EOS wins without the baseline",
        "EOS the likeliest token; in the first state suffices. Least lead {least[least]:.2g}",
        _immediate_eos,
    ),
    TheoryClaim(
        "A.11 on a subset that leaves out the first state",
        "EOS likeliest everywhere else does not make it win: a11_counter_example",
        _eos_elsewhere,
    ),
    TheoryClaim(
        "A.11 made exact: J_naive's optimum is pi_SFT's mode",
        "the empty response in {mean[empty]:.0%} of random instances; A.11's premise, in the first state, is true of "
        "{mean[premise]:.0%}",
        _naive_is_the_mode,
    ),
    TheoryClaim(
        "Section 4.3: the baseline removes the EOS pathology",
        "immediate EOS still has the largest r_hat in {mean[still]:.0%}: relative_eos_counter_example",
        _baseline_removes_it,
    ),
    TheoryClaim("E_SFT[r_hat | s] = KL(pi_SFT || pi_ref) >= 0", "{mean[kl]:.2g} a token on average", _kl),
    TheoryClaim(
        "E_SFT of the first k tokens grows with k",
        "under r_hat, to {mean[whole]:.2g}; it falls under log pi_SFT, to {mean[naive]:.2g}",
        _prefixes_grow,
    ),
    TheoryClaim(
        "Section 4.3: the baseline cancels length bias",
        "it turns it round, see the two rows above",
        _length_bias_cancels,
    ),
    TheoryClaim(
        "Longer pays under r_hat",
        "pi_ref stopping as often as pi_SFT: lowering the chance to stop from 0.95 to 0.05 gains {mean[gain]:.2g} on "
        "average under r_hat, and {mean[naive]:.2g} under log pi_SFT",
        _longer_pays,
    ),
]
