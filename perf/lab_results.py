"""The lab's exhibits in one kept file: taken out of experiments, decided anew, shown as tables."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr_core.errors import UsageError
from dpr_core.experiments import measured, results
from dpr_core.experiments.effect_claims import ClaimVerdict, corrected
from dpr_core.experiments.exhibits import EXHIBITS, Exhibit
from dpr_core.experiments.observations import Observation, Position
from dpr_core.experiments.results import claims_table
from dpr_core.reporting.tables import NONE, Table
from tasks.artifacts.store import Artifact
from tasks.stages.experiment import OBSERVATIONS


@dataclass(frozen=True)
class Lab:
    """The lab's exhibits, measured once: effects are kept, verdicts are decided anew."""

    kept: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> "Lab":
        return cls(json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")

    def with_experiment(self, artifact: Artifact, command: str) -> "Lab":
        """What an experiment measured, in place of what is kept of its exhibit."""
        if (name := artifact.config["exhibit"]) not in EXHIBITS:
            raise UsageError(f"experiment {artifact.id[:8]} is of no table or figure: give one that dpr reproduce made")
        exhibit = EXHIBITS[name]
        stored = json.loads((artifact.path / OBSERVATIONS).read_text(encoding="utf-8"))
        observations = [
            Observation(**each | {"profile": tuple(Position(**at) for at in each["profile"])}) for each in stored
        ]
        shown = results.table(exhibit, observations)
        rows = [dict(zip(shown.headings, map(_value, row), strict=True)) for row in shown.rows]
        theirs = [each.as_dict() for each in exhibit.verdicts(observations)]
        names = {each.name for each in exhibit.claims}
        claims = [each for each in self.kept["claims"] if each["claim"] not in names] + theirs
        return Lab(
            {
                **self.kept,
                "commands": {**self.kept["commands"], exhibit.name: command},
                "claims": claims,
                "policies": {**self.kept["policies"], exhibit.title: rows},
            }
        )

    def commands(self) -> list[tuple[str, str]]:
        """Each command with the exhibits that it made."""
        by: dict[str, list[str]] = {}
        for name, command in self.kept["commands"].items():
            by.setdefault(command, []).append(EXHIBITS[name].title.partition(":")[0])
        return [(command, ", ".join(titles)) for command, titles in by.items()]

    def verdicts(self, exhibit: Exhibit) -> list[ClaimVerdict]:
        """On what an exhibit asks, corrected for the number of claims."""
        stored = {each["claim"]: each for each in self.kept["claims"]}
        return corrected([ClaimVerdict.of(stored[each.name]) for each in exhibit.claims if each.name in stored])

    @property
    def document(self) -> dict[str, Any]:
        claims = [each.as_dict() for exhibit in EXHIBITS.values() for each in self.verdicts(exhibit)]
        for each in claims:
            short = {name: measured.rounded(each[name]) for name in ("p_value", "adjusted") if each[name] is not None}
            each.update(short, **{name: list(value) for name, value in each.items() if isinstance(value, tuple)})
        return {**self.kept, "claims": claims}

    def table(self, name: str, withdrawn: Sequence[str]) -> str:
        """The verdicts on an exhibit's claims as Markdown."""
        exhibit = EXHIBITS[name]
        says = {each.name: each.says for each in exhibit.claims}
        found = claims_table(self.verdicts(exhibit))
        rows = [[row[0], row[1], says[row[0]], *row[2:-1]] for row in found.rows]
        for row in rows:
            row[3] = "withdrawn" if row[0] in withdrawn else row[3]
        headings = [found.headings[0], "by", "in words", *found.headings[2:-1]]
        return Table(headings, rows, 4).as_markdown()

    def policies(self, name: str) -> str:
        """The rows of an exhibit's policies as Markdown."""
        rows = [
            [row["policy"], *(_cell(row[what]) for what in ("win rate %", "accuracy %", "tokens")), _kl(row)]
            for row in self.kept["policies"][EXHIBITS[name].title]
        ]
        return Table(["policy", "win rate %", "accuracy %", "tokens", "KL (nats)"], rows).as_markdown()

    def counts(self, withdrawn: Sequence[str]) -> dict[str, int]:
        found = [each for exhibit in EXHIBITS.values() for each in self.verdicts(exhibit)]
        told = ["withdrawn" if each.claim in withdrawn else each.verdict for each in found]
        return {"claims": len(found), **{each.replace(" ", "_"): told.count(each) for each in set(told)}}


def _value(cell: str) -> Any:
    """A cell of a table as data: a number, a mean with its interval, nothing, or words."""
    numbers = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell)
    if numbers:
        mean, *interval = map(float, numbers.groups())
        return {"mean": mean, "interval": interval}
    if cell == NONE:
        return None
    try:
        return int(cell) if cell.isdecimal() else float(cell)
    except ValueError:
        return cell


def _cell(value: Any) -> str:
    """A mean over seeds, with its interval where one is kept."""
    if isinstance(value, Mapping):
        return "{:.1f} [{:.1f}, {:.1f}]".format(value["mean"], *value["interval"])
    return f"{value:.1f}" if isinstance(value, int | float) else str(value)


def _kl(row: Mapping[str, Any]) -> str:
    found = row.get("KL (nats)")
    return NONE if found is None else f"{found:.3f}"
