import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dpr_core.theory import bounds, checks, eos, iq_learn, policy_gradient, shaping, soft_bellman
from dpr_core.theory.claim import Measured, TheoryClaim, at_most, equal

FALSE = {
    "Eq. 1 with the printed sign",
    "A.3: min over pi of L as printed",
    "Eq. 2: occupancies match at the saddle",
    "Theorem 2 as stated, at the true saddle",
    "Variance: DPR at most SR",
    "Variance: the baseline reduces it (section 4.3)",
    "A.9 as printed",
    "A.9: the dynamic range shrinks by the promise",
    "A.10 for any F",
    "A.10's line Q^F - (V^F + F) = Q - V",
    "A.11 on a subset that leaves out the first state",
    "Section 4.3: the baseline removes the EOS pathology",
    "Section 4.3: the baseline cancels length bias",
}


@pytest.fixture(scope="module")
def identities() -> list[checks.Identity]:
    return checks.run(seed=0, instances=20)


def test_what_holds_holds_to_rounding_and_what_fails_fails_clearly(identities: list[checks.Identity]) -> None:
    assert {each.name for each in identities if not each.holds} == FALSE
    for each in identities:
        if each.holds:
            assert each.residual < 1e-12, each
        else:
            assert each.residual > 1e-2, each


def test_names_are_unique_and_notes_are_filled_in(identities: list[checks.Identity]) -> None:
    assert len({each.name for each in identities}) == len(identities) == len(checks.CLAIMS)
    for each in identities:
        assert not re.search(r"\bnan\b|\{|mean\[", each.note.replace("sum_{", "")), each


def test_counter_examples_named_in_the_notes_exist(identities: list[checks.Identity]) -> None:
    names = {name for each in identities for name in re.findall(r"\w+_counter_example", each.note)}
    modules = (bounds, eos, iq_learn, policy_gradient, shaping, soft_bellman)
    assert len(names) == 8
    assert all(any(hasattr(module, name) for module in modules) for name in names)


def test_a_seed_gives_the_same_numbers_and_another_seed_others(identities: list[checks.Identity]) -> None:
    short = checks.run(seed=5, instances=2)
    assert checks.run(seed=5, instances=2) == short
    assert [each.residual for each in checks.run(seed=6, instances=2)] != [each.residual for each in short]


def test_the_table(identities: list[checks.Identity]) -> None:
    lines = checks.table([*identities[:1], checks.Identity("a | b", 0.5, 1e-9, False, "why")]).splitlines()
    assert lines[0].startswith("| claim | holds |")
    assert len(lines) == 4
    assert lines[2].startswith("| Eq. 1 (A.2) | yes |")
    assert lines[3] == "| a \\| b | no | 5.0e-01 | 1e-09 | why |"


def test_measurements() -> None:
    assert equal(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0])).residual == 0.5
    measured = at_most([(1.0, 3.0), (2.0, 2.5)])
    assert (measured.residual, measured.slack) == (-0.5, 1.25)
    assert at_most([(2.0, 1.0)]).residual == 1.0


def test_nan_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.0, float("nan"), 0.0])
    monkeypatch.setattr(checks, "CLAIMS", [TheoryClaim("x", "", lambda case: Measured(next(values)))])
    assert not checks.run(0, 3)[0].holds


def _negate(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *arguments, **named: -function(*arguments, **named)


MUTANTS = [
    (iq_learn, "j_star", "Prop. 1 (A.4)"),
    (iq_learn, "j_star", "A.3: min over pi of L is Eq. 9"),
    (iq_learn, "telescoped", "Prop. 1 parts where V(s_H) is not 0"),
    (iq_learn, "telescoped", "Prop. 1 parts: stochastic, finite demonstrations"),
    (iq_learn, "likelihood_gradient", "Prop. 1 with stochastic transitions"),
    (soft_bellman, "return_shift", "A.5: returns differ by -V(s_t)"),
    (soft_bellman, "shaped_log_policy", "Eq. 4 (A.5)"),
    (policy_gradient, "discounted_parting", "A.8 parts at gamma 0.9"),
    (bounds, "best_response", "Theorem 2 repaired, l2/l2"),
    (eos, "kl", "E_SFT[r_hat | s] = KL(pi_SFT || pi_ref) >= 0"),
    (eos, "expected_relative_reward", "E_SFT[r_hat | s] = KL(pi_SFT || pi_ref) >= 0"),
    (eos, "prefix_returns", "E_SFT of the first k tokens grows with k"),
    (eos, "return_by_stopping", "Longer pays under r_hat"),
]


@pytest.mark.parametrize(("module", "name", "claim"), MUTANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_wrong_sign_is_noticed(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, claim: str) -> None:
    monkeypatch.setattr(module, name, _negate(getattr(module, name)))
    monkeypatch.setattr(checks, "CLAIMS", [each for each in checks.CLAIMS if each.name == claim])
    (identity,) = checks.run(0, 5)
    assert not identity.holds
