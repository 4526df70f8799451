import pytest

from dpr_core.reporting.published import BENCHMARKS, PUBLISHED, published


@pytest.mark.parametrize(
    ("backbone", "policy", "benchmark", "rate"),
    [
        ("meta-llama/Llama-3.1-8B", "DPR", "alpaca_eval", 60.6),
        ("/models/Qwen2.5-7B/", "DPR", "arena_hard", 55.2),
        ("mistralai/Mistral-7B-v0.1", "SR", "lima", 47.3),
        ("google/gemma-3-4b-pt", "without-baseline", "arena_hard", 48.1),
        ("google/gemma-3-4b-pt", "DPR", "mt_bench", None),
        ("google/gemma-3-4b-it", "DPR", "lima", None),
        ("meta-llama/Llama-3.1-8B", "extrapolated", "lima", None),
        ("", "DPR", "lima", None),
    ],
)
def test_figures_by_backbone_policy_and_benchmark(
    backbone: str, policy: str, benchmark: str, rate: float | None
) -> None:
    assert published(backbone, policy, benchmark) == rate


def test_the_paper_orders_its_own_rows() -> None:
    """Where a digit had been mistyped, what the paper says of its tables would most likely fail."""
    for rates in PUBLISHED.values():
        for column in range(len(BENCHMARKS)):
            best = rates["DPR"][column]
            assert all(best >= other[column] for other in rates.values())
            assert rates["without-baseline"][column] < 51 < rates["with-value"][column]
