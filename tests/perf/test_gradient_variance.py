import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.rollouts.engine import Sampling
from perf.gradient_variance import AT_GAMMA_0, ESTIMATORS, describe, gradients, main, markdown, rollouts

ROWS = [TokenSequence((1, 2), (3, 4, 0)), TokenSequence((3,), (1, 2))]


def _log_policy(model: Any, row: TokenSequence) -> torch.Tensor:
    ids = torch.tensor([[*row.prompt, *row.response]])
    return torch.log_softmax(model(ids).logits[0, len(row.prompt) - 1 : -1], -1)


def _log_probs(model: Any, row: TokenSequence) -> torch.Tensor:
    log_policy = _log_policy(model, row)
    return log_policy[range(len(row.response)), list(row.response)]


def test_the_gradients_are_those_of_plain_torch(toy: Callable[..., Any]) -> None:
    reward = TokenReward(Policy(toy(0)), Policy(toy(1)), "baseline_relative")
    found = gradients(Policy(toy(0)), reward, ROWS)

    model = toy(0)
    with torch.no_grad():
        rewards = [_log_probs(model, row) - _log_probs(toy(1), row) for row in ROWS]
    to_go = [torch.stack([r[t:].sum() for t in range(len(r))]) for r in rewards]
    whole = [r.sum().expand(len(r)) for r in rewards]

    def less_the_others(returns: list[torch.Tensor]) -> list[torch.Tensor]:
        first, second = returns
        return [torch.stack([first[0] - second[0], first[1] - second[1], first[2]]), second - first[:2]]

    expected = []
    policies = [[_log_policy(toy(seed), row) for row in ROWS] for seed in (0, 1)]
    with torch.no_grad():
        hoped = [(a.exp() * (a - b)).sum(-1) for a, b in zip(*policies, strict=True)]

    def less_the_expected(returns: list[torch.Tensor]) -> list[torch.Tensor]:
        return [r - e for r, e in zip(returns, hoped, strict=True)]

    at_gamma_1 = [to_go, whole, less_the_others(to_go), less_the_others(whole), less_the_expected(to_go)]
    for weights in (*at_gamma_1, rewards, less_the_others(rewards), less_the_expected(rewards)):
        model.zero_grad()
        loss = -sum(((_log_probs(model, row) * w).sum() for row, w in zip(ROWS, weights, strict=True)), torch.zeros(()))
        (loss / 2).backward()
        expected.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    for row, (log_sft, log_ref) in zip(ROWS, zip(*policies, strict=True), strict=True):
        gains = (log_sft - log_ref).detach()
        (-(_log_policy(model, row).exp() * gains).sum() / 2).backward()
    expected.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_variances_of_known_normal_samples() -> None:
    """100 parameters of mean 1 (squared norm 100), with variance 4 a parameter for DPR and 9 for the others."""
    generator = torch.Generator().manual_seed(0)
    deviations = torch.tensor([2.0, 3.0, 3.0, 3.0, 3.0, 1.0, 3.0, 3.0, 0.5])[None, :, None]
    results = describe(1 + deviations * torch.randn(400, 9, 100, generator=generator))
    assert list(results) == [*ESTIMATORS, *AT_GAMMA_0]
    assert results["gamma 0, full vocabulary"]["over_plain"] == pytest.approx(1 / 4, rel=0.05)
    assert results["gamma 0, full vocabulary"]["over_dpr"] == pytest.approx(1 / 16, rel=0.05)
    assert results["gamma 0"]["over_plain_interval"] == pytest.approx((1, 1))
    assert results["DPR"]["variance"] == pytest.approx(400, rel=0.05)
    assert results["SR"]["variance"] == pytest.approx(900, rel=0.05)
    assert results["DPR"]["relative"] == pytest.approx(4, rel=0.15)
    assert results["SR"]["relative"] == pytest.approx(9, rel=0.15)
    assert results["SR"]["over_dpr"] == pytest.approx(9 / 4, rel=0.05)
    low, high = results["SR"]["interval"]
    assert 2 < low < 9 / 4 < high < 2.5
    assert results["DPR"]["interval"] == pytest.approx((1, 1))
    assert markdown(results).splitlines()[3].startswith("| SR | ")


def test_rollouts_are_fresh_and_repeatable(toy: Callable[..., Any]) -> None:
    def drawn(seed: int) -> list[list[TokenSequence]]:
        return list(rollouts(Policy(toy(0)), [(1, 2), (3,), (4, 4)], Sampling(1.0, 4, 0), 3, 8, seed))

    first = drawn(0)
    assert [len(rows) for rows in first] == [8, 8, 8]
    assert first[0] != first[1]
    assert drawn(0) == first
    assert drawn(1) != first


def test_what_was_found_is_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    found = describe(torch.randn(5, 9, 3, generator=generator))
    (tmp_path / "found.json").write_text(json.dumps({"estimators": found}))
    main(["--of", str(tmp_path / "found.json")])
    assert capsys.readouterr().out == f"{markdown(found)}\n"


def test_one_mini_batch_has_no_variance(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reward", "--batches", "1"])
    assert "two mini-batches" in capsys.readouterr().err
