import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dpr_core import logprobs
from dpr_core.logprobs import (
    LOG_RATIO_BOUND,
    Contrast,
    bounded,
    contrastive,
    expectation,
    log_probs_of,
    scores_and_expected_reward,
    scores_and_kl,
    token_scores,
)

N, D, V = 7, 5, 11


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(N, D, generator=generator),
        torch.randn(V, D, generator=generator),
        torch.randint(V, (N,), generator=generator),
        torch.randn(V, generator=generator),
    )


def _logits_by_loops(hidden: Tensor, head: Tensor, bias: Tensor | None) -> list[list[float]]:
    shift = [0.0] * len(head) if bias is None else bias.double().tolist()
    return [
        [
            sum(h * w for h, w in zip(state, row, strict=True)) + b
            for row, b in zip(head.double().tolist(), shift, strict=True)
        ]
        for state in hidden.double().tolist()
    ]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("logits_per_chunk", [1, V, 3 * V, 2**24])
def test_values_against_loops_in_double_precision(with_bias: bool, logits_per_chunk: int) -> None:
    hidden, head, targets, bias = _inputs()
    scores = token_scores(
        hidden, head, targets, bias if with_bias else None, entropy=True, logits_per_chunk=logits_per_chunk
    )
    for i, row in enumerate(_logits_by_loops(hidden, head, bias if with_bias else None)):
        total = sum(math.exp(z) for z in row)
        probabilities = [math.exp(z) / total for z in row]
        assert scores.values[i].item() == pytest.approx(math.log(total), abs=1e-5)
        assert scores.log_probs[i].item() == pytest.approx(math.log(probabilities[targets[i]]), abs=1e-5)
        assert scores.entropies[i].item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), abs=1e-5)


@pytest.mark.parametrize("logits_per_chunk", [1, 2 * V, 4 * V + 3, 2**24])
def test_gradients_do_not_depend_on_the_chunks(logits_per_chunk: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weights, value_weights = torch.randn(N, generator=generator), torch.randn(N, generator=generator)
    hidden, head, targets, bias = _inputs()

    plain = [x.clone().double().requires_grad_() for x in (hidden, head, bias)]
    logits = plain[0] @ plain[1].T + plain[2]
    loss = (torch.log_softmax(logits, -1)[range(N), targets] * weights).sum()
    loss = loss + (torch.logsumexp(logits, -1) * value_weights).sum()
    expected = torch.autograd.grad(loss, plain)

    chunked = [x.clone().requires_grad_() for x in (hidden, head, bias)]
    scores = token_scores(*chunked[:2], targets, chunked[2], entropy=True, logits_per_chunk=logits_per_chunk)
    found = torch.autograd.grad((scores.log_probs * weights).sum() + (scores.values * value_weights).sum(), chunked)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("logits_per_chunk", [1, 3 * V, 2**24])
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_a_temperature_divides_the_logits(with_bias: bool, logits_per_chunk: int, temperature: float) -> None:
    """Values, and the gradients by hidden states, head and bias."""
    given = _inputs()
    hidden, head, bias = (each.double().requires_grad_() for each in (given[0], given[1], given[3]))
    targets, options = given[2], {"entropy": True, "logits_per_chunk": logits_per_chunk}
    offset = bias if with_bias else None
    found = token_scores(hidden, head, targets, offset, temperature=temperature, **options)
    logits = torch.nn.functional.linear(hidden, head, offset) / temperature
    logs = torch.log_softmax(logits, -1)
    torch.testing.assert_close(found.log_probs, logs[range(N), targets])
    torch.testing.assert_close(found.values, logits.logsumexp(-1))
    torch.testing.assert_close(found.entropies, -(logs.exp() * logs).sum(-1))
    leaves = [hidden, head, *[bias] * with_bias]
    ours = torch.autograd.grad((found.log_probs * found.values).sum(), leaves)
    plain = torch.autograd.grad((logs[range(N), targets] * logits.logsumexp(-1)).sum(), leaves)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_log_ratios_are_bounded_from_above_and_otherwise_as_they_are() -> None:
    found = bounded(torch.tensor([-200.0, -20.0, 0.3, 20.0, 95.0]))
    assert found.tolist() == [-200.0, -20.0, pytest.approx(0.3), LOG_RATIO_BOUND, LOG_RATIO_BOUND]
    assert found.exp().isfinite().all()


@pytest.mark.parametrize("logits_per_chunk", [V, 3 * V, 2**24])
def test_gradients_against_finite_differences_in_double_precision(logits_per_chunk: int) -> None:
    hidden, head, targets, bias = _inputs(1)
    inputs = [x.double().requires_grad_() for x in (hidden, head, bias)]

    def scores(hidden: Tensor, head: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, values, _ = token_scores(hidden, head, targets, bias, logits_per_chunk=logits_per_chunk)
        return log_probs, values

    # The second pass over a graph takes another way, which rounds differently.
    assert torch.autograd.gradcheck(scores, inputs, nondet_tol=1e-12)


def test_a_second_backward_pass_over_the_same_graph_gives_the_same() -> None:
    hidden, head, targets, _ = _inputs()
    log_probs = token_scores(hidden.requires_grad_(), head, targets).log_probs.sum()
    first, second = (torch.autograd.grad(log_probs, hidden, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_frozen_parts_get_no_gradient() -> None:
    hidden, head, targets, bias = _inputs()
    token_scores(hidden.requires_grad_(), head, targets, bias).log_probs.sum().backward()
    assert hidden.grad is not None
    assert head.grad is None
    assert bias.grad is None


def test_logits_that_all_fit_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = logprobs._product

    def recorded(*arguments: Any) -> Tensor:
        logits: Tensor = original(*arguments)
        calls.append(logits.numel())
        return logits

    monkeypatch.setattr(logprobs, "_product", recorded)
    hidden, head, targets, _ = _inputs()
    token_scores(hidden.requires_grad_(), head, targets).log_probs.sum().backward()
    assert calls == [N * V]


def test_never_more_logits_at_once_than_allowed_in_either_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = logprobs._product

    def recorded(*arguments: Any) -> Tensor:
        logits: Tensor = original(*arguments)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(logprobs, "_product", recorded)
    hidden, head, targets, _ = _inputs()
    hidden.requires_grad_()
    token_scores(hidden, head, targets, logits_per_chunk=2 * V + 1).log_probs.sum().backward()
    assert max(sizes) == 2 * V
    assert sum(sizes) == 2 * N * V  # once forward, once again backward


def _near_twenty() -> tuple[Tensor, Tensor, Tensor]:
    """Bfloat16 inputs with logits near 20, where neighbouring bfloat16 numbers are 0.125 apart."""
    head = torch.tensor([[20.0, 0.0625], [20.0, 0.03125], [20.0, -0.046875]], dtype=torch.bfloat16)
    hidden = torch.tensor([[1.0, 1.0], [1.0, -0.5]], dtype=torch.bfloat16)
    return hidden, head, torch.tensor([0, 2])


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_inputs_give_the_float32_answer(autocast: bool) -> None:
    hidden, head, targets = _near_twenty()
    exact = torch.log_softmax(hidden.double() @ head.double().T, -1)[range(2), targets]
    rounded = torch.log_softmax(hidden @ head.T, -1)[range(2), targets].double()
    assert (rounded - exact).abs().max() > 0.01, "the case is too easy to tell the two precisions apart"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        scores = token_scores(hidden, head, targets)
    assert scores.log_probs.dtype == torch.float32
    torch.testing.assert_close(scores.log_probs.double(), exact, atol=1e-5, rtol=0)


def test_the_soft_value_and_the_log_prob_add_up_to_the_logit() -> None:
    hidden, head, targets, bias = _inputs()
    scores = token_scores(hidden, head, targets, bias)
    chosen = [row[target] for row, target in zip(_logits_by_loops(hidden, head, bias), targets.tolist(), strict=True)]
    torch.testing.assert_close(
        (scores.log_probs + scores.values).double(), torch.tensor(chosen).double(), atol=1e-5, rtol=0
    )


def test_entropies_are_only_computed_on_request_and_carry_no_gradient() -> None:
    hidden, head, targets, _ = _inputs()
    hidden.requires_grad_()
    assert token_scores(hidden, head, targets).entropies.tolist() == [0.0] * N
    assert not token_scores(hidden, head, targets, entropy=True).entropies.requires_grad


def test_a_uniform_policy_has_entropy_log_v() -> None:
    scores = token_scores(torch.zeros(1, D), torch.randn(V, D), torch.tensor([2]), entropy=True)
    assert scores.entropies.item() == pytest.approx(math.log(V), abs=1e-6)
    assert scores.log_probs.item() == pytest.approx(-math.log(V), abs=1e-6)


def test_no_tokens_give_no_scores() -> None:
    hidden = torch.zeros(0, D, requires_grad=True)
    scores = token_scores(hidden, torch.ones(V, D), torch.zeros(0, dtype=torch.long), entropy=True, logits_per_chunk=1)
    assert [len(column) for column in scores] == [0, 0, 0]
    scores.log_probs.sum().backward()
    none = torch.zeros(0, D), torch.ones(V, D), None
    scores, *others = scores_and_kl(none, none, torch.zeros(0, dtype=torch.long), entropy_at=0.7)
    assert [len(column) for column in (*scores, *others)] == [0] * 5


@pytest.mark.parametrize("logits_per_chunk", [1, 3 * V, 2**24])
def test_kl_against_torch_distributions(logits_per_chunk: int) -> None:
    hidden_p, head_p, *_ = _inputs(0)
    hidden_q, head_q, targets, _ = _inputs(1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=hidden_p.double() @ head_p.double().T),
        torch.distributions.Categorical(logits=hidden_q.double() @ head_q.double().T),
    )
    q = hidden_q, head_q, None
    p = hidden_p, head_p, None
    scores, found, entropies = scores_and_kl(p, q, targets, entropy_at=0.7, logits_per_chunk=logits_per_chunk)
    tempered = torch.distributions.Categorical(logits=hidden_p.double() @ head_p.double().T / 0.7)
    torch.testing.assert_close(entropies.double(), tempered.entropy(), atol=1e-5, rtol=1e-5)
    assert scores_and_kl(p, q, targets)[2].eq(0).all()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    alone = token_scores(hidden_q, head_q, targets, logits_per_chunk=logits_per_chunk)
    torch.testing.assert_close(tuple(scores), tuple(alone))


def test_kl_of_a_model_to_itself_is_zero() -> None:
    hidden, head, targets, _ = _inputs()
    assert scores_and_kl((hidden, head, None), (hidden.clone(), head.clone(), None), targets)[1].tolist() == [0.0] * N


def test_contrastive_logits_by_hand() -> None:
    """Odds of 3:1 against 1:1, once as far again: 9:1."""
    found = contrastive(torch.tensor([0.75, 0.25]).log() + 5, torch.tensor([0.5, 0.5]).log() - 3, 1.0)
    assert torch.softmax(found, -1).tolist() == pytest.approx([0.9, 0.1])


def test_contrastive_decoding_trades_reward_for_kl_best_in_every_state() -> None:
    """Of 2000 other policies, none has a higher E[r] - KL(pi || pi_SFT) / k; its value is log E_SFT[exp(k r)] / k."""
    generator, k = torch.Generator().manual_seed(0), 3.0
    log_sft, log_ref = (torch.log_softmax(torch.randn(6, generator=generator).double(), -1) for _ in range(2))
    best = torch.log_softmax(contrastive(log_sft, log_ref, k), -1)
    noise = torch.randn(2000, 6, generator=generator).double() * torch.logspace(-3, 1, 2000)[:, None]

    def objective(log_policy: Tensor) -> Tensor:
        return (log_policy.exp() * (log_sft - log_ref - (log_policy - log_sft) / k)).sum(-1)

    assert objective(torch.log_softmax(best + noise, -1)).max() < objective(best)
    expected = torch.log((log_sft.exp() * (k * (log_sft - log_ref)).exp()).sum()) / k
    assert objective(best).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("logits_per_chunk", [1, 3 * V, 2**24])
def test_log_probs_of_the_contrastive_policy_by_hand(logits_per_chunk: int) -> None:
    (hidden, head, targets, bias), (other, *_) = _inputs(), _inputs(1)
    states = (hidden, head, bias), (other, head, None)
    found = log_probs_of(Contrast(*states, k=1.5), targets, logits_per_chunk=logits_per_chunk)
    for n, target in enumerate(targets.tolist()):
        ours, theirs = (_logits_by_loops(h, w, b)[n] for h, w, b in states)
        norms = [math.log(sum(map(math.exp, row))) for row in (ours, theirs)]
        mixed = [2.5 * (z - norms[0]) - 1.5 * (y - norms[1]) for z, y in zip(ours, theirs, strict=True)]
        assert float(found[n]) == pytest.approx(mixed[target] - math.log(sum(map(math.exp, mixed))), abs=1e-4)
    alone = log_probs_of(states[0], targets, logits_per_chunk=logits_per_chunk)
    assert alone.tolist() == pytest.approx(token_scores(*states[0][:2], targets, bias).log_probs.tolist(), abs=1e-5)


def _two_frozen() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(7, 11, generator=generator).double(), torch.randn(7, 11, generator=generator).double()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_expected_reward_and_the_scores_are_sums_over_the_vocabulary(rows: int) -> None:
    ours, (sft, ref) = torch.randn(7, 11, generator=torch.Generator().manual_seed(1)).double(), _two_frozen()
    targets = torch.arange(7)
    logits = [lambda chunk, z=z: z[chunk].clone() for z in (ours, sft, ref)]
    scores, expected = scores_and_expected_reward(*logits, lambda a, b: (a - b).clamp(max=0.3), targets, rows)
    for each, z in zip(scores, (ours, sft, ref), strict=True):
        for i in range(7):
            value = math.log(sum(math.exp(x) for x in z[i].tolist()))
            assert each.values[i].item() == pytest.approx(value, abs=1e-12)
            assert each.log_probs[i].item() == pytest.approx(z[i, i].item() - value, abs=1e-12)
    for i in range(7):
        p, a, b = (torch.softmax(z[i], -1).tolist() for z in (ours, sft, ref))
        by_hand = sum(x * min(math.log(y / z), 0.3) for x, y, z in zip(p, a, b, strict=True))
        assert expected[i].item() == pytest.approx(by_hand, abs=1e-12)
        entropy = -sum(x * math.log(x) for x in p)
        assert scores[0].entropies[i].item() == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_expectation_and_its_gradient_are_those_of_a_plain_sum(rows: int, beta: float, temperature: float) -> None:
    """In double precision, with weights on the states, whose gradients come from chunks."""
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(*shape, generator=generator).double().requires_grad_() for shape in ((7, 4), (11, 4), (11,))]
    wanted, weights = _two_frozen()[0], torch.randn(7, generator=generator).double()

    found = expectation((parts[0], parts[1], parts[2]), lambda chunk: wanted[chunk].clone(), beta, temperature, rows)
    log_policy = torch.log_softmax((parts[0] @ parts[1].T + parts[2]) / temperature, -1)
    plain = (log_policy.exp() * (wanted - beta * log_policy)).sum(-1)
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)
    expected = torch.autograd.grad((plain * weights).sum(), parts)
    for _ in range(2):  # a second pass computes again what the first has overwritten
        ours = torch.autograd.grad((found * weights).sum(), parts, retain_graph=True)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
