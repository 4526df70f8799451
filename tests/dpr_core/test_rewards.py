import math

import torch

from dpr_core.logprobs import token_scores
from dpr_core.masking import masked_sum, response_mask
from dpr_core.rewards import baseline_relative, random_sign, scaled, with_value, without_baseline


def _log_policies(seed: int) -> torch.Tensor:
    return torch.log_softmax(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(seed)).double(), -1)


def test_equation_5_by_hand() -> None:
    """Probabilities 1/2 and 1/4 against 1/4 and 1/2: the reward is log 2, then -log 2."""
    log_sft, log_ref = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    torch.testing.assert_close(baseline_relative(log_sft, log_ref), torch.tensor([[math.log(2), -math.log(2)]]))


def test_the_reward_is_exactly_zero_where_both_checkpoints_agree() -> None:
    log_sft = _log_policies(0)[..., 0]
    assert baseline_relative(log_sft, log_sft.clone()).eq(0).all()


def test_the_undiscounted_sum_is_the_log_ratio_of_the_whole_sequence() -> None:
    sft, ref, actions = _log_policies(0), _log_policies(1), torch.tensor([[0, 5, 2, 2], [1, 1, 4, 0], [3, 2, 0, 0]])
    lengths = [4, 3, 2]
    chosen = [p.gather(-1, actions[..., None])[..., 0] for p in (sft, ref)]
    totals = masked_sum(baseline_relative(*chosen), response_mask(lengths))
    for row, length in enumerate(lengths):
        probability = [math.prod(math.exp(p[row, t, actions[row, t]]) for t in range(length)) for p in (sft, ref)]
        assert math.isclose(totals[row].item(), math.log(probability[0] / probability[1]), abs_tol=1e-12)


def test_with_value_by_hand() -> None:
    log_sft = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, 0.0]])
    value = torch.tensor([[10.0, 20.0, 40.0], [7.0, 3.0, 1000.0]])
    expected = torch.tensor([[-1.0 + 10 - 20, -2.0 + 20 - 40, -3.0 + 40], [-4.0 + 7 - 3, -5.0 + 3, 0.0]])
    mask = response_mask([3, 2])
    found = with_value(log_sft, value, mask)
    torch.testing.assert_close(found[mask], expected[mask])


def test_with_value_telescopes_to_the_log_probability_and_the_first_value() -> None:
    generator = torch.Generator().manual_seed(0)
    log_sft, value = -torch.rand(3, 5, generator=generator), 20 * torch.randn(3, 5, generator=generator)
    mask = response_mask([5, 1, 3])
    value[~mask] = math.nan
    totals = masked_sum(with_value(log_sft, value, mask), mask)
    for row, length in enumerate([5, 1, 3]):
        expected = sum(log_sft[row, t].item() for t in range(length)) + value[row, 0].item()
        assert math.isclose(totals[row].item(), expected, abs_tol=1e-4)


def test_equation_4_the_unshaped_reward_is_q_minus_the_next_soft_value() -> None:
    """With the logits as Q and V = logsumexp Q, log pi + V(s) is Q(s, a); so r = Q(s, a) - V(s')."""
    generator = torch.Generator().manual_seed(2)
    states, head = torch.randn(4, 3, generator=generator), torch.randn(6, 3, generator=generator)
    actions = torch.tensor([5, 0, 2, 2])
    scores = token_scores(states, head, actions)
    rewards = with_value(scores.log_probs[None], scores.values[None], response_mask([4]))[0].tolist()
    q = (states.double() @ head.double().T).tolist()
    soft_values = [*(math.log(sum(math.exp(z) for z in row)) for row in q), 0.0]
    for t in range(4):
        assert math.isclose(rewards[t], q[t][actions[t]] - soft_values[t + 1], abs_tol=1e-5)


def test_without_baseline_is_the_log_probability_and_never_positive() -> None:
    log_sft = _log_policies(4)[..., 1]
    assert without_baseline(log_sft).equal(log_sft)
    assert without_baseline(log_sft).max() < 0


def test_a_random_sign_by_hand() -> None:
    log_sft, log_ref = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
    found = random_sign(log_sft, log_ref, torch.tensor([[-1.0, -1.0]]))
    torch.testing.assert_close(found, torch.tensor([[-math.log(2), math.log(2)]]))


def test_scale_then_clip_from_above_alone() -> None:
    rewards = torch.tensor([[-8.0, -1.0, 0.5, 3.0, 8.0]])
    assert scaled(rewards, 2.0, 1.0).tolist() == [[-4.0, -0.5, 0.25, 1.0, 1.0]]
    assert scaled(rewards, 2.0, None).tolist() == [[-4.0, -0.5, 0.25, 1.5, 4.0]]
    assert scaled(rewards, 1.0, None).equal(rewards)
