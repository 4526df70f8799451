import pytest
import torch

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import RolloutBatch
from dpr_core.algorithms.sequence_reinforce import SequenceReinforce as SequenceReinforceMethod
from dpr_core.config.base import parse
from dpr_core.config.reinforce import ReinforceConfig, ReinforcePlusPlusConfig, SequenceReinforceConfig
from dpr_core.masking import response_mask
from dpr_core.returns import terminal_reward

MASK = response_mask([3, 1, 2])
REWARDS = torch.tensor([[1.0, 2.0, 4.0], [0.5, 9.0, 9.0], [-1.0, 3.0, 9.0]])
ZERO = torch.zeros(3, 3)
BATCH = RolloutBatch(REWARDS, ZERO, ZERO, MASK, ZERO)


def test_the_whole_reward_is_paid_at_the_last_token() -> None:
    assert terminal_reward(REWARDS, MASK).tolist() == [[0.0, 0.0, 7.0], [0.5, 0.0, 0.0], [0.0, 2.0, 0.0]]


def test_every_token_is_credited_with_the_whole_response() -> None:
    method = policy_gradient(SequenceReinforceConfig(whiten=False))
    returns = method.credit(BATCH, 0.0).returns
    assert returns.tolist() == [[7.0, 7.0, 7.0], [0.5, 0.0, 0.0], [2.0, 2.0, 0.0]]


def test_a_discount_counts_back_from_the_end() -> None:
    method = policy_gradient(SequenceReinforceConfig(whiten=False, gamma=0.5))
    returns = method.credit(BATCH, 0.0).returns
    assert returns.tolist() == [[1.75, 3.5, 7.0], [0.5, 0.0, 0.0], [1.0, 2.0, 0.0]]


def test_the_kl_term_stays_with_each_token() -> None:
    method = policy_gradient(SequenceReinforceConfig(whiten=False))
    returns = method.credit(BATCH._replace(log_old=torch.ones(3, 3)), 0.1).returns
    torch.testing.assert_close(returns[0], torch.tensor([7 - 0.3, 7 - 0.2, 7 - 0.1]))


def test_the_first_token_is_credited_as_under_the_dense_reward() -> None:
    dense = policy_gradient(ReinforcePlusPlusConfig(whiten=False))
    sparse = policy_gradient(SequenceReinforceConfig(whiten=False))
    batch = BATCH._replace(log_old=torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    first = [method.credit(batch, 0.1).returns[:, 0] for method in (dense, sparse)]
    torch.testing.assert_close(*first)
    later = [method.credit(batch, 0.1).returns[0, 1] for method in (dense, sparse)]
    assert later[0] != pytest.approx(later[1])


def test_settings_choose_it() -> None:
    settings = parse(ReinforceConfig, {"algorithm": {"type": "sequence_reinforce", "gamma": 0.9}}, "x")
    assert isinstance(policy_gradient(settings.algorithm), SequenceReinforceMethod)
