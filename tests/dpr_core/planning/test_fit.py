from dataclasses import replace
from typing import Any

import pytest

from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.fit import bytes_per_gpu, nearest_fit
from dpr_core.planning.hours import StageWork
from dpr_core.planning.memory import MemoryBreakdown
from dpr_core.planning.stages import StageEstimate

TOY = Architecture("llama", 10, 4, 2, 2, 1, 2, 8, 64, False)
"""A layer's matrices have 144 weights, and 100 are in none: embedding, head, and five norms of four."""

START = ExecutionConfig(tokens_per_micro_batch=64, rollout_rows=8, logits_per_chunk=2**20)


def _needs(execution: ExecutionConfig) -> StageEstimate:
    activations = execution.tokens_per_micro_batch * (2 if execution.gradient_checkpointing else 10)
    learning = MemoryBreakdown(weights=100, activations=activations)
    drawing = MemoryBreakdown(weights=100, cache=50 * execution.rollout_rows)
    return StageEstimate({"learning": learning, "drawing": drawing}, StageWork(), longest=16)


@pytest.mark.parametrize(
    ("room", "changes"),
    [
        (1000, {}),
        (500, {"tokens_per_micro_batch": 32}),
        (430, {"rollout_rows": 4, "tokens_per_micro_batch": 32}),
        (200, {"rollout_rows": 2, "gradient_checkpointing": True, "tokens_per_micro_batch": 32}),
        (100, None),
    ],
)
def test_the_fewest_halvings_that_fit(room: float, changes: dict[str, object] | None) -> None:
    """Activations may take 10 a token, or 2 when computed again, which counts as two halvings."""
    found = nearest_fit(_needs, bytes_per_gpu(TOY, LaunchConfig()), START, room)
    assert found.changes == changes
    assert found.least == 150 if changes is None else found.least <= room


def test_a_process_alone_holds_all_of_it() -> None:
    needs = _needs(START)
    assert bytes_per_gpu(TOY, LaunchConfig(strategy="fsdp"))(needs) == needs.peak.total == 740
    assert needs.fullest == "learning"
    assert replace(needs, moments={"drawing": needs.moments["drawing"]}).peak.total == 500


LASTING = MemoryBreakdown(weights=100, gradients=80, optimizer=200, scorers=60)
MOMENTS = {"learning": replace(LASTING, activations=7), "drawing": replace(LASTING, gradients=0, cache=9)}


@pytest.mark.parametrize(
    ("launch", "moment", "expected"),
    [
        ({}, "learning", 440 + 7 + 80),
        ({}, "drawing", 360 + 9),
        ({"strategy": "fsdp"}, "learning", 110 + 7 + 4 * (3 * 144 + 2 * 100)),
        ({"strategy": "fsdp"}, "drawing", 90 + 9 + 55),
        ({"strategy": "fsdp", "cpu_offload": True}, "drawing", 9 + 55),
    ],
)
def test_what_each_of_four_processes_holds(launch: dict[str, Any], moment: str, expected: float) -> None:
    needs = StageEstimate({moment: MOMENTS[moment]}, StageWork(), longest=16, drawing=55)
    assert TOY.parameters - TOY.layers * TOY.layer_matrices == 100
    assert bytes_per_gpu(TOY, LaunchConfig(processes=4, **launch))(needs) == expected


def test_the_fullest_moment_counts_on_each() -> None:
    needs = StageEstimate(MOMENTS, StageWork(), longest=16, drawing=55_000)
    assert bytes_per_gpu(TOY, LaunchConfig(processes=4, strategy="fsdp"))(needs) == 90 + 9 + 55_000
