"""What the command line shows of work that was interrupted, and of what can be removed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from flows.cli.inspect_view import SHORT, add_row, grid
from flows.resume import Unfinished
from tasks.cleanup import Piece
from tasks.running.stage_workdir import in_bytes

NOTHING = "Nothing is unfinished."
LISTED = 3


def unfinished_table(there: Sequence[Unfinished], named: Sequence[Unfinished]) -> RenderableType:
    """Everything unfinished: what `dpr resume` would do, and what it leaves alone."""
    if not there:
        return Text(NOTHING)
    table = grid("run", "name", "status", "started (UTC)", "there", "left to do", "why it ended")
    for each in there:
        more = f" and {len(each.to_run) - LISTED} more" if len(each.to_run) > LISTED else ""
        left = ", ".join(each.to_run[:LISTED]) + more
        run = each.run
        started = f"{run.started:%Y-%m-%d %H:%M:%S}"
        add_row(table, run.id[:SHORT], run.name, run.status.lower(), started, str(each.there), left, each.note)
    lines = [f"dpr resume goes on with {len(named)} of {len(there)}; nothing was run."]
    if failed := [each for each in there if each.failed and each not in named]:
        lines.append(f"What failed is gone on with by name: dpr resume {failed[0].run.id[:SHORT]}")
    return Group(table, Text("\n".join(lines)))


def pieces_document(pieces: Sequence[Piece], removed: bool) -> dict[str, Any]:
    listed = [{"path": str(piece.path), "kind": piece.kind, "bytes": piece.size, "why": piece.why} for piece in pieces]
    return {"removed": removed, "bytes": sum(piece.size for piece in pieces), "pieces": listed}


def pieces_table(pieces: Sequence[Piece], home: Path, told: str) -> RenderableType:
    """One row for each piece; lock files, which are empty, in one."""
    locks = [piece for piece in pieces if piece.kind == "lock"]
    if not pieces:
        return Text("There is nothing to remove.")
    table = grid("what", "size", "where", "why")
    for piece in pieces:
        if piece.kind != "lock":
            where = piece.path.relative_to(home) if piece.path.is_relative_to(home) else piece.path
            add_row(table, piece.kind, in_bytes(piece.size), str(where), piece.why)
    if locks:
        add_row(table, "lock", "0 B", f"locks/ ({len(locks)} files)", "nobody holds them")
    total = in_bytes(sum(piece.size for piece in pieces))
    return Group(table, Text(f"{len(pieces)} pieces, {total}{told}"))
