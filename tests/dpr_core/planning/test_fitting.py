from dataclasses import replace

import pytest

from dpr_core.config.execution import Execution
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.compute import Work
from dpr_core.planning.fitting import nearest, on_one, sharded
from dpr_core.planning.memory import Memory, Parts
from dpr_core.planning.stages import Needs

START = Execution(tokens_per_micro_batch=64, rollout_rows=8, logits_per_chunk=2**20)


def _needs(execution: Execution) -> Needs:
    activations = execution.tokens_per_micro_batch * (2 if execution.gradient_checkpointing else 10)
    learning = Parts(weights=100, activations=activations)
    drawing = Parts(weights=100, cache=50 * execution.rollout_rows)
    return Needs({"learning": learning, "drawing": drawing}, Work(), longest=16)


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
    found = nearest(_needs, on_one, START, room)
    assert found.changes == changes
    assert found.least == 150 if changes is None else found.least <= room


@pytest.mark.parametrize("tied", [False, True])
def test_what_lasts_is_shared_and_what_is_gathered_is_not(tied: bool) -> None:
    toy = Architecture("llama", 10, 4, 2, 2, 1, 2, 8, 64, tied)
    memory = Memory(toy, "bfloat16", "sdpa", START, 8, 8)
    needs = _needs(START)
    gathered = 4 * (2 * 144 + (40 if tied else 80))
    assert sharded(memory, 4)(needs) == 25 + 640 + gathered
    assert sharded(memory, 1)(needs) == needs.peak.total == 740
    assert needs.fullest == "learning"
    drawing = replace(needs, moments={"drawing": needs.moments["drawing"]})
    assert drawing.peak.total == 500
    rounded = 2 * (2 * 144) + 4 * (5 * 4 + (40 if tied else 80))
    assert sharded(memory, 4)(drawing) == 25 + 400 + rounded, "each process draws with the whole model"
