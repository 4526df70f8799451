import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.soft_bellman import boltzmann
from dpr_core.theory.token_mdp import (
    expected_return,
    next_value,
    occupancy,
    state_occupancy,
    stochastic_mdp,
    token_tree,
)

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES))

POLICY = torch.tensor([[1 / 4, 3 / 4], [2 / 3, 1 / 3]], dtype=torch.float64)
"""On the tree of two tokens and two steps: the root, and the state after token 1."""


def test_the_tree_of_two_tokens_and_two_steps() -> None:
    tree = token_tree(2, 2)
    assert (tree.states, tree.actions, tree.terminals) == (2, 2, 3)
    paths = tree.trajectories
    told = [
        (states[: len(kept)], kept, round(probability, 12))
        for states, kept, probability in zip(
            paths.states.tolist(),
            [a[: sum(m)] for a, m in zip(paths.actions.tolist(), paths.mask.tolist(), strict=True)],
            paths.probabilities(POLICY).tolist(),
            strict=True,
        )
    ]
    assert told == [([0], [0], 0.25), ([0, 1], [1, 0], 0.5), ([0, 1], [1, 1], 0.25)]
    assert sorted(paths.ends.tolist()) == [0, 1, 2]
    assert torch.allclose(occupancy(tree, POLICY), torch.tensor([[0.25, 0.75], [0.5, 0.25]], dtype=torch.float64))


def test_discounted_occupancy_and_return_by_hand() -> None:
    tree = token_tree(2, 2)
    expected = torch.tensor([[0.25, 0.75], [0.25, 0.125]], dtype=torch.float64)
    assert torch.allclose(occupancy(tree, POLICY, 0.5), expected)
    reward = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert float(expected_return(tree, POLICY, reward)) == 0.75
    assert float(expected_return(tree, POLICY, reward, 0.5)) == 0.5


def test_sizes_of_a_larger_tree() -> None:
    tree = token_tree(3, 3, torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert tree.states == 2 * (1 + 2 + 4)
    assert len(tree.trajectories.ends) == tree.terminals == 2 * (1 + 2 + 4 * 3)


def test_next_value_reads_terminal_states_where_given() -> None:
    tree = token_tree(2, 2)
    value = torch.tensor([5.0, 7.0], dtype=torch.float64)
    assert next_value(tree, value).tolist() == [[0.0, 7.0], [0.0, 0.0]]
    ends = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert next_value(tree, value, ends).tolist() == [[1.0, 7.0], [2.0, 3.0]]


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_enumeration_agrees_with_the_flow_equations(case: Case) -> None:
    for mdp, policy in ((case.tree, boltzmann(case.sft)), (case.chain, case.chain_expert)):
        paths = mdp.trajectories
        probabilities = paths.probabilities(policy)
        assert torch.isclose(probabilities.sum(), probabilities.new_ones(()))
        for gamma in (1.0, 0.7):
            assert torch.allclose(paths.occupancy(probabilities, policy, gamma), occupancy(mdp, policy, gamma))
        lengths = paths.mask.sum(1).double()
        assert torch.isclose(state_occupancy(mdp, policy).sum(), probabilities @ lengths)
        reward = torch.randn(policy.shape, generator=case.generator(), dtype=torch.float64)
        assert torch.isclose(expected_return(mdp, policy, reward), probabilities @ paths.along(reward).sum(1))


def test_rows_of_transitions_are_distributions() -> None:
    mdp = stochastic_mdp(2, 3, 3, torch.Generator().manual_seed(0))
    assert torch.allclose(mdp.transitions.sum(-1), torch.ones(6, 3, dtype=torch.float64))
    assert mdp.transitions[:2, :, :2].abs().sum() == 0
    assert (mdp.transitions[:4, :, 6:] > 0).all()
