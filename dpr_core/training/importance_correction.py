"""What another engine than the policy itself has drawn is made to count as the policy's own."""

from torch import Tensor

from dpr_core.config.rollouts import VllmConfig
from dpr_core.importance import importance, mismatch
from dpr_core.masking import masked_mean
from dpr_core.rollouts.engine import log_probs
from dpr_core.training.rollout_batch import Rollout


def corrected(advantages: Tensor, rollout: Rollout, settings: VllmConfig) -> tuple[Tensor, dict[str, float]]:
    """A_t min(pi_trainer / pi_engine, C), which nothing is differentiated through; and how far the two are apart."""
    mask, ours, theirs = rollout.scored.mask, rollout.old_log_probs, log_probs(rollout.completions)
    ratios = importance(ours, theirs, mask, settings.importance_per)
    weights = ratios.clamp(max=settings.importance_cap)
    told = {
        "policy_version": float(rollout.version),
        "engine_mismatch_kl": mismatch(ours, theirs, mask),
        "importance_mean": float(masked_mean(weights, mask)),
        "importance_truncated_share": float(masked_mean((ratios > settings.importance_cap).float(), mask)),
    }
    return advantages * weights, {f"rollout/{name}": value for name, value in told.items()}
