import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dpr_core.config.training import KLStop
from dpr_core.models.policy import Policy
from dpr_core.training.guard import KLGuard


def _set(policy: Policy, value: float) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(value)


def _is(policy: Policy, value: float) -> bool:
    return all(p.eq(value).all() for p in policy.parameters())


def test_it_goes_back_to_the_newest_policy_within_the_bound(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("gemma3")[0])  # with tied weights
    guard = KLGuard(KLStop(max_sequence_kl=0.5), policy)
    for value, kl in ((1.0, 0.0), (2.0, 0.5), (3.0, -0.1)):
        _set(policy, value)
        assert guard.passes(kl)
        assert _is(policy, value)
    _set(policy, 4.0)
    assert not guard.passes(0.5000001)
    assert _is(policy, 3.0)
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight


def test_what_is_remembered_does_not_move_with_the_policy(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0])
    guard = KLGuard(KLStop(), policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    assert guard.passes(0.1)
    _set(policy, 9.0)
    assert not guard.passes(2.0)
    assert all(p.equal(before[name]) for name, p in policy.named_parameters())


def test_a_kl_that_is_no_number_does_not_pass(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0])
    guard = KLGuard(KLStop(), policy)
    _set(policy, 1.0)
    guard.passes(0.0)
    _set(policy, math.nan)
    assert not guard.passes(math.nan)
    assert _is(policy, 1.0)


@pytest.mark.parametrize("kl", [0.6, math.nan])
def test_with_nothing_to_go_back_to_the_policy_stays_as_it_is(tiny: Callable[..., Any], kl: float) -> None:
    policy = Policy(tiny("llama")[0])
    _set(policy, 1.0)
    assert not KLGuard(KLStop(max_sequence_kl=0.5), policy).passes(kl)
    assert _is(policy, 1.0)
