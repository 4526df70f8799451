from collections.abc import Callable
from typing import Any

import pytest
import torch

from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.critic import Critic
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score_values

ROWS = [TokenSequence((1, 30, 31), (40, 41, 42, 2)), TokenSequence((1,), (45, 46)), TokenSequence((1, 60), (2,))]


def _critic(tiny: Callable[..., Any], family: str = "llama") -> Critic:
    """With a head that is no longer 0."""
    critic = Critic(Policy(tiny(family)[0]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        critic.head.weight.normal_(generator=generator)
        critic.head.bias.fill_(0.25)
    return critic


def test_a_fresh_critic_expects_nothing(tiny: Callable[..., Any]) -> None:
    assert score_values(Critic(Policy(tiny("llama")[0])), ROWS, 8192).eq(0).all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma3"])
def test_values_are_the_heads_on_the_states_in_front_of_each_token(tiny: Callable[..., Any], family: str) -> None:
    """Row by row, without padding, from the hidden states that plain transformers reports."""
    critic, (model, _) = _critic(tiny, family), tiny(family)
    found = score_values(critic, ROWS, 8192)
    weight, bias = critic.head.weight.detach()[0], critic.head.bias.detach()
    for i, row in enumerate(ROWS):
        ids = torch.tensor([[*row.prompt, *row.response]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[-1][0, len(row.prompt) - 1 : -1]
        torch.testing.assert_close(found[i, : len(row.response)], states @ weight + bias, atol=1e-4, rtol=1e-4)
        assert found[i, len(row.response) :].eq(0).all()


@pytest.mark.parametrize("budget", [1, 10])
def test_values_do_not_depend_on_micro_batches(tiny: Callable[..., Any], budget: int) -> None:
    critic = _critic(tiny)
    torch.testing.assert_close(
        score_values(critic, ROWS, budget), score_values(critic, ROWS, 8192), atol=1e-5, rtol=1e-5
    )


def test_it_has_a_body_of_its_own_that_learns_even_if_the_policys_is_frozen(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0]).requires_grad_(False)
    critic = Critic(policy)
    before = [p.clone() for p in policy.parameters()]
    with torch.no_grad():
        critic.head.weight.fill_(1.0)
        for parameter in critic.model.parameters():
            parameter.add_(1.0)
    assert all(p.equal(q) for p, q in zip(policy.parameters(), before, strict=True))
    critic(collate(ROWS)).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert sum(p.numel() for p in critic.parameters()) < sum(p.numel() for p in policy.parameters())
