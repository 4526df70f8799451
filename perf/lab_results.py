"""The lab's exhibits: what `dpr reproduce` observed, kept in one file each, shown as its stage shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from dpr_core.errors import UsageError
from dpr_core.experiments import figures, results
from dpr_core.experiments.effect_claims import ClaimOutcome, ClaimVerdict
from dpr_core.experiments.exhibits import EXHIBITS, Exhibit
from dpr_core.experiments.measured import rounded
from dpr_core.experiments.observations import Observation, Position
from dpr_core.reporting.tables import Table, escaped
from tasks.artifacts.store import Artifact
from tasks.stages.experiment import OBSERVATIONS

THEORY = "theory.json"
"""What `dpr reproduce theory --json` printed."""


@dataclass(frozen=True)
class Kept:
    """What was observed of one exhibit, and the command that made it."""

    exhibit: Exhibit
    command: str
    observed: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, artifact: Artifact, command: str) -> "Kept":
        """What an experiment has."""
        if (name := artifact.config["exhibit"]) not in EXHIBITS:
            raise UsageError(f"experiment {artifact.id[:8]} is of no table or figure: give one that dpr reproduce made")
        text = (artifact.path / OBSERVATIONS).read_text(encoding="utf-8")
        return cls(EXHIBITS[name], command, json.loads(text, parse_float=lambda digits: rounded(float(digits))))

    @classmethod
    def read(cls, file: Path) -> "Kept":
        kept = json.loads(file.read_text(encoding="utf-8"))
        return cls(EXHIBITS[file.stem], kept["command"], kept["observations"])

    def write(self, folder: Path) -> Path:
        """One line an observation."""
        file = folder / f"{self.exhibit.name}.json"
        lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in self.observed)
        head = json.dumps(self.command, ensure_ascii=False)
        file.write_text(f'{{"command": {head},\n"observations": [\n{lines}\n]}}\n', encoding="utf-8")
        return file

    @cached_property
    def observations(self) -> list[Observation]:
        return [
            Observation(**{**each, "profile": tuple(Position(**at) for at in each["profile"])})
            for each in self.observed
        ]

    @cached_property
    def verdicts(self) -> list[ClaimVerdict]:
        return self.exhibit.verdicts(self.observations)


@dataclass(frozen=True)
class Lab:
    """Every exhibit, and the theory's identities."""

    kept: Mapping[str, Kept]
    identities: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Lab":
        found = {name: Kept.read(folder / f"{name}.json") for name in EXHIBITS}
        return cls(found, json.loads((folder / THEORY).read_text(encoding="utf-8"))["identities"])

    def commands(self) -> list[tuple[str, str]]:
        """Each command with the exhibits that it made."""
        by: dict[str, list[str]] = {}
        for each in self.kept.values():
            by.setdefault(each.command, []).append(each.exhibit.title.partition(":")[0])
        return [(command, ", ".join(titles)) for command, titles in by.items()]

    def over(self, name: str) -> str:
        """What an exhibit varies, as `--set` has it."""
        exhibit, said = EXHIBITS[name], ""
        for field, values in exhibit.over().items():
            quick = exhibit.over(quick=True)[field]
            shorter = f" (quick: {_listed(quick)})" if quick != values else ""
            said += f" `{field}`: {_listed(values)}{shorter}."
        return said

    def claims(self, name: str, withdrawn: Sequence[str]) -> str:
        """The verdicts on an exhibit's claims as Markdown."""
        kept = self.kept[name]
        says = {each.name: each.says for each in kept.exhibit.claims}
        found = results.claims_table(kept.verdicts)
        rows = [[row[0], row[1], says[row[0]], *row[2:-1]] for row in found.rows]
        for row in rows:
            row[3] = "withdrawn" if row[0] in withdrawn else row[3]
        return Table([found.headings[0], "by", "in words", *found.headings[2:-1]], rows, 4).as_markdown()

    def policies(self, name: str) -> str:
        """The rows of an exhibit's policies as Markdown, with the best value of what it varies."""
        kept = self.kept[name]
        best = results.best_values(kept.exhibit, kept.observations)
        return "\n\n".join([results.table(kept.exhibit, kept.observations).as_markdown(), *map(escaped, best)])

    def draw(self, folder: Path) -> None:
        """The plots of every exhibit."""
        for name, kept in self.kept.items():
            figures.draw(kept.exhibit, kept.observations, folder / name)

    def summary(self, withdrawn: Sequence[str]) -> str:
        """How many claims came to which verdict."""
        found = [each for kept in self.kept.values() for each in kept.verdicts]
        told = ["withdrawn" if each.claim in withdrawn else each.verdict for each in found]
        counts = [f"{told.count(kind)} {kind}" for kind in (*get_args(ClaimOutcome), "withdrawn") if kind in told]
        return f"{len(told)} claims: {', '.join(counts)}"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" for value in values)
