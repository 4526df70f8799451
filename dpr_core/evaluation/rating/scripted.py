"""A rater that follows a rule: the twin of a real one, for tests and dry runs."""

from collections.abc import Callable

from dpr_core.evaluation.rating.rater import HIGHEST, LOWEST, Prompts, Rating, Turn

CHARACTERS_A_POINT = 20

RULES: dict[str, Callable[[str], float | None]] = {
    "length": lambda text: min(LOWEST + len(text) // CHARACTERS_A_POINT, HIGHEST),
    "unreadable": lambda text: None,
}


class ScriptedRater:
    """Applies one of RULES to the answer."""

    def __init__(self, rule: str, prompts: Prompts) -> None:
        self._apply = RULES[rule]
        self._prompts = prompts

    async def rate(self, turn: Turn) -> Rating:
        score = self._apply(turn.answers[-1])
        return Rating(score, "" if score is None else f"[[{score:g}]]", self._prompts.request(turn))

    def status(self) -> str:
        return ""

    async def close(self) -> None:
        """There is nothing to let go of."""
