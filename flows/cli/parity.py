"""`dpr benchmark parity`: two judges compared on the same answers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpr_core.errors import UsageError
from flows.cli.console import Debug, Json, emit, reported

if TYPE_CHECKING:
    from dpr_core.evaluation.pairwise import Game

Judged = Annotated[str, typer.Argument(help="Games that `dpr benchmark judge --output` wrote, or a judge artifact.")]


def parity(a: Judged, b: Judged, as_json: Json = False, debug: Debug = False) -> None:
    """Compare two judges on the same answers: agreement, Cohen's kappa, and how far the win rate moves from A to B.

    Example: dpr benchmark parity gpt-4o.jsonl qwen.jsonl
    """
    with reported(debug):
        from dpr_core.evaluation.parity import compare

        (ours, answers), (theirs, others) = _games(a), _games(b)
        if answers is not None and others is not None and answers != others:
            raise UsageError(
                f"{a} and {b} were not given the same answers; judge those of one with the judge of the other"
            )
        found = compare(ours, theirs)
        emit({"a": a, "b": b, **found.as_dict()}, as_json, lambda: _view(found.as_dict()))


def _games(name: str) -> "tuple[list[Game], dict[str, str] | None]":
    """The games, and the digests of what they are about, where a store knows them."""
    from dpr_core.evaluation.pairwise import Game
    from dpr_core.evaluation.rows import check, need, read_rows

    if Path(name).is_file():
        rows = read_rows(Path(name))
        need(rows, ("question_id", "candidate_first", "verdict"), f"a judge's games ({name})")
        check(rows, f"a judge's games ({name})", question_id=str, verdict=str)
        try:
            games = [Game.of({"raw": "", "details": {}, **row}) for row in rows]
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
        if not all(isinstance(game.candidate_first, bool) for game in games):
            raise UsageError(f"{name}: `candidate_first` is true or false in each game")
        return games, None
    if {"/", "."} & set(name):
        raise UsageError(f"there is no file {name}; give a file of games, or the ID of a judge's artifact")
    from tasks.artifacts.store import Store
    from tasks.stages.judge import GAMES

    store = Store.open()
    found = store.fetch(name, stages=("judge",))
    with (found.path / GAMES).open(encoding="utf-8") as lines:
        games = [Game.of(json.loads(line)) for line in lines]
    return games, {role: store.published(each).digest for role, each in found.inputs.items()}


def _view(found: dict[str, Any]) -> str:
    kappa = "none: chance alone would agree" if found["kappa"] is None else f"{found['kappa']:.3f}"
    lines = [
        f"{found['games']} games of {found['prompts']} prompts that both judges could read; in brackets 95% intervals",
        f"agreement      {100 * found['agreement']:.1f} %{_interval(found['agreement_interval'], 100, 1)}",
        f"Cohen's kappa  {kappa}{_interval(found['kappa_interval'], 1, 3)}",
        f"win rate       {found['win_rate_a']:.1f} % by A, {found['win_rate_b']:.1f} % by B",
        f"shift          {found['shift']:+.1f} points{_interval(found['shift_interval'], 1, 1)}",
        "",
        f"{'A says':<10}" + "".join(f"{f'B: {name}':>10}" for name in found["table"]),
        *(f"{name:<10}" + "".join(f"{count:>10}" for count in row.values()) for name, row in found["table"].items()),
    ]
    for count, what in (
        (found["unreadable_a"], "games could not be read of A"),
        (found["unreadable_b"], "games could not be read of B"),
        (found["only_a"], "games were judged by A alone"),
        (found["only_b"], "games were judged by B alone"),
    ):
        if count:
            lines.append(f"! {count} {what}")
    return "\n".join(lines)


def _interval(ends: tuple[float, float] | None, scale: float, digits: int) -> str:
    return "" if ends is None else f" [{scale * ends[0]:.{digits}f}, {scale * ends[1]:.{digits}f}]"
