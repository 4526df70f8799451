"""What a GPU's tensor cores may round in the head, and what they may not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpr_core import logprobs
from dpr_core.config.execution import ExecutionConfig
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine

ROWS = [TokenSequence((5, 6, 7), tuple(range(20, 60))), TokenSequence((7, 30), tuple(range(60, 90)))]
PRODUCTS = {"linear", "mm", "addmm", "addmm_", "bmm", "baddbmm"}


class Products(TorchDispatchMode):
    """(name, type of the factors, torch's switch) of every product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, str]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.seen.append((name, args[1].dtype, torch.backends.cuda.matmul.fp32_precision))
        return function(*args, **(kwargs or {}))


def test_under_bfloat16_the_heads_products_alone_may_be_rounded(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0], activations=torch.bfloat16, tf32_head=True)
    with Products() as products:
        policy(collate(ROWS)).log_probs.sum().backward()
        InProcessEngine.of(policy, ExecutionConfig()).generate([(5, 6)], Sampling(1.0, 3, 1), seed=0)
    switches = {(dtype, switch) for _, dtype, switch in products.seen}
    assert switches == {(torch.bfloat16, "none"), (torch.float32, "tf32")}
    assert torch.backends.cuda.matmul.fp32_precision == "none"
    # The head reads states once, gives gradients to states and weights, and draws three tokens.
    assert sum(dtype == torch.float32 for _, dtype, _ in products.seen) == 3 + 3


@pytest.mark.parametrize(("activations", "allowed"), [(torch.float32, True), (torch.bfloat16, False)])
def test_in_float32_and_unless_it_is_asked_for_nothing_is_rounded(
    tiny: Callable[..., Any], activations: torch.dtype, allowed: bool
) -> None:
    policy = Policy(tiny("llama")[0], activations=activations, tf32_head=allowed)
    with Products() as products:
        policy(collate(ROWS)).log_probs.sum().backward()
        InProcessEngine.of(policy, ExecutionConfig()).generate([(5, 6)], Sampling(1.0, 3, 1), seed=0)
    assert products.seen
    assert all(switch == "none" for _, _, switch in products.seen)


def test_the_error_of_a_rounded_head_is_small_beside_that_of_rounded_layers(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the reward, log pi_SFT - log pi_ref, of two models that are near each other."""
    exact, layers, head, coarse = [], [], [], []
    for seed in range(8):
        model = tiny("llama", seed=seed)[0]
        other = tiny("llama", seed=seed)[0]
        with torch.no_grad():
            for weight in other.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        pair = model, other
        exact.append(_reward(pair, torch.float32))
        layers.append(_reward(pair, torch.bfloat16))
        for bits, found in ((10, head), (7, coarse)):
            with _rounding(bits, monkeypatch):
                found.append(_reward(pair, torch.float32))
    by_layers, by_head, by_coarse = (
        (torch.cat(found) - torch.cat(exact)).square().mean().sqrt() for found in (layers, head, coarse)
    )
    assert 0 < 3 * by_head < by_layers
    assert by_coarse > 4 * by_head


@pytest.mark.gpu
def test_a_gpu_scores_alike_with_and_without(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0].cuda(), activations=torch.bfloat16)
    exact = score(policy, ROWS, None).log_probs
    policy.tf32_head = True
    torch.testing.assert_close(score(policy, ROWS, None).log_probs, exact, atol=0.02, rtol=0)


@contextmanager
def _rounding(bits: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The head's factors keep so many bits after the first."""
    linear = torch.nn.functional.linear
    with monkeypatch.context() as patched:
        patched.setattr(
            logprobs.functional, "linear", lambda x, w, bias=None: linear(_kept(x, bits), _kept(w, bits), bias)
        )
        yield


def _kept(values: Tensor, bits: int) -> Tensor:
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round(), exponent - bits - 1)


def _reward(pair: tuple[Any, Any], activations: torch.dtype) -> Tensor:
    sft, reference = (score(Policy(model, activations=activations), ROWS, None).log_probs for model in pair)
    return (sft - reference).flatten()
