"""Distribution of token rewards over sampled responses: (B, T) tensors over response tokens, picked by a mask."""

from torch import Tensor

from dpr_core.advantages import whiten
from dpr_core.masking import masked_sum, mean_by_position
from dpr_core.returns import reward_to_go

Points = list[tuple[float, float]]


def root_mean_square(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().square().mean().sqrt())


def standard_deviation(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().std(correction=0))


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's, of two vectors; None where one of them does not vary."""
    x, y = (v.double() - v.double().mean() for v in (first, second))
    scale = x.norm() * y.norm()
    return float(x @ y / scale) if scale > 0 else None


def end_advantage(rewards: Tensor, mask: Tensor, ended: Tensor) -> float | None:
    """Mean whitened return (gamma 1) of the end token over the responses that have one; None where none has.

    This is the advantage that REINFORCE++ gives to ending in its first iteration, where the KL to SFT is 0.
    """
    if not bool(ended.any()):
        return None
    advantages = whiten(reward_to_go(rewards, mask), mask)
    last = mask.sum(dim=1) - 1
    return float(advantages[ended, last[ended]].mean())


def top_share(rewards: Tensor, mask: Tensor, share: float = 0.01) -> float:
    """Part of the total absolute reward that the top `share` of the tokens holds, at least one token."""
    sizes = rewards[mask].double().abs()
    top = sizes.topk(max(1, round(share * len(sizes)))).values
    total = sizes.sum()
    return float(top.sum() / total) if total > 0 else 0.0


def by_position(rewards: Tensor, mask: Tensor) -> Points:
    """(position, mean reward there over the responses that reach it)."""
    return [(float(t), mean) for t, mean in enumerate(mean_by_position(rewards, mask))]


def by_length(rewards: Tensor, mask: Tensor, groups: int = 10) -> Points:
    """(mean length, mean return) of groups of equally many responses, from the shortest to the longest."""
    lengths, returns = mask.sum(dim=1).double(), masked_sum(rewards, mask).double()
    order = lengths.argsort(stable=True)
    return [(float(lengths[rows].mean()), float(returns[rows].mean())) for rows in order.chunk(groups)]
