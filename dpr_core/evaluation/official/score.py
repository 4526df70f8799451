"""The score of one model with its bootstrap confidence interval, and the warnings that go with it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_core.evaluation.categories import CategoryScore, by_category
from dpr_core.stats import mean_interval

RESAMPLES = 1000
SEED = 0

UNCOMPARED = "the judgments do not say what the judge was shown, so that nothing of it was compared"

EXAMPLES = 3
"""So many of the rows that a warning is about are named in it."""


@dataclass
class ModelScore:
    """One judged model. `n` counts judgments (MT-Bench), or prompts; `unscored` those without a readable verdict."""

    official: dict[str, Any]
    paper: dict[str, Any]
    n: int
    unscored: int
    warnings: list[str] = field(default_factory=list)
    unscored_share: float | None = None
    """Of all verdicts; where there is one for each of `n`, it need not be given."""

    def __post_init__(self) -> None:
        if self.unscored_share is None:
            self.unscored_share = self.unscored / self.n if self.n else 0.0


def warning(found: Iterable[object], what: str) -> list[str]:
    """One sentence with a count and a few examples, or nothing where nothing was found."""
    cases = list(dict.fromkeys(map(str, found)))
    if not cases:
        return []
    named = ", ".join(cases[:EXAMPLES]) + (", ..." if len(cases) > EXAMPLES else "")
    return [f"{len(cases)} {what} ({named})"]


REFERENCE = re.compile(r"The Start of Reference Answer.*?The End of Reference Answer", re.DOTALL)

MARK = re.compile(r"\[|<\||###")
"""How the lines of the official templates begin between which a text stands."""


def shows(prompt: str, text: str) -> bool:
    """Whether a judge who read this prompt read this text as a whole.

    In the official templates a text stands between marks: there a part of one, or what a reference says, is another.
    """
    wanted = text.strip()
    if not wanted or "The Start of " not in prompt:
        return wanted in prompt
    shown = REFERENCE.sub("", prompt)
    start = shown.find(wanted)
    while start >= 0:
        before = shown[:start].rstrip(" \t").rstrip("\n").rpartition("\n")[2]
        after = shown[start + len(wanted) :].lstrip(" \t")
        begins = shown[:start].rstrip(" \t").endswith("\n") and MARK.match(before)
        if begins and (not after.strip() or (after.startswith("\n") and MARK.match(after.lstrip()))):
            return True
        start = shown.find(wanted, start + 1)
    return False


def interval(values: list[float], scale: float = 1.0) -> list[float] | None:
    """95% bootstrap interval of the mean, over what `values` has an entry for."""
    found = mean_interval(values, RESAMPLES, SEED)
    return None if found is None else [scale * found[0], scale * found[1]]


def in_categories(
    prompts: Mapping[Any, Sequence[float]], categories: Mapping[Any, str], scale: float = 1.0
) -> dict[str, dict[str, CategoryScore]]:
    """The part of a paper's scores that is by category, where the prompts are of several."""
    grouped = [(categories.get(prompt, ""), values) for prompt, values in prompts.items()]
    found = by_category(grouped, RESAMPLES, SEED, scale)
    return {"by_category": found} if found else {}


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
