import json
from dataclasses import replace
from pathlib import Path

from dpr_core.diagnostics.auroc import AurocEstimate, Correctness
from dpr_core.diagnostics.corruption import Detection
from dpr_core.diagnostics.measure import Diagnosis
from dpr_core.diagnostics.verdict import Level, Reason, RewardVerdict
from dpr_core.reporting import diagnosis

VERDICT = RewardVerdict((Reason(Level.GO, "Fine."), Reason(Level.STOP, "Broken."), Reason(Level.CAUTION, "Odd.")))
MEASURED = Diagnosis(
    answers=8,
    cut_share=0.25,
    token_deviation=0.125,
    noise_log_sft=1e-6,
    noise_reward=2e-6,
    length_correlation=None,
    end_advantage=-0.5,
    top_share=0.2,
    corrupted=4,
    credit=Detection(0.75, 0.5),
    credit_log_sft=Detection(0.875, 0.25),
    correctness=Correctness(4, 1, 2, 0.3, AurocEstimate(0.7), AurocEstimate(0.8, 0.6, 0.9), None),
    by_position=[(0.0, 0.1), (1.0, 0.2)],
    by_length=[(2.0, 0.3)],
)


def test_the_document_is_plain_json() -> None:
    document = diagnosis.as_dict(MEASURED, VERDICT)
    assert json.loads(json.dumps(document, allow_nan=False))["verdict"] == "stop"
    assert document["reasons"][1] == {"level": "stop", "text": "Broken."}
    assert document["measured"]["credit"] == {"auroc": 0.75, "top1": 0.5}
    assert document["measured"]["correctness"]["of_log_sft"] == {"value": 0.8, "low": 0.6, "high": 0.9}
    assert diagnosis.as_dict(replace(MEASURED, credit=None), VERDICT)["measured"]["credit"] is None


def test_the_page_has_the_gravest_reason_first_and_every_number() -> None:
    page = diagnosis.as_markdown(MEASURED, VERDICT)
    assert page.startswith("# Diagnosis of a reward: stop\n")
    assert page.index("Broken.") < page.index("Odd.") < page.index("Fine.")
    for row in (
        "| deviation of the token reward | 0.125 |",
        "| correlation of the return with the number of tokens | not measured |",
        "| answers cut at the length limit | 25.0% |",
        "(1 of 4 prompts count, 1 were all right, 2 all wrong) | 0.70 | 0.80 [0.60, 0.90] | not measured |",
        "| finding one of 4 replaced tokens: AUROC | 0.750 | 0.875 | |",
        "| finding one of 4 replaced tokens: lowest of its response | 50.0% | 25.0% | |",
    ):
        assert row in page
    unknown = diagnosis.as_markdown(replace(MEASURED, correctness=None), VERDICT)
    assert "| right from wrong answers | not measured | not measured | not measured |" in unknown


def test_the_plots_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    first, second = diagnosis.draw(MEASURED, tmp_path / "a"), diagnosis.draw(MEASURED, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    other = diagnosis.draw(replace(MEASURED, by_length=[(2.0, 0.9)]), tmp_path / "c")
    assert other[1].read_bytes() != first[1].read_bytes()
