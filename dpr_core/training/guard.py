"""Stopping before over-optimisation: the proxy reward keeps rising long after quality falls."""

import torch

from dpr_core.config.training import KLStop
from dpr_core.models.policy import Policy


class KLGuard:
    """Remembers the newest policy whose KL to SFT was within the bound, and goes back to it once one is not."""

    def __init__(self, settings: KLStop, policy: Policy) -> None:
        self.bound = settings.max_sequence_kl
        self.policy = policy
        self._safe = self._copy()

    def passes(self, sequence_kl: float) -> bool:
        """Call with the policy's measured KL before it is trained further. False: it has been rolled back; stop."""
        if sequence_kl <= self.bound:
            self._safe = self._copy()
            return True
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(self._safe[name])
        return False

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.policy.named_parameters()}
