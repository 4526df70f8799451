"""AlpacaEval's length-controlled win rate, computed by its own package: a logistic regression on length and difficulty.

The package knows an instruction by its place among all of them, and reads their difficulty and annotations of other
models (df_gamed.csv) from the hub, or from a copy in its cache.
"""

import logging
import warnings
from importlib.util import find_spec
from typing import Any

from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.official.alpaca_eval import EXAMPLES, preference
from dpr_core.evaluation.official.score import ModelScore
from dpr_core.evaluation.rows import Row, need
from dpr_core.redaction import redact

BASELINE = "gpt4_1106_preview"
"""Of which the difficulty of instructions was measured."""

NEEDED = ("output_1", "output_2", "generator_1", "generator_2", "annotator")


def add_length_controlled(scores: dict[str, ModelScore], judgments: list[Row], questions: list[Row]) -> None:
    """Into the official scores; UsageError where the package is not installed, or an instruction's place not known."""
    if find_spec("alpaca_eval") is None:
        raise UsageError(
            "the length-controlled win rate is computed by the package alpaca-eval, which is not installed; "
            "pip install 'dense-path[official]'"
        )
    need(judgments, NEEDED, "AlpacaEval annotations with the outputs that were judged")
    for model, score in scores.items():
        rows = [row for row in judgments if row["generator_2"] == model]
        score.official |= _length_controlled(rows, _places(rows, questions))
        if (baseline := rows[0]["generator_1"]) != BASELINE:
            score.warnings.append(f"length-controlled rates are meant for the baseline {BASELINE}, not {baseline}")


def _places(rows: list[Row], questions: list[Row]) -> list[int]:
    """Of the rows among all instructions: in a whole file, without the questions, those in which they stand."""
    judged = [row["instruction"] for row in rows]
    if not questions and len(set(judged)) == len(judged) == EXAMPLES:
        return list(range(EXAMPLES))
    places = {row["instruction"]: place for place, row in enumerate(questions)}
    if not places.keys() >= set(judged):
        raise UsageError(
            f"the length-controlled win rate needs to know which of the {EXAMPLES} instructions each row is of: give "
            "them, in their own order, by --questions"
        )
    return [places[each] for each in judged]


def _length_controlled(rows: list[Row], places: list[int]) -> dict[str, float]:
    import pandas as pd
    from sklearn import config_context

    level = logging.getLogger().level
    try:
        with warnings.catch_warnings(), config_context():
            warnings.simplefilter("ignore")
            from alpaca_eval.metrics import get_length_controlled_winrate

            frame = pd.DataFrame([{**row, "preference": preference(row)} for row in rows], index=places)
            found: dict[str, Any] = get_length_controlled_winrate(
                frame, save_weights_dir=None, is_add_glm_preference_inplace=False, is_warn_extreme_changes=False
            )
    except Exception as error:
        reason = " ".join(redact(str(error)).split())[:300] or type(error).__name__
        raise DensePathError(
            f"alpaca-eval could not compute the length-controlled win rate (it needs df_gamed.csv of the hub's dataset "
            f"tatsu-lab/alpaca_eval, or a copy in the hub's cache): {reason}"
        ) from None
    finally:
        # The package turns everybody's log on.
        logging.getLogger().setLevel(level)
    return {
        "length_controlled_win_rate": float(found["length_controlled_winrate"]),
        "length_controlled_standard_error": float(found["lc_standard_error"]),
    }
