"""Claims of the paper, and the random instances that they are measured on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpr_core.theory.token_mdp import Mdp, random_policy, random_q, stochastic_mdp, token_tree

SHAPES = ((2, 2), (2, 3), (3, 2), (2, 4), (3, 3))
"""(vocabulary, horizon) of the instances, in turn."""


@dataclass(frozen=True)
class Case:
    """One random instance: a token tree and an MDP with stochastic transitions, each with an expert and logits."""

    seed: int
    vocabulary: int
    horizon: int
    tree: Mdp
    """Two prompts."""
    single: Mdp
    """The same tree with the first prompt only."""
    expert: Tensor
    sft: Tensor
    ref: Tensor
    actor: Tensor
    chain: Mdp
    chain_expert: Tensor
    chain_q: Tensor

    def generator(self, stream: int = 0) -> torch.Generator:
        """A fresh generator; the same stream always gives the same numbers."""
        return torch.Generator().manual_seed(self.seed * 16 + stream + 1)


def draw(seed: int, vocabulary: int, horizon: int) -> Case:
    """A case of that size. pi_ref is a perturbed pi_SFT, as a checkpoint is; the actor is a third policy."""
    generator = torch.Generator().manual_seed(seed * 16)
    tree = token_tree(vocabulary, horizon, random_policy((2,), generator))
    chain = stochastic_mdp(2, vocabulary, min(horizon, 3), generator)
    sft = random_q(tree, generator, 1.5)
    return Case(
        seed=seed,
        vocabulary=vocabulary,
        horizon=horizon,
        tree=tree,
        single=token_tree(vocabulary, horizon, torch.tensor([1.0, 0.0], dtype=torch.float64)),
        expert=random_policy((tree.states, vocabulary), generator),
        sft=sft,
        ref=sft + random_q(tree, generator, 0.7),
        actor=sft + random_q(tree, generator, 0.7),
        chain=chain,
        chain_expert=random_policy((chain.states, vocabulary), generator),
        chain_q=random_q(chain, generator, 1.5),
    )


def cases(seed: int, instances: int) -> Iterator[Case]:
    """`instances` cases of all sizes in turn, from one seed."""
    seeds = torch.randint(2**40, (instances,), generator=torch.Generator().manual_seed(seed)).tolist()
    for index, own in enumerate(seeds):
        yield draw(own, *SHAPES[index % len(SHAPES)])


EXACT = 1e-9
"""Tolerance in float64, for numbers of the order of 1 to 100."""


@dataclass(frozen=True)
class Measured:
    """One instance: a residual (at most the tolerance where the claim holds), a slack ratio, and facts for the note."""

    residual: float
    slack: float | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TheoryClaim:
    """A statement and how it is measured. `note` may use {mean[fact]}, {most[fact]} and {least[fact]}."""

    name: str
    note: str
    measure: Callable[[Case], Measured]
    tolerance: float = EXACT


def equal(left: Tensor | float, right: Tensor | float, **facts: float) -> Measured:
    """The claim left = right: its residual is the largest absolute difference."""
    return Measured(float(torch.as_tensor(left - right).abs().max()), facts=facts)


def at_most(pairs: list[tuple[float, float]], **facts: float) -> Measured:
    """The claim left <= right for every pair: its residual is the largest left - right, its slack the least ratio."""
    ratios = [right / left for left, right in pairs if left > EXACT]
    return Measured(max(left - right for left, right in pairs), min(ratios, default=None), facts)
