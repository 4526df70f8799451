"""What a report says: every policy over every benchmark, with what is needed to judge the win rate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One policy on one benchmark. Shares and rates lie between 0 and 1, win rates and their intervals in 0-100."""

    policy: str
    benchmark: str
    prompts: int
    response_tokens: float
    """Mean over the answers."""
    cut_share: float
    """Share of answers cut at the length limit."""
    accuracy: float | None = None
    """Share of right answers, where results can be checked."""
    kl_to_sft: float | None = None
    """KL to SFT an answer, in nats."""
    is_baseline: bool = False
    win_rate: float | None = None
    win_rate_interval: Interval | None = None
    length_adjusted_rate: float | None = None
    """The win rate that a fit predicts for answers as long as the baseline's."""
    length_adjusted_interval: Interval | None = None
    baseline_tokens: float | None = None
    """Mean over the answers that these were judged against."""
    contradiction_rate: float | None = None
    first_position_rate: float | None = None
    unreadable_rate: float | None = None
    """Share of the verdicts."""
    scored_prompts: int | None = None
    """Prompts with at least one readable verdict."""
    published: float | None = None
    """The paper's win rate for the same backbone, policy and benchmark."""


@dataclass(frozen=True)
class ReportTable:
    """The rows, against which policy they were judged, and where all of it comes from."""

    title: str
    rows: tuple[Row, ...]
    baseline: str = "SFT"
    notes: tuple[str, ...] = ()
    """What is wrong with the judgments, if anything."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def estimand(self) -> str:
        """What the win rate is."""
        return f"win rate against {self.baseline}, both orders, ties 0.5"

    def has(self, name: str) -> bool:
        """Whether any row has this value."""
        return any(getattr(row, name) is not None for row in self.rows)

    @property
    def benchmarks(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.benchmark for row in self.rows))

    @property
    def policies(self) -> list[str]:
        """In the order of the rows; the baseline is none of them."""
        return list(dict.fromkeys(row.policy for row in self.rows if not row.is_baseline))


def as_dict(table: ReportTable) -> dict[str, Any]:
    """The table as JSON values."""
    return {
        "title": table.title,
        "estimand": table.estimand,
        "rows": [asdict(row) for row in table.rows],
        "notes": list(table.notes),
        "provenance": dict(table.provenance),
    }
