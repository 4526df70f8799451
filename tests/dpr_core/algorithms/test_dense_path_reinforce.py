"""The gradient of Algorithm 1 against the exact policy gradient, by enumerating every response of a tabular policy."""

import itertools
import math
import statistics

import pytest
import torch
from torch import Tensor

from dpr_core.algorithms import POLICY_GRADIENTS, policy_gradient
from dpr_core.algorithms.base import LossInputs, PolicyGradient, RolloutBatch
from dpr_core.algorithms.dense_path_reinforce import Algorithm1, ReinforcePlusPlus
from dpr_core.config import reinforce as config
from dpr_core.logprobs import TokenScores
from dpr_core.masking import response_mask
from dpr_core.rewards import baseline_relative, with_value, without_baseline

V, EOS, HORIZON = 3, 2, 3
State = tuple[int, ...]
STATES: list[State] = [s for n in range(HORIZON) for s in itertools.product(range(EOS), repeat=n)]
RESPONSES: list[State] = [
    (*s, a) for s in STATES for a in range(V) if a == EOS or len(s) == HORIZON - 1
]  # every response that ends, or is cut at the horizon


def _table(seed: int, size: int = V) -> Tensor:
    return torch.randn(len(STATES), size, generator=torch.Generator().manual_seed(seed)).double()


def _index(row: State, t: int) -> tuple[int, int]:
    return STATES.index(row[:t]), row[t]


def _per_token(table: Tensor) -> Tensor:
    """(responses, HORIZON): a table's entries along every response; the padding holds garbage."""
    return torch.stack(
        [
            torch.stack([table[_index(row, t)] if t < len(row) else table.new_tensor(77.0) for t in range(HORIZON)])
            for row in RESPONSES
        ]
    )


MASK = response_mask([len(row) for row in RESPONSES])


def _probabilities(logits: Tensor) -> list[float]:
    policy = torch.softmax(logits, -1).tolist()
    return [math.prod(policy[s][a] for s, a in (_index(row, t) for t in range(len(row)))) for row in RESPONSES]


def _expected_return(logits: Tensor, rewards: Tensor) -> float:
    """The exact objective, undiscounted."""
    totals = [sum(rewards[_index(row, t)].item() for t in range(len(row))) for row in RESPONSES]
    return sum(p * total for p, total in zip(_probabilities(logits), totals, strict=True))


def _exact_gradient(logits: Tensor, rewards: Tensor) -> Tensor:
    """Of the expected return, by central differences."""
    gradient, step = torch.zeros_like(logits), 1e-5
    for i, j in itertools.product(range(len(STATES)), range(V)):
        ends = []
        for sign in (1, -1):
            moved = logits.clone()
            moved[i, j] += sign * step
            ends.append(_expected_return(moved, rewards))
        gradient[i, j] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def _batch(rewards: Tensor, log_old: Tensor, log_sft: Tensor, mask: Tensor) -> RolloutBatch:
    return RolloutBatch(rewards, log_old, log_sft, mask, torch.zeros_like(rewards))


def _losses(method: PolicyGradient, logits: Tensor, rewards: Tensor) -> Tensor:
    """(responses,): what each response would contribute as a batch of its own."""
    log_policy = _per_token(torch.log_softmax(logits, -1))
    old = log_policy.detach()
    credit = method.credit(_batch(rewards, old, old, MASK), 0.0)
    flat = TokenScores(log_policy[MASK], torch.zeros(1), torch.zeros(1))
    losses = torch.zeros_like(log_policy)
    losses[MASK] = method(flat, LossInputs(advantages=credit.advantages[MASK], old_log_probs=old[MASK]))["loss"]
    return losses.sum(dim=1)


def _expected_loss_gradient(method: PolicyGradient, logits: Tensor, rewards: Tensor) -> Tensor:
    parameters = logits.clone().requires_grad_()
    weights = torch.tensor(_probabilities(logits), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * _losses(method, parameters, rewards)).sum(), parameters)
    return gradient


def test_the_enumeration_is_complete() -> None:
    assert len(RESPONSES) == 1 + 2 + 4 * 3
    assert sum(_probabilities(_table(0))) == pytest.approx(1)


def test_the_expected_gradient_of_algorithm_1_is_the_exact_policy_gradient() -> None:
    logits, rewards = _table(0), 2 * _table(1)
    exact = _exact_gradient(logits, rewards)
    assert exact.abs().max() > 0.1
    method = Algorithm1(config.Algorithm1Config())
    torch.testing.assert_close(_expected_loss_gradient(method, logits, _per_token(rewards)), -exact, atol=1e-8, rtol=0)


def test_so_is_that_of_reinforce_plus_plus_before_whitening_kl_and_clip() -> None:
    logits, rewards = _table(2), _table(3)
    method = ReinforcePlusPlus(config.ReinforcePlusPlusConfig(kl_weight=0, whiten=False))
    found = _expected_loss_gradient(method, logits, _per_token(rewards))
    torch.testing.assert_close(found, -_exact_gradient(logits, rewards), atol=1e-8, rtol=0)


def test_the_dense_reward_ascends_the_kl_from_the_reference_and_descends_that_from_sft() -> None:
    """Expected return of Eq. 5 = KL(pi || ref) - KL(pi || SFT) over whole responses, by central differences."""
    logits, sft, ref = _table(4), _table(5), _table(6)

    def difference_of_kls(at: Tensor) -> float:
        own, p_sft, p_ref = (_probabilities(x) for x in (at, sft, ref))
        return sum(p * (math.log(p / r) - math.log(p / s)) for p, s, r in zip(own, p_sft, p_ref, strict=True))

    exact = torch.zeros_like(logits)
    for i, j in itertools.product(range(len(STATES)), range(V)):
        moved = [logits.clone(), logits.clone()]
        moved[0][i, j] += 1e-5
        moved[1][i, j] -= 1e-5
        exact[i, j] = (difference_of_kls(moved[0]) - difference_of_kls(moved[1])) / 2e-5
    rewards = baseline_relative(*(_per_token(torch.log_softmax(x, -1)) for x in (sft, ref)))
    found = _expected_loss_gradient(Algorithm1(config.Algorithm1Config()), logits, rewards)
    torch.testing.assert_close(found, -exact, atol=1e-7, rtol=0)


def test_the_value_of_the_unshaped_reward_is_a_baseline_that_moves_no_expectation() -> None:
    """Appendix A.8: at gamma = 1 the returns of w/V and wo/Baseline differ by V(s_t) alone."""
    logits, q = _table(7), 3 * _table(8)
    log_sft = _per_token(torch.log_softmax(q, -1))
    values = _per_token(torch.logsumexp(q, -1, keepdim=True).expand(-1, V))
    shaped, unshaped = without_baseline(log_sft), with_value(log_sft, values, MASK)
    method = Algorithm1(config.Algorithm1Config())
    torch.testing.assert_close(
        _expected_loss_gradient(method, logits, unshaped),
        _expected_loss_gradient(method, logits, shaped),
        atol=1e-12,
        rtol=0,
    )
    assert (_losses(method, logits, unshaped) - _losses(method, logits, shaped)).abs().min() > 0.1


def test_below_gamma_1_that_no_longer_holds() -> None:
    logits, q = _table(7), 3 * _table(8)
    log_sft = _per_token(torch.log_softmax(q, -1))
    values = _per_token(torch.logsumexp(q, -1, keepdim=True).expand(-1, V))
    method = Algorithm1(config.Algorithm1Config(gamma=0.9))
    unshaped = _expected_loss_gradient(method, logits, with_value(log_sft, values, MASK))
    assert (unshaped - _expected_loss_gradient(method, logits, log_sft)).abs().max() > 0.01


def test_algorithm_1_by_hand() -> None:
    method = Algorithm1(config.Algorithm1Config(gamma=0.5))
    mask = response_mask([2, 3])
    rewards = torch.tensor([[4.0, 2.0, 50.0], [1.0, 0.0, -4.0]])
    credit = method.credit(_batch(rewards, torch.zeros(2, 3), torch.ones(2, 3), mask), 5.0)
    assert credit.returns.tolist() == [[5.0, 2.0, 0.0], [0.0, -2.0, -4.0]]
    assert credit.advantages.equal(credit.returns)
    scores = TokenScores(torch.tensor([-1.0, -3.0]), torch.zeros(2), torch.zeros(2))
    assert method(scores, LossInputs(advantages=torch.tensor([5.0, -2.0])))["loss"].tolist() == [5.0, -6.0]
    assert method.loss_reduction == "sequence"


REWARDS = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9e9, 9e9]])
LOG_OLD = torch.tensor([[-1.0, -30.0, -1.0], [-2.0, 0.0, 0.0]])
LOG_SFT = torch.tensor([[-3.0, -1.0, -21.0], [-2.5, 0.0, 0.0]])
"""Log-ratios 2, -29, 20 and 0.5: with a bound of 10, the middle two are clamped to -10 and 10."""
BATCH = _batch(REWARDS, LOG_OLD, LOG_SFT, response_mask([3, 1]))


def test_reinforce_plus_plus_puts_the_clamped_kl_into_the_return() -> None:
    """Rewards less 0.1 KL are 0.8, 3, 2 and 3.95; with gamma 0.5 the first row's returns are 2.8, 4 and 2."""
    settings = config.ReinforcePlusPlusConfig(gamma=0.5, kl_weight=0.1, kl_bound=10.0, whiten=False)
    credit = ReinforcePlusPlus(settings).credit(BATCH, settings.kl_weight)
    torch.testing.assert_close(credit.returns, torch.tensor([[2.8, 4.0, 2.0], [3.95, 0.0, 0.0]]))
    assert credit.advantages.equal(credit.returns)


def test_reinforce_plus_plus_whitens_over_all_tokens_of_the_batch() -> None:
    settings = config.ReinforcePlusPlusConfig(gamma=0.5, kl_weight=0.1, kl_bound=10.0)
    credit = ReinforcePlusPlus(settings).credit(BATCH, settings.kl_weight)
    returns = [2.8, 4.0, 2.0, 3.95]
    mean, deviation = statistics.fmean(returns), statistics.pstdev(returns)
    a, b, c, d = [(g - mean) / deviation for g in returns]
    torch.testing.assert_close(credit.advantages, torch.tensor([[a, b, c], [d, 0.0, 0.0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(credit.returns, torch.tensor([[2.8, 4.0, 2.0], [3.95, 0.0, 0.0]]))


def test_the_batch_mean_comes_off_and_scales_nothing() -> None:
    settings = config.ReinforcePlusPlusConfig(gamma=0.5, kl_weight=0.1, kl_bound=10.0, whiten="batch_mean")
    credit = ReinforcePlusPlus(settings).credit(BATCH, settings.kl_weight)
    mean = statistics.fmean([2.8, 4.0, 2.0, 3.95])
    expected = [[2.8 - mean, 4.0 - mean, 2.0 - mean], [3.95 - mean, 0.0, 0.0]]
    torch.testing.assert_close(credit.advantages, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_the_expected_reward_of_the_state_alone_comes_off_whatever_gamma_is(gamma: float) -> None:
    """Not that of later states, which depend on the token that is credited."""
    settings = config.ReinforcePlusPlusConfig(gamma=gamma, kl_weight=0.1, baseline="expected", whiten=False)
    expected = torch.tensor([[0.5, -1.0, 2.0], [3.0, 99.0, 99.0]])
    credit = ReinforcePlusPlus(settings).credit(BATCH._replace(expected_rewards=expected), 0.1)
    torch.testing.assert_close(credit.advantages, (credit.returns - expected).where(BATCH.mask, torch.zeros(())))


def test_the_weight_of_an_iteration_counts_and_not_the_first_one() -> None:
    """With weight 0.2 the rewards less the KL are 0.6, 4, 1 and 3.9."""
    settings = config.ReinforcePlusPlusConfig(gamma=0.5, kl_weight=0.1, kl_bound=10.0, whiten=False)
    credit = ReinforcePlusPlus(settings).credit(BATCH, 0.2)
    torch.testing.assert_close(credit.returns, torch.tensor([[2.85, 4.5, 1.0], [3.9, 0.0, 0.0]]))


def test_the_position_baseline_comes_off_before_whitening() -> None:
    """Returns 3, 2 and 5: the first position's baselines are 5 and 3, the second position has no other response."""
    batch = _batch(torch.tensor([[1.0, 2.0], [5.0, 9.0]]), torch.zeros(2, 2), torch.zeros(2, 2), response_mask([2, 1]))
    settings = config.ReinforcePlusPlusConfig(baseline="position", whiten=False)
    credit = ReinforcePlusPlus(settings).credit(batch, 0.0)
    assert credit.returns.tolist() == [[3.0, 2.0], [5.0, 0.0]]
    assert credit.advantages.tolist() == [[-2.0, 2.0], [2.0, 0.0]]
    whitened = ReinforcePlusPlus(config.ReinforcePlusPlusConfig(baseline="position")).credit(batch, 0.0).advantages
    mean, deviation = 2 / 3, math.sqrt(32 / 9)
    expected = torch.tensor([[(-2 - mean) / deviation, (2 - mean) / deviation], [(2 - mean) / deviation, 0.0]])
    torch.testing.assert_close(whitened, expected)


def test_the_position_baseline_moves_no_expectation() -> None:
    """The expected loss gradient over every pair of responses is still the exact policy gradient."""
    logits, rewards = _table(9), 2 * _table(10)
    method = ReinforcePlusPlus(config.ReinforcePlusPlusConfig(kl_weight=0, whiten=False, baseline="position"))
    parameters = logits.clone().requires_grad_()
    log_policy, token_rewards = _per_token(torch.log_softmax(parameters, -1)), _per_token(rewards)
    probabilities = _probabilities(logits)
    expected, without = torch.zeros(()).double(), torch.zeros(()).double()
    for pair in itertools.product(range(len(RESPONSES)), repeat=2):
        rows = list(pair)
        old = log_policy.detach()[rows]
        credit = method.credit(_batch(token_rewards[rows], old, old, MASK[rows]), 0.0)
        weight = probabilities[pair[0]] * probabilities[pair[1]] / 2
        chosen = log_policy[rows][MASK[rows]]
        expected = expected - weight * (chosen * credit.advantages[MASK[rows]]).sum()
        without = without - weight * (chosen * credit.returns[MASK[rows]]).sum()
    exact = _exact_gradient(logits, rewards)
    (gradient,) = torch.autograd.grad(expected, parameters, retain_graph=True)
    torch.testing.assert_close(gradient, -exact, atol=1e-8, rtol=0)
    assert (expected - without).abs() > 0.1, "the baseline is at work"


def test_reinforce_plus_plus_clips_and_counts_what_it_clips() -> None:
    method = ReinforcePlusPlus(config.ReinforcePlusPlusConfig(ratio_clip=0.2))
    ratios = torch.tensor([1.5, 0.5, 1.1, 1.0, 1.5, 0.5])
    log_probs = (ratios.log() - 1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 2.0, 0.0, -1.0, 1.0])
    terms = method(
        TokenScores(log_probs, torch.zeros(6), torch.zeros(6)),
        LossInputs(old_log_probs=torch.full((6,), -1.0), advantages=advantages),
    )
    torch.testing.assert_close(terms["loss"], torch.tensor([-1.2, 0.8, -2.2, 0.0, 1.5, -0.5]))
    assert terms["clip_fraction"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "the last two are brought back"
    assert not terms["clip_fraction"].requires_grad
    assert method.loss_reduction == "token"


def test_a_configuration_finds_its_method() -> None:
    assert isinstance(policy_gradient(config.Algorithm1Config()), Algorithm1)
    assert isinstance(policy_gradient(config.ReinforcePlusPlusConfig()), ReinforcePlusPlus)
    assert policy_gradient(config.Algorithm1Config()).kl_control(5).weight == 0
    assert policy_gradient(config.ReinforcePlusPlusConfig(kl_weight=0.3)).kl_control(5).weight == 0.3
    assert sorted(POLICY_GRADIENTS) == [
        "algorithm1", "full_vocabulary", "ppo", "reinforce_plus_plus", "sequence_reinforce"
    ]  # fmt: skip
