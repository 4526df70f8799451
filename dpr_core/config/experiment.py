"""What puts the reports of many pipelines side by side."""

from typing import Any, Literal

from pydantic import Field

from dpr_core.config.base import StageConfig

ExhibitName = Literal["sweep", "table1", "table2", "figure1", "figure2", "figure3", "figure4a", "figure4b"]


class ExperimentConfig(StageConfig):
    """The tables, the plots and the verdicts of an experiment."""

    title: str = "Sweep"
    """Heading of the results."""

    exhibit: ExhibitName = "sweep"
    """Table or figure of the paper whose claims are judged; a sweep shows what was measured and claims nothing."""

    points: dict[str, dict[str, Any]] = Field({})
    """The pipelines by name, each with the fields that set it apart, its seed among them."""
