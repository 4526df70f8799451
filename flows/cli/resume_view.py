"""Views of interrupted work, and of what can be removed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.completion import SHORT
from flows.cli.inspect_view import add_row, grid
from flows.resume import UnderWay, Unfinished
from tasks.cleanup import Removable
from tasks.running.stage_workdir import format_bytes

NOTHING = "Nothing is unfinished."
LISTED = 3


def unfinished_table(
    every: Sequence[Unfinished], selected: Sequence[Unfinished], elsewhere: Sequence[UnderWay]
) -> RenderableType:
    """Everything unfinished: what `dpr resume` would do, and what it leaves alone."""
    under_way = [f"{each.id[:SHORT]} ({each.name}): {each.where} works on it" for each in elsewhere]
    if not every:
        return Text("\n".join([*under_way, NOTHING if not under_way else "Nothing else is unfinished."]))
    others = ["where"] if any(each.where for each in every) else []
    table = grid("run", "name", "status", "started (UTC)", "there", "left to do", "why it ended", *others)
    for each in every:
        more = f" and {len(each.to_run) - LISTED} more" if len(each.to_run) > LISTED else ""
        left = ", ".join(each.to_run[:LISTED]) + more
        run = each.run
        started = f"{run.started:%Y-%m-%d %H:%M:%S}"
        cells = [run.id[:SHORT], run.name, run.status.lower(), started, str(each.reused), left, each.note]
        add_row(table, *cells, *([each.where or "here"] if others else []))
    lines = [*under_way, f"dpr resume goes on with {len(selected)} of {len(every)}; nothing was run."]
    if failed := [each for each in every if each.failed and each not in selected]:
        lines.append(f"What failed is gone on with by name: dpr resume {failed[0].run.id[:SHORT]}")
    if theirs := [each for each in every if each.is_anothers and each not in selected]:
        lines.append(f"What was stopped on another machine is, too: dpr resume {theirs[0].run.id[:SHORT]}")
    return Group(table, Text("\n".join(lines)))


def pieces_document(pieces: Sequence[Removable], removed: bool) -> dict[str, Any]:
    listed = [{"path": piece.where, "kind": piece.kind, "bytes": piece.size, "why": piece.why} for piece in pieces]
    return {"removed": removed, "bytes": sum(piece.size for piece in pieces), "pieces": listed}


def pieces_table(pieces: Sequence[Removable], home: Path, outcome: str) -> RenderableType:
    """One row for each piece; lock files, which are empty, in one."""
    locks = [piece for piece in pieces if piece.kind == "lock"]
    if not pieces:
        return Text("There is nothing to remove.")
    table = grid("what", "size", "where", "why")
    for piece in pieces:
        if piece.kind != "lock":
            where = piece.path.relative_to(home) if piece.path.is_relative_to(home) else piece.where
            add_row(table, piece.kind, format_bytes(piece.size), str(where), piece.why)
    if locks:
        add_row(table, "lock", "0 B", f"locks/ ({len(locks)} files)", "nobody holds them")
    total = format_bytes(sum(piece.size for piece in pieces))
    return Group(table, Text(f"{len(pieces)} pieces, {total}{outcome}"))
