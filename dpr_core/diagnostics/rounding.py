"""Rounding of a reward: the same tokens in several types of numbers, weights included, held against float32."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dpr_core.config.reward import Arithmetic
from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics import shape
from dpr_core.models.dense_reward import ScoredTokens, TokenReward

FASTEST_FIRST: tuple[Arithmetic, ...] = ("bfloat16", "tf32", "float32")

TOLERATED = 0.1
"""Rounding over the deviation of the reward up to which a faster type is chosen: a hundredth of the variance."""

PROBES = 32
"""Demonstrations on which a choice is made."""


def rounding_shares(
    reward: TokenReward, sequences: Sequence[TokenSequence], arithmetics: Iterable[Arithmetic]
) -> dict[Arithmetic, float]:
    """Root mean square of what differs from the reward in float32, over its deviation. `reward` has to keep weights."""
    exact = replace(reward, arithmetic="float32")(sequences)
    return {each: rounding_share(replace(reward, arithmetic=each)(sequences), exact) for each in arithmetics}


def rounding_share(rounded: ScoredTokens, exact: ScoredTokens) -> float:
    """Of rewards of the same tokens, the second ones in float32."""
    deviation = shape.standard_deviation(exact.rewards, exact.mask)
    noise = shape.root_mean_square(rounded.rewards - exact.rewards, exact.mask)
    return noise / deviation if deviation > 0 else 0.0


def fastest(shares: Mapping[Arithmetic, float]) -> Arithmetic:
    """The fastest of the measured types that rounds little enough, else float32."""
    fit = (each for each in FASTEST_FIRST if each in shares and shares[each] <= TOLERATED)
    return next(fit, "float32")
