"""Arena-Hard's style control: win rates at equal length and markup, by a Bradley-Terry regression with covariates.

The number of its script (show_result.py --control-features markdown length): the median of bootstrap fits, each of
which ends after 50 steps of L-BFGS, a little before the maximum. All models of a category are fitted together.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dpr_core.errors import UsageError
from dpr_core.evaluation.categories import CategoryScore
from dpr_core.evaluation.official import arena_hard
from dpr_core.evaluation.official.layouts import arena_answer
from dpr_core.evaluation.official.score import SEED
from dpr_core.evaluation.rows import Row, need, unique

if TYPE_CHECKING:
    import torch

FITS = 100
TAIL = 0.05
STEPS, RATE, TOLERANCE, START = 50, 0.1, 1e-9, 0.5

BASELINES = {
    "arena-hard-v0.1": "gpt-4-0314",
    **dict.fromkeys(("hard_prompt", "coding", "math"), "o3-mini-2025-01-31"),
    "creative_writing": "gemini-2.0-flash-001",
}
"""By category, for judgments that do not name theirs."""

CODE = re.compile(r"```([^`]*)```")
MARKUP = {
    "header_count": [re.compile(r"^#{1,6}\s", re.MULTILINE)],
    "list_count": [re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)],
    "bold_count": [re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")],
}

Style = tuple[float, float, float, float]
"""Tokens, headers, list items and bold spans of an answer."""


def style_control(judgments: list[Row], answers: list[Row]) -> dict[str, dict[str, CategoryScore]]:
    """The controlled win rate of each model in each category; UsageError without the answers of both sides."""
    styles = _styles(answers)
    by_category: dict[str, list[Row]] = defaultdict(list)
    for row in judgments:
        by_category[row.get("category", "arena-hard-v0.1")].append(row)
    found: dict[str, dict[str, CategoryScore]] = defaultdict(dict)
    for category, rows in sorted(by_category.items()):
        baselines = {str(row.get("baseline", BASELINES.get(category, ""))) for row in rows}
        if len(baselines) != 1 or "" in baselines:
            raise UsageError(
                f"style control needs one baseline for {category}, and the judgments name "
                f"{', '.join(sorted(baselines - {''})) or 'none'}"
            )
        for model, score in _controlled(rows, baselines.pop(), styles).items():
            found[model][category] = score
    return found


def _controlled(rows: list[Row], baseline: str, styles: Mapping[tuple[str, str], Style]) -> dict[str, CategoryScore]:
    battles = arena_hard.battles(rows)
    wanted = {(name, question) for model, question, _ in battles for name in (model, baseline)}
    if missing := sorted(wanted - styles.keys()):
        model, question = missing[0]
        raise UsageError(
            f"style control reads the answers of both sides, and {len(missing)} are not in the files of --answers, "
            f"such as that of {model} to {question}"
        )
    models = sorted({model for model, _, _ in battles} | {baseline})
    if not battles or len(models) < 2:
        return {}
    indicators = np.array([[(m == model) - float(m == baseline) for m in models] for model, _, _ in battles])
    sides = (
        np.array([styles[name, q] for name, q in pairs], dtype=np.float32)
        for pairs in ([(model, q) for model, q, _ in battles], [(baseline, q) for _, q, _ in battles])
    )
    features = np.concatenate([indicators, _standardised(_contrast(*sides))], axis=1, dtype=np.float32)
    outcomes = np.array([value for _, _, value in battles], dtype=np.float32)
    fits = _bootstrap(features, outcomes)
    reference = fits[:, models.index(baseline)]
    scores: dict[str, CategoryScore] = {}
    for place, model in enumerate(models):
        if model != baseline:
            rates = 100 / (1 + np.exp(reference - fits[:, place]))
            low, middle, high = (float(q) for q in np.quantile(rates, [TAIL, 0.5, 1 - TAIL]))
            asked = {question for name, question, _ in battles if name == model}
            scores[model] = {"mean": middle, "low": low, "high": high, "prompts": len(asked)}
    return scores


def _contrast(mine: Any, its: Any) -> Any:
    """Relative differences of length and of the density of each kind of markup."""
    tokens = mine[:, :1] + its[:, :1]
    length = (mine[:, :1] - its[:, :1]) / np.where(tokens == 0, 1, tokens)
    ours, theirs = (side[:, 1:] / (side[:, :1] + 1) for side in (mine, its))
    return np.concatenate([length, (ours - theirs) / (ours + theirs + 1)], axis=1)


def _standardised(features: Any) -> Any:
    """What is the same everywhere explains nothing."""
    spread = features.std(axis=0, ddof=1) if len(features) > 1 else np.zeros(features.shape[1])
    return (features - features.mean(axis=0)) / np.where(spread == 0, np.inf, spread)


def _bootstrap(features: Any, outcomes: Any) -> Any:
    import torch

    # The legacy generator: the script draws with it.
    drawn = np.random.RandomState(SEED).randint(0, len(outcomes), (FITS, len(outcomes)))
    x, y = torch.from_numpy(features), torch.from_numpy(outcomes)
    return np.stack([_fit(x[rows], y[rows]).numpy() for rows in map(torch.from_numpy, drawn)]).astype(np.float64)


def _fit(x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
    """Coefficients of a logistic regression without intercept, as far as the script goes."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    weights = torch.full((x.shape[1],), START, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], lr=RATE, max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=TOLERANCE
    )

    def loss() -> "torch.Tensor":
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weights, y, reduction="sum")
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def _styles(answers: list[Row]) -> dict[tuple[str, str], Style]:
    """By model and question."""
    keyed = unique([{**row, "key": arena_answer(row)[0]} for row in answers], lambda row: row["key"], "answer")
    return {key: _style(row) for key, row in keyed.items()}


def _style(row: Row) -> Style:
    """As the answer's `metadata` has it, or else counted; the older schema calls it `conv_metadata`."""
    known = row.get("metadata", row.get("conv_metadata"))
    if not isinstance(known, dict):
        known = metadata(arena_answer(row)[1], _tokens())
    need([known], ("token_len", *MARKUP), "the metadata of an Arena-Hard answer")
    counts = [sum(each.values()) if isinstance(each := known[name], dict) else each for name in ("token_len", *MARKUP)]
    return tuple(map(float, counts))  # type: ignore[return-value]


def metadata(text: str, tokens: Callable[[str], int]) -> dict[str, int]:
    """Length and markup of an answer; what stands in blocks of code is no markup.

    As in the script, the text of a block is taken away wherever else it stands, too.
    """
    prose = text
    for block in CODE.findall(text):
        prose = prose.replace(block, "")
    counts = {name: sum(len(kind.findall(prose)) for kind in kinds) for name, kinds in MARKUP.items()}
    return {"token_len": tokens(text), **counts}


@cache
def _tokens() -> Callable[[str], int]:
    """How many tokens of gpt-4o a text is, by tiktoken."""
    try:
        import tiktoken
    except ImportError:
        raise UsageError(
            "style control needs the length of answers in tokens, and the files of --answers have no `metadata`: have "
            "Arena-Hard's add_markdown_info.py write it, or install tiktoken"
        ) from None
    encoding = tiktoken.encoding_for_model("gpt-4o")
    return lambda text: len(encoding.encode(text, disallowed_special=()))
