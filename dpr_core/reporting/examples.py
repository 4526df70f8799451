"""Example answers, best and worst by verdict, in full words: what a win rate is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpr_core.evaluation.pairwise import Game, Verdict
from dpr_core.reporting.judgments import JudgedAnswers, JudgedPrompt
from dpr_core.reporting.page import render
from dpr_core.reporting.report import Section

OF_EACH_KIND = 3
MOST = 180
"""Examples on one page, as long as each policy and benchmark can have one of each kind."""

TEXT, WORDS = 2000, 800
"""Characters that are shown of a turn, and of what a judge wrote."""

KINDS: Mapping[str, Callable[[JudgedPrompt], bool]] = {
    "Won in both orders": lambda prompt: prompt.scores == (1.0, 1.0),
    "Lost in both orders": lambda prompt: prompt.scores == (0.0, 0.0),
    "The two orders contradict each other": lambda prompt: len(set(prompt.scores)) == 2,
}


@dataclass(frozen=True)
class ExampleGroup:
    """A few prompts of one kind, and of how many."""

    kind: str
    prompts: tuple[JudgedPrompt, ...]
    of: int


def choose_examples(judged: JudgedAnswers, of_each_kind: int) -> list[ExampleGroup]:
    """Of every kind a few prompts, evenly spaced in the benchmark's order; kinds without any are left out."""
    chosen = []
    for kind, belongs in KINDS.items():
        found = [prompt for prompt in judged.prompts if belongs(prompt)]
        count = min(of_each_kind, len(found))
        places = [i * len(found) // count for i in range(count)]
        if found:
            chosen.append(ExampleGroup(kind, tuple(found[place] for place in places), len(found)))
    return chosen


def examples_section(every: Sequence[JudgedAnswers], baseline: str) -> Section | None:
    """Examples of every policy on every benchmark, folded up. Only the page has them. None of nothing."""
    if not every:
        return None
    each = max(1, min(OF_EACH_KIND, MOST // (len(every) * len(KINDS))))
    shown = [
        {
            "name": f"{judged.policy} on {judged.benchmark}",
            "groups": {
                f"{group.kind}: {len(group.prompts)} of {group.of:,}": [
                    _example(prompt, judged.policy, baseline) for prompt in group.prompts
                ]
                for group in choose_examples(judged, each)
            },
        }
        for judged in every
    ]
    explained = (
        f"At most {each} of each kind, evenly spaced in the benchmark's order. Longer texts are cut, and say by how "
        "much. Signs in \u27e8\u27e9 stand for characters that cannot be seen."
    )
    return Section("Best and worst answers", render("examples.html", explained=explained, judged=shown), "")


class _Passage(NamedTuple):
    who: str
    text: str
    kind: str = "asked"


def _example(prompt: JudgedPrompt, policy: str, baseline: str) -> dict[str, Any]:
    question = prompt.question
    turns = []
    for i, asked in enumerate(question.turns):
        turn = f", turn {i + 1}" if len(question.turns) > 1 else ""
        ours, theirs = (
            _Passage(f"{name}{turn}", cut(side.turns[i] if i < len(side.turns) else "", TEXT), kind)
            for name, side, kind in ((policy, prompt.candidate, "ours"), (baseline, prompt.baseline, "theirs"))
        )
        turns.append({"question": _Passage(f"Question{turn}", cut(asked, TEXT)), "candidate": ours, "baseline": theirs})
    reference = [] if question.reference is None else [_Passage("Reference", cut(question.reference, TEXT))]
    games = [
        _Passage(f"Judge, {_order(game, policy, baseline)}", cut(game.raw, WORDS), "judge") for game in prompt.games
    ]
    return {
        "id": question.id,
        "opening": cut(_opening(question.turns), 90),
        "before": [_Passage("System", cut(question.system, TEXT))] if question.system else [],
        "turns": turns,
        "after": [*reference, *games],
        "lengths": f"Tokens: {policy} {prompt.candidate.tokens:,}, {baseline} {prompt.baseline.tokens:,}.",
    }


def _opening(turns: tuple[str, ...]) -> str:
    return " ".join((turns[0] if turns else "")[:1000].split())


def _order(game: Game, policy: str, baseline: str) -> str:
    first, second = (policy, baseline) if game.candidate_first else (baseline, policy)
    won = {Verdict.FIRST: f"{first} wins", Verdict.SECOND: f"{second} wins", Verdict.TIE: "a tie"}
    turn = f"turn {game.turn}, " if game.turn else ""
    return f"{turn}{first} shown first: {won.get(game.verdict, 'unreadable')}"


def cut(text: str, most: int) -> str:
    """The text, or its beginning and how much of it is left out."""
    return text if len(text) <= most else f"{text[:most]} [\u2026 {len(text) - most:,} more characters]"
