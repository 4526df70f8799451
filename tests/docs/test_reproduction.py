"""The page on the reproduction says what the code runs and claims."""

from pathlib import Path

import pytest

from dpr_core.experiments.exhibits import EXHIBITS, Exhibit

PAGE = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.partition("\n## Notes")[0].split("\n### ")[1:]}


def _listed(values: object) -> str:
    return ", ".join(f"{value:g}" for value in values)  # type: ignore[attr-defined]


def test_every_exhibit_has_its_section() -> None:
    assert list(SECTIONS) == [exhibit.title for exhibit in EXHIBITS.values()]


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_what_it_runs_and_claims_is_told(exhibit: Exhibit) -> None:
    section = SECTIONS[exhibit.title]
    assert exhibit.runs in section
    for name, values in exhibit.over().items():
        quick = exhibit.over(quick=True)[name]
        shorter = f" (quick: {_listed(quick)})" if quick != values else ""
        assert f"`{name}`: {_listed(values)}{shorter}." in section
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    assert rows == [f"| {claim.name} | {claim.by} | {claim.says} |" for claim in exhibit.claims]
