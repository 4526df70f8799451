"""The working folder of a stage: its output before it is published, and checkpoints of its state to resume from.

It is `DPR_HOME/work/<key>`, and belongs to whoever holds the key's lock. Whoever finds it after an interruption resumes
the run that is named in it.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dpr_core import hashing
from dpr_core.errors import DensePathError
from tasks.artifacts.identity import Manifest, files_below, library_versions
from tasks.local_home import ATTEMPT, DiskFullError, is_full, sync, syncing

if TYPE_CHECKING:
    from dpr_core.state import State

logger = logging.getLogger("dense_path")

STATES_KEPT = 2
"""Should the newest be damaged, there is one before it."""

STATE_FORMAT = 2
"""To be raised when the states of training loops get other fields: those of another format are not loaded."""

SEAL = "SEAL.json"
DONE = "DONE.json"


class SavedState(NamedTuple):
    """A state to resume from."""

    folder: Path
    last_step: int
    """The last step of which metrics had been logged."""


class StageWorkdir:
    """One stage's folder. Everything in it is either whole or ignored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.scratch = folder / "scratch"
        self.unsent = folder / "metrics.jsonl"
        self._states = folder / "states"
        self._last_written = time.monotonic()

    def stage_run(self) -> str | None:
        """The ID of the run whose work this is; None where there is nothing to resume."""
        try:
            return (self.folder / ATTEMPT).read_text(encoding="ascii") or None
        except (OSError, UnicodeDecodeError):
            return None

    def open(self, run_id: str) -> None:
        """Make it the folder of this run: of one that is resumed, everything stays but the scratch."""
        if self.stage_run() != run_id:
            self.clear()
        if not self.is_resumable:
            shutil.rmtree(self.output, ignore_errors=True)
        for leftover in (self.scratch, *self._states.glob("*.new")):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in (self.output, self.scratch, self._states):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / ATTEMPT, run_id)
        self._last_written = time.monotonic()

    def clear(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_resumable(self) -> bool:
        """Whether there is something that another run would have to do again."""
        return (self.folder / DONE).exists() or any(self._states.glob("*[0-9]/" + SEAL))

    def is_due(self, step: int, every_minutes: float | None, every_steps: int | None) -> bool:
        """Whether it is time to save a state."""
        if every_steps is not None and step % every_steps == 0:
            return True
        return every_minutes is not None and time.monotonic() - self._last_written >= 60 * every_minutes

    def save_state(self, step: int, last_step: int, write: Callable[[Path], None]) -> int:
        """Save the state that `write` puts into a folder and, by their hashes, the files written so far. Returns its
        bytes; 0 where the disk is full."""
        new = self._states / f"{step:09d}.new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            write(new)
            seal = {
                "format": STATE_FORMAT,
                "versions": library_versions(),
                "last_step": last_step,
                "output": self._hashes_of(self.output),
                "state": self._hashes_of(new),
            }
            write_atomically(new / SEAL, json.dumps(seal))
            written = sum(path.stat().st_size for path in new.iterdir())
            target = self._states / f"{step:09d}"
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)
            sync(self._states)
        except Exception as error:
            if not is_full(error):
                raise
            shutil.rmtree(new, ignore_errors=True)
            free = format_bytes(shutil.disk_usage(self.folder).free)
            logger.warning(
                "the disk is full: no state could be kept at step %d (%s are free%s); "
                "the one before it stays, and the work goes on",
                step,
                free,
                f", and it needs {format_bytes(error.needed)}" if isinstance(error, DiskFullError) else "",
            )
            return 0
        finally:
            self._last_written = time.monotonic()
        for old in sorted(self._states.glob("*[0-9]"))[:-STATES_KEPT]:
            shutil.rmtree(old)
        return written

    def latest_state(self) -> SavedState | None:
        """The newest sound state, with the output as it was then; None: begin at the beginning, with no output."""
        for folder in sorted(self._states.glob("*[0-9]"), reverse=True):
            problem = self._problem(folder)
            if not problem:
                seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
                _refuse_other_versions(seal["versions"])
                self._remove_output_but(seal["output"])
                return SavedState(folder, seal["last_step"])
            logger.warning("the state of step %d is not used: %s", int(folder.name), problem)
            shutil.rmtree(folder)
        self._remove_output_but({})
        return None

    def mark_done(self, manifest: Manifest, results: Mapping[str, float], last_step: int) -> None:
        """The work is done; what is left is to publish it, with the results as metrics of the last step."""
        for path, _ in files_below(self.output):
            sync(path)
        done = {"manifest": asdict(manifest), "results": dict(results), "last_step": last_step}
        write_atomically(self.folder / DONE, json.dumps(done))

    def done(self) -> tuple[Manifest, dict[str, float], int] | None:
        """What `mark_done` wrote."""
        try:
            done = json.loads((self.folder / DONE).read_text(encoding="utf-8"))
            return Manifest.from_json(json.dumps(done["manifest"])), dict(done["results"]), int(done["last_step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def discard_done(self) -> None:
        """What was done turned out to be damaged."""
        (self.folder / DONE).unlink(missing_ok=True)
        self.output.mkdir(exist_ok=True)

    def _hashes_of(self, folder: Path) -> dict[str, str]:
        """Name and hash of every file, once they are sure to be on the disk; hashed while the disk takes them."""
        found = list(files_below(folder))
        paths = [path for path, _ in found]
        with syncing(paths):
            size = sum(path.stat().st_size for path in paths)
            hashes = hashing.several_at_once(hashing.KNOWN.sha256, paths, size)
        return {name: digest for (_, name), digest in zip(found, hashes, strict=True)}

    def _problem(self, folder: Path) -> str:
        try:
            seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
            if seal.get("format") != STATE_FORMAT:
                return "another version of this program kept it, in another format"
            for parent, hashes in ((folder, seal["state"]), (self.output, seal["output"])):
                for name, digest in hashes.items():
                    if hashing.hash_file(parent / name) != digest:
                        return f"{parent.name}/{name} has changed"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _remove_output_but(self, names: Mapping[str, str]) -> None:
        """Remove what was written into the output after a state."""
        for path, name in list(files_below(self.output)):
            if name not in names:
                path.unlink()
        for folder in sorted((path for path in self.output.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()


def write_state(state: "State", folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Write what one of several processes writes of a state, or say how much room all of it needs."""
    from dpr_core.state import size, write

    try:
        write(state, folder, rank, ranks)
    except Exception as error:
        if is_full(error):
            raise DiskFullError(size(state)) from error
        raise


def _refuse_other_versions(then: Mapping[str, str]) -> None:
    """An artifact names the versions that made it, so that no other ones may make half of it."""
    now = library_versions()
    if changed := sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)):
        listed = ", ".join(f"{name} {then.get(name, 'none')} -> {now.get(name, 'none')}" for name in changed)
        raise DensePathError(
            f"what was interrupted was made with other versions ({listed}); "
            "go on with those, or have what is unfinished removed, to begin anew: dpr gc --unfinished"
        )


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by write-and-rename, so that a reader sees the old text or the new one."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync(path.parent)


def format_bytes(count: float) -> str:
    """A size for people to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
