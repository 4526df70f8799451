"""The best and the worst answers by verdict, in full words: what a win rate is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dpr_core.evaluation.judge import Verdict
from dpr_core.evaluation.pairwise import Game
from dpr_core.reporting.judged import Judged, Prompt
from dpr_core.reporting.page import Html, element, join
from dpr_core.reporting.section import Section
from dpr_core.text import escape_control, escape_control_lines

OF_EACH_KIND = 3
MOST = 180
"""Examples on one page, as long as each policy and benchmark can have one of each kind."""

TEXT, WORDS = 2000, 800
"""Characters that are shown of a turn, and of what a judge wrote."""

KINDS: Mapping[str, Callable[[Prompt], bool]] = {
    "Won in both orders": lambda prompt: prompt.scores == (1.0, 1.0),
    "Lost in both orders": lambda prompt: prompt.scores == (0.0, 0.0),
    "The two orders contradict each other": lambda prompt: len(set(prompt.scores)) == 2,
}


@dataclass(frozen=True)
class Chosen:
    """A few prompts of one kind, and of how many."""

    kind: str
    prompts: tuple[Prompt, ...]
    of: int


def choose(judged: Judged, of_each_kind: int) -> list[Chosen]:
    """Of every kind a few prompts, evenly spaced in the benchmark's order; kinds without any are left out."""
    chosen = []
    for kind, belongs in KINDS.items():
        found = [prompt for prompt in judged.prompts if belongs(prompt)]
        count = min(of_each_kind, len(found))
        places = [i * len(found) // count for i in range(count)]
        if found:
            chosen.append(Chosen(kind, tuple(found[place] for place in places), len(found)))
    return chosen


def section(every: Sequence[Judged], baseline: str) -> Section | None:
    """Examples of every policy on every benchmark, folded up. Only the page has them. None of nothing."""
    if not every:
        return None
    each = max(1, min(OF_EACH_KIND, MOST // (len(every) * len(KINDS))))
    parts = []
    for judged in every:
        kinds = [
            join(
                element("h4", f"{chosen.kind}: {len(chosen.prompts)} of {chosen.of:,}"),
                *(_example(prompt, judged.policy, baseline) for prompt in chosen.prompts),
            )
            for chosen in choose(judged, each)
        ]
        name = escape_control(f"{judged.policy} on {judged.benchmark}")
        folded = element("details", element("summary", name), *(kinds or [element("p", _NOTHING, class_="quiet")]))
        parts.append(folded)
    explained = (
        f"At most {each} of each kind, evenly spaced in the benchmark's order. Longer texts are cut, and say by how "
        "much. Signs in \u27e8\u27e9 stand for characters that cannot be seen."
    )
    return Section("Best and worst answers", join(element("p", explained, class_="quiet"), *parts), "")


_NOTHING = "No prompt was won or lost in both orders, and none has orders that contradict each other."


def _example(prompt: Prompt, policy: str, baseline: str) -> Html:
    question = prompt.question
    summary = element(
        "summary", element("code", escape_control(question.id)), " ", escape_control(cut(_opening(question.turns), 90))
    )
    parts = []
    if question.system:
        parts.append(_said("System", question.system))
    for i, asked in enumerate(question.turns):
        turn = f", turn {i + 1}" if len(question.turns) > 1 else ""
        answers = [
            _said(f"{name}{turn}", side.turns[i] if i < len(side.turns) else "", kind)
            for name, side, kind in ((policy, prompt.candidate, "ours"), (baseline, prompt.baseline, "theirs"))
        ]
        parts += [_said(f"Question{turn}", asked), element("div", *answers, class_="sides")]
    if question.reference is not None:
        parts.append(_said("Reference", question.reference))
    parts += [_said(f"Judge, {_order(game, policy, baseline)}", game.raw, "judge", WORDS) for game in prompt.games]
    lengths = f"Tokens: {policy} {prompt.candidate.tokens:,}, {baseline} {prompt.baseline.tokens:,}."
    return element("details", summary, *parts, element("p", escape_control(lengths), class_="quiet"), class_="example")


def _opening(turns: tuple[str, ...]) -> str:
    return " ".join((turns[0] if turns else "")[:1000].split())


def _order(game: Game, policy: str, baseline: str) -> str:
    first, second = (policy, baseline) if game.candidate_first else (baseline, policy)
    won = {Verdict.FIRST: f"{first} wins", Verdict.SECOND: f"{second} wins", Verdict.TIE: "a tie"}
    return f"{first} shown first: {won.get(game.verdict, 'unreadable')}"


def _said(who: str, text: str, kind: str = "asked", most: int = TEXT) -> Html:
    body = element("p", escape_control_lines(cut(text, most)), class_="said") if text.strip() else _EMPTY
    return element("section", element("h5", escape_control(who)), body, class_=kind)


_EMPTY = element("p", "(empty)", class_="quiet")


def cut(text: str, most: int) -> str:
    """The text, or its beginning and how much of it is left out."""
    return text if len(text) <= most else f"{text[:most]} [\u2026 {len(text) - most:,} more characters]"


STYLE = """
h4 { margin: 1.25rem 0 .5rem; font-size: .95rem; }
h5 { margin: 0 0 .2rem; font-size: .75rem; font-weight: 600; color: var(--quiet); }
.example { margin: .4rem 0; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem;
  background: var(--card); }
.example summary { font-size: .9rem; }
.example section { margin: .7rem 0; }
.said { margin: 0; white-space: pre-wrap; font-size: .9rem; max-height: 24rem; overflow-y: auto; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.25rem; }
.ours, .theirs { border-left: 3px solid var(--accent); padding-left: .7rem; }
.theirs { border-color: var(--line); }
.judge .said { font-style: italic; }
@media (max-width: 44rem) { .sides { grid-template-columns: 1fr; } }
"""
