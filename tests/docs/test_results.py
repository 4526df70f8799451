"""The page of results says what the code runs and claims, and what its JSON file holds."""

import json
from pathlib import Path

import pytest

from dpr_core.experiments.effect_claims import ClaimVerdict
from dpr_core.experiments.exhibits import EXHIBITS, Exhibit

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
JUDGED = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
VERDICTS = {claim["claim"]: ClaimVerdict.of(claim) for claim in JUDGED["claims"]}
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.partition("\n## Why")[0].split("\n### ")[1:]}


def _listed(values: object) -> str:
    return ", ".join(f"{value:g}" for value in values)  # type: ignore[attr-defined]


def _effect(verdict: ClaimVerdict) -> str:
    assert verdict.interval is not None
    form = "+.1f" if verdict.unit in ("points", "tokens") else "+.4f"
    mean, low, high = (format(value, form) for value in (verdict.effect, *verdict.interval))
    return f"{mean} [{low}, {high}] {verdict.unit}"


def test_every_exhibit_has_its_section() -> None:
    assert list(SECTIONS) == [exhibit.title for exhibit in EXHIBITS.values()]


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_what_it_runs_claims_and_found_is_told(exhibit: Exhibit) -> None:
    section = SECTIONS[exhibit.title]
    assert exhibit.runs in section
    for name, values in exhibit.over().items():
        quick = exhibit.over(quick=True)[name]
        shorter = f" (quick: {_listed(quick)})" if quick != values else ""
        assert f"`{name}`: {_listed(values)}{shorter}." in section
    table = section.partition("| claim |")[2].partition("\n\n")[0].splitlines()[2:]
    found = [(claim, VERDICTS[claim.name]) for claim in exhibit.claims]
    assert table == [
        f"| {claim.name} | {claim.by} | {claim.says} | {verdict.verdict} | {_effect(verdict)} |"
        for claim, verdict in found
    ]


def test_the_summary_counts_the_verdicts() -> None:
    claims = list(VERDICTS.values())
    for by, whose in (("paper", "the paper's"), ("project", "the project's own")):
        told = [claim.verdict for claim in claims if claim.by == by]
        numbers = f"{len(told)} claims {told.count('reproduced')} "
        assert f"f {whose} {numbers}" in PAGE
        assert f"{told.count('undecided')} are undecided" in PAGE


def test_the_tables_of_policies_are_those_of_the_json_file() -> None:
    seen = 0
    for title, rows in JUDGED["policies"].items():
        for row in rows:
            label = str(row.get("reference", row["policy"]))
            shown = [line for line in SECTIONS[title].splitlines() if line.startswith(f"| {label} | ")]
            for line in shown:
                seen += 1
                if isinstance(row["win rate %"], dict):
                    assert f"| {row['win rate %']['mean']:.1f} [" in line
                assert f"| {row['accuracy %']['mean']:.1f} [" in line
    assert seen > 20


def test_the_share_of_theory_that_holds() -> None:
    holds = [identity["holds"] for identity in JUDGED["identities"]]
    assert f"Of {len(holds)} rows {sum(holds)} hold to rounding and {len(holds) - sum(holds)} do not" in PAGE
