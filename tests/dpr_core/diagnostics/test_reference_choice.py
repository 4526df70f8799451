from collections.abc import Callable
from typing import Any

import pytest

from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics.corruption import corrupt, detection, detection_by_candidate
from dpr_core.errors import UsageError
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy

ROWS = [TokenSequence((1, 30 + i), (40 + i, 50 + i % 3, 60 + i % 5, 41 + i, 0)) for i in range(12)]


def test_a_candidate_is_scored_by_how_well_equation_5_finds_corrupted_tokens(tiny: Callable[..., Any]) -> None:
    sft = Policy(tiny("llama")[0])
    references = {0.25: tiny("llama", seed=1)[0], 0.75: tiny("llama", seed=2)[0]}
    loaded: list[float] = []

    def loader(fraction: float) -> Callable[[], Policy]:
        def load() -> Policy:
            loaded.append(fraction)
            return Policy(references[fraction])

        return load

    found = detection_by_candidate(sft, {f: loader(f) for f in references}, ROWS, 3, 40)
    assert loaded == [0.25, 0.75]
    corrupted = corrupt(ROWS, 3)
    for fraction, model in references.items():
        scored = TokenReward(sft, Policy(model), "baseline_relative", 40)([c.sequence for c in corrupted])
        expected = detection(scored.rewards, scored.mask, [c.position for c in corrupted]).auroc
        assert found[fraction] == pytest.approx(expected)
    assert found[0.25] != found[0.75]


def test_a_reference_that_knows_what_sft_knows_finds_nothing(tiny: Callable[..., Any]) -> None:
    sft = Policy(tiny("llama")[0])
    assert detection_by_candidate(sft, {0.9: lambda: Policy(tiny("llama")[0])}, ROWS, 0, 100) == {0.9: 0.5}


def test_demonstrations_in_which_nothing_can_be_replaced_are_refused(tiny: Callable[..., Any]) -> None:
    sft = Policy(tiny("llama")[0])
    with pytest.raises(UsageError, match="no demonstration has a token to replace"):
        detection_by_candidate(sft, {0.9: lambda: sft}, [TokenSequence((1,), (40, 0))], 0, 100)
