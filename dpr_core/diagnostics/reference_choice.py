"""Choosing a reference without labels: the one whose reward best finds a corrupted token of a demonstration."""

from collections.abc import Callable, Mapping, Sequence

from dpr_core import rewards
from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics.corruption import corrupt, detection
from dpr_core.errors import UsageError
from dpr_core.masking import response_mask
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score


def detection_by_candidate(
    sft: Policy,
    candidates: Mapping[float, Callable[[], Policy]],
    demonstrations: Sequence[TokenSequence],
    seed: int,
    tokens_per_micro_batch: int | None,
) -> dict[float, float]:
    """AUROC of finding one replaced token by Eq. 5, for each candidate; candidates are loaded one at a time."""
    corrupted = corrupt(demonstrations, seed)
    if not corrupted:
        raise UsageError(
            "no demonstration has a token to replace, so no reference can be validated; raise probe_demonstrations"
        )
    sequences = [c.sequence for c in corrupted]
    positions = [c.position for c in corrupted]
    mask = response_mask([len(s.response) for s in sequences])
    log_sft = score(sft, sequences, tokens_per_micro_batch).log_probs
    found = {}
    for fraction, load in candidates.items():
        log_ref = score(load(), sequences, tokens_per_micro_batch).log_probs
        found[fraction] = detection(rewards.baseline_relative(log_sft, log_ref), mask, positions).auroc
    return found
