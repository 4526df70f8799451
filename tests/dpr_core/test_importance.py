"""Importance weights against exact policy gradients, by enumerating every response of a tabular policy."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dpr_core.importance import importance, mismatch
from dpr_core.losses import reinforce
from dpr_core.masking import response_mask
from dpr_core.returns import reward_to_go

V, EOS, HORIZON = 3, 2, 3
State = tuple[int, ...]
STATES: list[State] = [s for n in range(HORIZON) for s in itertools.product(range(EOS), repeat=n)]
RESPONSES: list[State] = [(*s, a) for s in STATES for a in range(V) if a == EOS or len(s) == HORIZON - 1]
MASK = response_mask([len(row) for row in RESPONSES])


def _table(seed: int) -> Tensor:
    return torch.randn(len(STATES), V, generator=torch.Generator().manual_seed(seed)).double()


WANTED, DRAWN, REWARDS = _table(0), _table(0) + 0.7 * _table(1), 2 * _table(2)


def _along(table: Tensor) -> Tensor:
    """(responses, HORIZON): a table's entries along every response; the padding holds garbage."""
    rows = [[table[STATES.index(row[:t]), a] for t, a in enumerate(row)] for row in RESPONSES]
    return torch.stack([torch.stack([*row, *[torch.tensor(77.0).double()] * (HORIZON - len(row))]) for row in rows])


def _likelihoods(logits: Tensor) -> Tensor:
    return torch.where(MASK, _along(torch.log_softmax(logits, -1)), 0).sum(1).exp()


def _exact_gradient() -> Tensor:
    logits = WANTED.clone().requires_grad_()
    value = (_likelihoods(logits) * torch.where(MASK, _along(REWARDS), 0).sum(1)).sum()
    return torch.autograd.grad(value, logits)[0]


def _expected_gradient(per: str, cap: float = math.inf, weighted: bool = True) -> Tensor:
    """Of minus Algorithm 1's loss, over responses that the other policy has drawn."""
    logits = WANTED.clone().requires_grad_()
    ours, theirs = _along(torch.log_softmax(logits, -1)), _along(torch.log_softmax(DRAWN, -1))
    weights = importance(ours.detach(), theirs, MASK, per).clamp(max=cap)  # type: ignore[arg-type]
    assert weights[~MASK].eq(1).all()
    returns = reward_to_go(_along(REWARDS), MASK, 1.0)
    losses = reinforce(ours, returns * weights if weighted else returns)
    expected = (_likelihoods(DRAWN) * torch.where(MASK, losses, 0).sum(1)).sum()
    return -torch.autograd.grad(expected, logits)[0]


def test_weights_of_whole_responses_give_the_exact_policy_gradient() -> None:
    exact = _exact_gradient()
    torch.testing.assert_close(_expected_gradient("sequence"), exact, atol=1e-10, rtol=0)
    assert (_expected_gradient("sequence", weighted=False) - exact).abs().max() > 0.1, "without them it is another one"
    assert (_expected_gradient("sequence", cap=1.2) - exact).abs().max() > 0.01, "and so it is with a cap"


def test_weights_of_tokens_correct_the_action_and_not_what_led_to_it_or_what_follows() -> None:
    """sum over states d(s) sum over actions grad pi(a | s) Q(s, a), with d and Q those of the policy that has drawn."""
    drawn = torch.softmax(DRAWN, -1)

    def value(state: State, action: int) -> float:
        reward = float(REWARDS[STATES.index(state), action])
        following = (*state, action)
        if action == EOS or len(following) == HORIZON:
            return reward
        return reward + sum(float(drawn[STATES.index(following), a]) * value(following, a) for a in range(V))

    logits = WANTED.clone().requires_grad_()
    wanted = torch.softmax(logits, -1)
    total = torch.zeros(()).double()
    for i, state in enumerate(STATES):
        reached = math.prod(float(drawn[STATES.index(state[:t]), a]) for t, a in enumerate(state))
        total = total + reached * sum(wanted[i, a] * value(state, a) for a in range(V))
    (expected,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(_expected_gradient("token"), expected, atol=1e-10, rtol=0)
    exact = _exact_gradient()
    first = STATES.index(())
    assert (expected - exact)[first].abs().max() > 1e-3
    assert (expected - exact).norm() < (_expected_gradient("token", weighted=False) - exact).norm()


def test_weights_by_hand() -> None:
    ours = torch.tensor([[0.5, 0.2, 0.1], [0.3, 9.0, 9.0]]).log()
    theirs = torch.tensor([[0.25, 0.4, 0.1], [0.1, 1.0, 1.0]]).log()
    mask = response_mask([3, 1])
    by_token = importance(ours, theirs, mask, "token")
    torch.testing.assert_close(by_token, torch.tensor([[2.0, 0.5, 1.0], [3.0, 1.0, 1.0]]))
    by_sequence = importance(ours, theirs, mask, "sequence")
    torch.testing.assert_close(by_sequence, torch.tensor([[1.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))


@pytest.mark.parametrize("gap", [-500.0, 95.0, 800.0])
@pytest.mark.parametrize("per", ["token", "sequence"])
def test_what_two_policies_are_worlds_apart_about_has_a_finite_weight(gap: float, per: str) -> None:
    ours, theirs, mask = torch.full((1, 2), gap), torch.zeros(1, 2), torch.ones(1, 2).bool()
    assert importance(ours, theirs, mask, per).isfinite().all()  # type: ignore[arg-type]
    assert math.isfinite(mismatch(ours, theirs, mask))


def test_the_mismatch_estimates_the_kl_between_the_two() -> None:
    ours, theirs = torch.softmax(WANTED[0], -1), torch.softmax(DRAWN[0], -1)
    exact = float((theirs * (theirs / ours).log()).sum())
    estimates = [
        mismatch(ours[a].log()[None, None], theirs[a].log()[None, None], torch.ones(1, 1).bool()) for a in range(V)
    ]
    assert sum(float(theirs[a]) * estimates[a] for a in range(V)) == pytest.approx(exact, abs=1e-9)
    assert min(estimates) >= 0
    assert exact > 0.01
