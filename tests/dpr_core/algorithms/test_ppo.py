import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import LossInputs, RolloutBatch
from dpr_core.algorithms.ppo import PPO, ValueRegression
from dpr_core.config import reinforce as config
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.masking import response_mask
from dpr_core.models.critic import Critic
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score_values
from dpr_core.training.trainer import Trainer

MASK = response_mask([3, 1])
BATCH = RolloutBatch(
    rewards=torch.tensor([[1.0, 2.0, 4.0], [0.5, 9e9, 9e9]]),
    log_old=torch.tensor([[-1.0, -2.0, -1.0], [-2.0, 0.0, 0.0]]),
    log_sft=torch.tensor([[-2.0, -2.0, -3.0], [-1.0, 0.0, 0.0]]),
    mask=MASK,
    values=torch.tensor([[2.0, 4.0, 6.0], [1.0, 0.0, 0.0]]),
)
"""Log-ratios 1, 0, 2 and -1; the totals are 7 and 0.5."""


def test_credit_by_hand() -> None:
    """With KL weight 0.5 the rewards are -0.5, 0, 7 - 1 and 0.5 + 0.5; with gamma 0.5 and lambda 0.5 the TD residuals
    -0.5 + 2 - 2, 0 + 3 - 4, 6 - 6 and 1 - 1 add up with weight 0.25."""
    settings = config.PPOConfig(gamma=0.5, gae_lambda=0.5, whiten=False)
    credit = policy_gradient(settings).credit(BATCH, 0.5)
    assert credit.advantages.tolist() == [[-0.5 - 0.25, -1.0, 0.0], [0.0, 0.0, 0.0]]
    assert credit.returns.tolist() == [[1.25, 3.0, 6.0], [1.0, 0.0, 0.0]]


def test_advantages_are_whitened_and_returns_are_not() -> None:
    settings = config.PPOConfig(gamma=0.5, gae_lambda=0.5)
    credit = policy_gradient(settings).credit(BATCH, 0.5)
    mean, deviation = -1.75 / 4, math.sqrt((0.75**2 + 1) / 4 - (1.75 / 4) ** 2)
    expected = [(a - mean) / deviation for a in (-0.75, -1.0, 0.0, 0.0)]
    torch.testing.assert_close(credit.advantages[MASK], torch.tensor(expected))
    assert credit.returns.tolist() == [[1.25, 3.0, 6.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("options", [{}, {"baseline": "position"}, {"whiten": False}])
def test_with_lambda_1_and_a_critic_that_expects_nothing_it_is_sr(options: dict[str, Any]) -> None:
    untrained = BATCH._replace(values=torch.zeros(2, 3))
    ppo = policy_gradient(config.PPOConfig(**options)).credit(untrained, 0.3)
    sr = policy_gradient(config.SequenceReinforceConfig(**options)).credit(untrained, 0.3)
    torch.testing.assert_close(ppo.advantages, sr.advantages)
    torch.testing.assert_close(ppo.returns, sr.returns)
    assert sr.advantages[MASK].abs().min() > 0


def test_with_lambda_1_the_critic_learns_the_whole_return_whatever_it_expects() -> None:
    method = policy_gradient(config.PPOConfig(whiten=False))
    credit, sr = method.credit(BATCH, 0.0), policy_gradient(config.SequenceReinforceConfig()).credit(BATCH, 0.0)
    torch.testing.assert_close(credit.returns, sr.returns)
    assert credit.returns.tolist() == [[7.0, 7.0, 7.0], [0.5, 0.0, 0.0]]
    assert credit.advantages.tolist() == [[5.0, 3.0, 1.0], [-0.5, 0.0, 0.0]]


def test_it_says_what_critic_it_needs() -> None:
    method = policy_gradient(config.PPOConfig(critic_learning_rate=0.5, critic_warmup_iterations=2))
    assert isinstance(method, PPO)
    assert method.critic.learning_rate == 0.5
    assert method.critic.warmup_iterations == 2
    for other in (config.Algorithm1Config(), config.ReinforcePlusPlusConfig(), config.SequenceReinforceConfig()):
        assert policy_gradient(other).critic is None


ROWS = [
    TokenSequence((1, 30, 31), (40, 41, 42, 2)),
    TokenSequence((1, 33), (0, 0, 45, 46, 47, 48)),
    TokenSequence((1, 60, 61, 62), (2,)),
    TokenSequence((1,), (70, 71, 72)),
]
ROWS_MASK = response_mask([len(row.response) for row in ROWS])


def _garbage_outside(seed: int) -> torch.Tensor:
    numbers = torch.randn(ROWS_MASK.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(ROWS_MASK, numbers, 1e9)


RETURNS, OLD_VALUES, OLD_LOG_PROBS = 3 * _garbage_outside(0), 0.1 * _garbage_outside(1), _garbage_outside(2) - 4


def _critic(tiny: Callable[..., Any]) -> Critic:
    critic = Critic(Policy(tiny("llama")[0]))
    with torch.no_grad():
        critic.head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    return critic


def _steps(module: torch.nn.Module, objective: Any, order: list[int], budget: int, checkpointing: bool) -> Any:
    optimizer = OptimizerConfig(learning_rate=1e-2, batch_size=4, warmup_ratio=0, max_gradient_norm=1e9)
    execution = ExecutionConfig(tokens_per_micro_batch=budget, gradient_checkpointing=checkpointing)
    trainer = Trainer(module, optimizer, 10, execution, name="critic")
    inputs = LossInputs(OLD_LOG_PROBS, OLD_VALUES, RETURNS, RETURNS).map(lambda values: values[order])
    metrics = [trainer.step([ROWS[i] for i in order], objective, inputs) for _ in range(2)]
    return metrics, [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("which", ["critic", "actor"])
@pytest.mark.parametrize(
    ("order", "budget", "checkpointing"),
    [([0, 1, 2, 3], 1, False), ([3, 1, 0, 2], 16, False), ([2, 3, 1, 0], 8192, True)],
)
def test_both_losses_depend_neither_on_micro_batches_nor_on_order_nor_on_padding(
    tiny: Callable[..., Any], which: str, order: list[int], budget: int, checkpointing: bool
) -> None:
    def module() -> torch.nn.Module:
        return _critic(tiny) if which == "critic" else Policy(tiny("llama")[0])

    method = PPO(config.PPOConfig())
    objective = method.critic if which == "critic" else method
    expected, weights = _steps(module(), objective, [0, 1, 2, 3], 8192, False)
    found, other_weights = _steps(module(), objective, order, budget, checkpointing)
    for a, b in zip(found, expected, strict=True):
        for name in ("critic/loss", "critic/gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name
    for a, b in zip(other_weights, weights, strict=True):
        # Adam's first steps divide by the gradient's own size, which blows up rounding where it is next to nothing.
        torch.testing.assert_close(a, b, atol=5e-4, rtol=0)
    assert expected[0]["critic/loss"] != pytest.approx(expected[1]["critic/loss"], rel=1e-3)


def test_old_values_hold_the_critic_only_where_a_clip_is_asked_for() -> None:
    inputs = LossInputs(old_values=torch.tensor([1.0]), returns=torch.tensor([30.0]))
    for clip, held in ((None, 0.0), (10.0, 0.0), (0.2, 1.0)):
        values = torch.tensor([2.0], requires_grad=True)
        ValueRegression(config.PPOConfig(value_clip=clip))(values, inputs)["loss"].sum().backward()
        assert values.grad is not None
        assert values.grad.tolist() == [-28.0 * (1 - held)]


def test_the_critics_loss_is_the_mean_over_tokens(tiny: Callable[..., Any]) -> None:
    """Old values that are the critic's own: no clip at work, half the mean squared error."""
    critic = _critic(tiny)
    old = score_values(critic, ROWS, 8192)
    error = (old - RETURNS)[ROWS_MASK]
    trainer = Trainer(
        critic, OptimizerConfig(learning_rate=1e-3, batch_size=4), 10, ExecutionConfig(tokens_per_micro_batch=16)
    )
    metrics = trainer.step(ROWS, ValueRegression(config.PPOConfig()), LossInputs(returns=RETURNS, old_values=old))
    assert metrics["train/loss"] == pytest.approx(0.5 * error.square().mean().item(), rel=1e-4)


def test_a_critic_learns_what_can_be_expected(tiny: Callable[..., Any]) -> None:
    """Returns that are a function of the state: the error shrinks to a small part of what it was."""
    critic = Critic(Policy(tiny("llama")[0]))
    returns = torch.where(ROWS_MASK, torch.tensor([row.response[0] / 40.0 for row in ROWS])[:, None], 0)
    trainer = Trainer(critic, OptimizerConfig(learning_rate=1e-2, batch_size=4, warmup_ratio=0), 60, ExecutionConfig())
    losses = []
    for _ in range(60):
        given = LossInputs(returns=returns, old_values=score_values(critic, ROWS, 8192))
        losses.append(trainer.step(ROWS, ValueRegression(config.PPOConfig()), given)["train/loss"])
    assert losses[-1] < 0.05 * losses[0]
