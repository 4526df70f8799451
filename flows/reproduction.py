"""Reproduction of the paper's exhibits: each as a study of one recipe, and one document with all results."""

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dpr_core.config.base import override, parse
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.experiments.effect_claims import ClaimVerdict
from dpr_core.experiments.exhibits import EXHIBITS
from dpr_core.experiments.points import REFERENCE, Study, with_references
from dpr_core.experiments.results import claims_table, summary, training_times
from dpr_core.reporting.tables import escaped
from dpr_core.text import escape_control
from flows import recipes
from tasks.artifacts.store import Store
from tasks.stages.experiment import PLOTS, RESULTS

VERDICTS = "verdicts.json"


def studies(recipe: str, assignments: Sequence[str], exhibits: Collection[str], seeds: int, quick: bool) -> list[Study]:
    """Each exhibit on the recipe, over seeds 1 to `seeds`.

    SFT keeps what any exhibit refers to, selected or not, so that one SFT run a seed serves every request.
    """
    references = [value for each in EXHIBITS.values() for value in each.over(quick).get(REFERENCE, ())]
    values = override(recipes.values(recipe), assignments)
    parse(PipelineConfig, values, recipe)
    base = with_references(values, {REFERENCE: references})
    return [
        Study(
            title=each.title,
            exhibit=each.name,
            config=parse(PipelineConfig, override(base, each.assignments), f"{recipe}, {each.name}"),
            over={name: list(values) for name, values in {**each.over(quick), "seed": range(1, seeds + 1)}.items()},
        )
        for each in EXHIBITS.values()
        if each.name in exhibits
    ]


def claims_in(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verdicts of every exhibit."""
    return [claim for table in document["results"].values() for claim in table["claims"]]


def write(
    store: Store, document: Mapping[str, Any], command: str, claims: Mapping[str, Any], theory: str | None, file: Path
) -> None:
    """All exhibits in one document. Their plots lie beside it in a folder of its name, with the verdicts as JSON."""
    parts = ["# What reproduces, and what does not", f"Made by {_code(command)}."]
    if verdicts := [ClaimVerdict.of(claim) for claim in claims_in(document)]:
        parts += [summary(verdicts), claims_table(verdicts, beside=False).as_markdown()]
    if failed := document.get("failed"):
        parts.append(
            "\n".join(
                ["Not there, because it failed:", "", *(f"- {escaped(f'{n}: {why}')}" for n, why in failed.items())]
            )
        )
    beside = file.with_suffix("")
    beside.mkdir(parents=True, exist_ok=True)
    (beside / VERDICTS).write_text(json.dumps(claims, indent=2) + "\n", encoding="utf-8")
    for entry in document["stages"]:
        if entry["stage"] == "experiment":
            payload = store.fetch(entry["id"]).path
            folder = Path(file.stem, entry["name"].replace(" ", "-"))
            if (payload / PLOTS).is_dir():
                shutil.copytree(payload / PLOTS, file.parent / folder, dirs_exist_ok=True)
            text = (payload / RESULTS).read_text(encoding="utf-8")
            parts.append(text.replace(f"]({PLOTS}/", f"]({quote(folder.as_posix())}/").rstrip())
            if times := training_times(entry["metrics"]):
                parts.append(times)
    if theory:
        parts += ["## Theory", theory]
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _code(text: str) -> str:
    """Text as code in a line of Markdown, whatever backticks it has."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{escape_control(text)}{pad}{fence}"
