"""The paper's own win rates (its tables 1 and 2), to be read beside ours."""

from collections.abc import Mapping

BENCHMARKS = ("alpaca_eval", "arena_hard", "lima")
"""The paper's figures on MT-Bench are ratings from 1 to 10, no win rates."""

Rates = tuple[float, float, float]

PUBLISHED: Mapping[str, Mapping[str, Rates]] = {
    "llama-3.1-8b": {
        "SPIN": (55.2, 53.3, 53.0),
        "GSIL": (58.1, 56.7, 61.0),
        "SR": (57.9, 60.3, 60.8),
        "DPR": (60.6, 62.5, 62.7),
        "with-value": (58.8, 59.3, 59.7),
        "without-baseline": (49.8, 46.4, 46.0),
    },
    "qwen2.5-7b": {
        "SPIN": (55.5, 51.4, 57.5),
        "GSIL": (56.2, 53.3, 56.2),
        "SR": (55.9, 54.6, 54.0),
        "DPR": (57.3, 55.2, 59.8),
        "with-value": (55.0, 52.9, 58.0),
        "without-baseline": (46.6, 44.9, 45.7),
    },
    "mistral-7b-v0.1": {
        "SPIN": (58.3, 55.0, 53.0),
        "GSIL": (59.2, 54.8, 54.0),
        "SR": (46.6, 49.8, 47.3),
        "DPR": (61.0, 60.7, 59.3),
        "with-value": (53.9, 51.8, 52.3),
        "without-baseline": (44.5, 40.3, 42.7),
    },
    "gemma-3-4b-pt": {
        "SPIN": (58.6, 54.7, 58.7),
        "GSIL": (60.3, 57.1, 60.8),
        "SR": (65.6, 58.0, 64.5),
        "DPR": (66.7, 58.9, 66.8),
        "with-value": (63.5, 56.0, 62.2),
        "without-baseline": (50.6, 48.1, 48.8),
    },
}
"""Percent against the same backbone's SFT model, by the last part of the backbone's name and by policy."""


def published(backbone: str, policy: str, benchmark: str) -> float | None:
    """The paper's figure for a backbone, a policy as recipes call it, and a type of benchmark."""
    rates = PUBLISHED.get(backbone.rstrip("/").rpartition("/")[2].lower(), {}).get(policy)
    return rates[BENCHMARKS.index(benchmark)] if rates is not None and benchmark in BENCHMARKS else None
