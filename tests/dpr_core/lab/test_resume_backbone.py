"""The lab's backbone, interrupted while it is taught or blended, ends with the same bits."""

from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.data import AdditionsConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.lab.backbone import untrained
from dpr_core.training.lab_backbone import LabCorpus, train
from tests.interruption import Interruptible, assert_the_same_however_interrupted

CONFIG = LabBackboneConfig(
    width=16,
    layers=1,
    heads=2,
    feed_forward=16,
    task=AdditionsConfig(modulus=5, operations=4),
    teach_batch_size=4,
    teach_max_steps=20,
    probe_every=2,
    blend_steps=3,
    blend_batch_size=4,
)


def test_both_phases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The probes pass by what they see of the weights: once, not the second time, and then twice running."""
    monkeypatch.setattr("dpr_core.training.lab_backbone.PROBES", 2)
    seen: dict[float, int] = {}

    def greedy_accuracy(self: LabCorpus, model: Any) -> float:
        number = seen.setdefault(float(model.get_input_embeddings().weight.detach().double().sum()), len(seen))
        return [0.95, 0.1, 0.96, 0.97, 0.3][number]

    monkeypatch.setattr(LabCorpus, "greedy_accuracy", greedy_accuracy)

    def run(recorder: Interruptible) -> Any:
        model, _, measured = train(CONFIG, recorder)
        return {"measured": measured, **{name: p.detach().clone() for name, p in model.named_parameters()}}

    assert assert_the_same_however_interrupted(run, tmp_path) == 8 + 3
    assert len(seen) == 5
    assert run(Interruptible(tmp_path / "again"))["measured"] == {
        "probe/accuracy": 0.97,
        "probe/accuracy_after_blend": 0.3,
    }


@pytest.mark.parametrize("phase", ["careful", "blend"])
def test_a_text_stream_goes_on_where_it_was_left(phase: str) -> None:
    text = LabCorpus(CONFIG, untrained(CONFIG)[1])
    whole, rest = getattr(text, phase)(), getattr(text, phase)(skipped=150)
    listed = [next(whole) for _ in range(160)]
    assert [next(rest) for _ in range(10)] == listed[150:]
