"""The contrastive policy: pi_SFT extrapolated away from pi_ref, token by token, without training."""

from dataclasses import dataclass

from dpr_core.models.policy import Policy


@dataclass(frozen=True)
class ContrastivePolicy:
    """pi(a | s) proportional to pi_SFT(a | s) (pi_SFT(a | s) / pi_ref(a | s))^k.

    In every state it maximises E[r] - KL(pi || pi_SFT) / k for the r of Eq. 5, one token ahead.
    """

    sft: Policy
    reference: Policy
    k: float
