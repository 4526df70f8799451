import torch

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import LossInputs, RolloutBatch
from dpr_core.config.reinforce import FullVocabularyConfig, KLLinearConfig
from dpr_core.masking import response_mask

METHOD = policy_gradient(FullVocabularyConfig(kl_weight=0.1, kl_schedule=KLLinearConfig(final_weight=0.3)))


def test_the_loss_is_less_what_a_state_expects_and_its_gradient_goes_there() -> None:
    expected = torch.tensor([1.0, -2.0], requires_grad=True)
    loss = METHOD(expected, LossInputs())["loss"]
    assert loss.tolist() == [-1.0, 2.0]
    assert METHOD.loss_reduction == "token"
    assert METHOD.kl_control(3).weight == 0.1


def test_what_the_metrics_say_of_a_drawn_token_is_its_reward_less_its_kl() -> None:
    numbers = torch.tensor([[1.0, 3.0], [2.0, 7.0]])
    batch = RolloutBatch(numbers, torch.full((2, 2), -1.0), torch.full((2, 2), -2.0), response_mask([2, 1]), numbers)
    credit = METHOD.credit(batch, 0.5)
    assert credit.returns.tolist() == credit.advantages.tolist() == [[0.5, 2.5], [1.5, 0.0]]
