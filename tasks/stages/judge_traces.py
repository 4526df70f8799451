"""Games of a judge as traces in MLflow, with what they were worth as assessments, and its instructions as a prompt."""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpr_core.config.evaluation import ChatCompletionsConfig, JudgeConfig
from dpr_core.errors import UsageError
from dpr_core.redaction import redact
from tasks.artifacts.listed import Prompt, Trace

if TYPE_CHECKING:
    from dpr_core.evaluation.pairwise import Game, Pair

SHARE = "DPR_TRACE_SHARE"
MOST_CHARACTERS = 4000
"""Of a text that a trace shows."""


def traced_share() -> float:
    """The share of questions whose games are traced: what the environment says, and none without it."""
    setting = os.environ.get(SHARE, "").strip()
    try:
        share = float(setting or 0)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise UsageError(f"{SHARE}: {setting!r} is no share of questions; give a number from 0 to 1, such as 0.05")
    return share


def traces_of(
    run: str, settings: JudgeConfig, share: float, pairs: "Sequence[Pair]", games: "Sequence[Game]"
) -> list[Trace]:
    """Both games of a share of the questions, the same ones for every pair of policies."""
    by_id = {(pair.question.id, pair.turn): pair for pair in pairs}
    judge = settings.by.model if isinstance(settings.by, ChatCompletionsConfig) else settings.by.type
    traces = []
    for game in games:
        # By a hash of its own: questions are drawn by hashes of their ids.
        if int(_hash(f"trace {game.question_id}")[:8], 16) < share * 16**8:
            shown = by_id[game.question_id, game.turn].shown(game.candidate_first)
            turn = f" {game.turn}" if game.turn else ""
            asked = {"question": shown.question.turns, "first": shown.first.turns, "second": shown.second.turns}
            traces.append(
                Trace(
                    id=_hash(f"{run} {game.question_id} {game.candidate_first}{turn}")[:32],
                    name="judged, the candidate " + ("first" if game.candidate_first else "second"),
                    inputs={name: [_short(text) for text in texts] for name, texts in asked.items()},
                    output=_short(game.raw),
                    assessment="candidate",
                    value=game.score,
                    by=judge,
                    is_model=isinstance(settings.by, ChatCompletionsConfig),
                )
            )
    return traces


def instructions(settings: JudgeConfig) -> Prompt | None:
    """What a judging model is told in this project's words; None of a rule, and of a benchmark's own prompts."""
    from dpr_core.evaluation.prompts import AS_TEXT, PAIRWISE_INSTRUCTIONS

    if not isinstance(settings.by, ChatCompletionsConfig) or settings.prompts is not None:
        return None
    text = (PAIRWISE_INSTRUCTIONS + AS_TEXT).replace("{mark}", "{{mark}}")
    return Prompt("dense-path-judge", text, f"sha256-{_hash(text)[:16]}")


def _short(text: str) -> str:
    shown = redact(text)
    return shown if len(shown) <= MOST_CHARACTERS else shown[:MOST_CHARACTERS] + " ..."


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
