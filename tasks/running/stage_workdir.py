"""The working folder of a stage: its output before it is published, and checkpoints of its state to resume from.

It is `DPR_HOME/work/<key>`, and belongs to whoever holds the key's lock. Whoever finds it after an interruption resumes
the run that is named in it. States that machines share lie in `<key>/<run>/<turn>`: who holds the run writes below a
number of its own, so that one who lost it, and may not know, spoils nothing of the next.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.errors import DensePathError
from dpr_core.redaction import redact
from tasks.artifacts.identity import Manifest, files_below, library_versions
from tasks.artifacts.run_records import ID
from tasks.local_home import ATTEMPT, is_full, sync
from tasks.running.places import Bucket, Folder, UnreachableStatesError, check, reached, remove, shared_place
from tasks.running.states import STATES_KEPT, OtherFormatError, SavedState, Seal, States
from tasks.running.together import first, rank

if TYPE_CHECKING:
    from dpr_core.state import State

logger = logging.getLogger("dense_path")

DONE = "DONE.json"


class StageWorkdir:
    """One stage's folder, and its states where `DPR_STATES` has them. Everything in it is either whole or ignored.

    Every process of a stage has one. `save_state` and `latest_state` they call together; the rest is for rank 0.
    """

    def __init__(self, folder: Path, run_id: str | None = None, turn: int = 0) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.scratch = folder / "scratch"
        self.unsent = folder / "metrics.jsonl"
        self._run_id = run_id
        self._turn = turn
        """Of those that have held the run."""
        self._earlier: list[int] = []
        self._last_written = time.monotonic()

    @property
    def states(self) -> States:
        """Where this process keeps them."""
        return self._states_of(self._turn)

    def _states_of(self, turn: int) -> States:
        shared = self._shared()
        place = Folder(self.folder / "states") if shared is None else shared.inside(str(turn))
        return States(place, self.folder.name, self.scratch, is_shared=shared is not None)

    def _shared(self) -> Folder | Bucket | None:
        """Where machines share the states of this run."""
        shared, run_id = shared_place(), self._run_id or self.attempt
        return None if shared is None or run_id is None else shared.inside(f"{self.folder.name}/{run_id}")

    def _turns(self) -> list[int]:
        """Whose states there are of this run, the newest first."""
        if (shared := self._shared()) is None:
            return [self._turn]
        with reached(shared):
            tops = {name.partition("/")[0] for name in shared.files()}
        return sorted((int(top) for top in tops if top.isdecimal()), reverse=True)

    def _steps(self) -> list[tuple[int, int]]:
        """Turn and step of every sealed state of this run, the newest first."""
        return [(turn, step) for turn in self._turns() for step in self._states_of(turn).steps()]

    @property
    def attempt(self) -> str | None:
        """The ID of the run whose work this folder holds."""
        try:
            return (self.folder / ATTEMPT).read_text(encoding="ascii") or None
        except (OSError, UnicodeDecodeError):
            return None

    def runs_left(self) -> list[str]:
        """The IDs of the runs of which there is work, here or where machines share states."""
        found = [self.attempt] if self.attempt else []
        if (shared := shared_place()) is not None:
            of_key = shared.inside(self.folder.name)
            with reached(of_key):
                found += sorted({top for name in of_key.files() if ID.fullmatch(top := name.partition("/")[0])})
        return list(dict.fromkeys(found))

    def check(self) -> None:
        """UnreachableStatesError unless states can be kept where `DPR_STATES` says."""
        if (shared := shared_place()) is not None:
            check(shared)

    def open(self, run_id: str, turn: int = 0) -> None:
        """Make it the folder of this run: of one that is resumed, everything stays but the scratch."""
        if self.attempt != run_id:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._run_id, self._turn = run_id, turn
        if not self.is_resumable:
            shutil.rmtree(self.output, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        for folder in (self.output, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / ATTEMPT, run_id)
        turns = self._turns()
        self._earlier = [each for each in turns if each < turn]
        with self.states.reached():
            for each in (*self._earlier, turn):
                self._states_of(each).remove_unsealed()
        self.touch()

    def clear(self, finished: str | None = None) -> None:
        """Remove all of it but what a later holder of the run keeps; or all of a run that is finished."""
        if finished is not None:
            self._run_id = finished
        shared = self._shared()
        shutil.rmtree(self.folder, ignore_errors=True)
        if shared is None:
            return
        try:
            turns = self._turns()
            mine = turns if finished else [each for each in turns if each <= self._turn]
            with reached(shared):
                for place in [shared] if mine == turns else [shared.inside(str(each)) for each in mine]:
                    remove(place)
        except UnreachableStatesError as error:
            logger.warning("%s. States that nobody will use stay there: dpr gc removes them", error)

    @property
    def is_resumable(self) -> bool:
        """Whether there is something that another run would have to do again, as far as is known."""
        if (self.folder / DONE).exists():
            return True
        try:
            with self.states.reached():
                return bool(self._steps())
        except UnreachableStatesError:
            return True

    def touch(self) -> None:
        """A state was written just now, by whichever process."""
        self._last_written = time.monotonic()

    def is_due(self, step: int, every_minutes: float | None, every_steps: int | None) -> bool:
        """Whether it is time to save a state."""
        if every_steps is not None and step % every_steps == 0:
            return True
        return every_minutes is not None and time.monotonic() - self._last_written >= 60 * every_minutes

    def save_state(self, step: int, last_step: int, state: "State | Callable[[], State]") -> int:
        """Save a state and, by their hashes, the files written so far. All processes call it together. Returns its
        bytes; 0 where there is no room, or no way to where states lie: then the one before stays."""
        states = self.states
        given = state() if callable(state) else state
        try:
            written = states.save(step, self._run_id or self.attempt, last_step, given, self.output)
        except Exception as error:
            if not is_full(error) and not (states.is_shared and isinstance(error, OSError)):
                raise
            if rank() == 0:
                with suppress(OSError):
                    states.discard(step)
                self._warn(step, error, given)
            return 0
        finally:
            self.touch()
        if rank() == 0:
            try:
                states.prune()
                if self._earlier and len(states.steps()) >= STATES_KEPT:
                    for turn in self._earlier:
                        self._states_of(turn).place.remove("")
                    self._earlier = []
            except (OSError, ValueError, OtherFormatError) as error:
                logger.warning("%s: old states could not be removed: %s", states.place.where, error)
        return written

    def latest_state(self) -> SavedState | None:
        """The newest sound state, with the output as it was then; None: begin at the beginning, with no output. All
        processes call it together."""
        before = sys.maxsize, sys.maxsize
        with self.states.reached():
            while (found := first(partial(self._newest, before))) is not None:
                turn, seal = found
                saved = SavedState(self._states_of(turn), seal, self.scratch)
                problem = saved.damage() or first(partial(self._take_back, turn, seal))
                if not problem:
                    return saved
                before = turn, seal.step
                first(partial(self._give_up, turn, seal.step, problem))
        first(partial(self._remove_output_but, {}))
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

    def _newest(self, before: tuple[int, int]) -> tuple[int, Seal] | None:
        """Turn and seal of the newest state before those of a turn and step that has a good seal."""
        for turn, step in self._steps():
            if (turn, step) < before:
                seal, problem = self._states_of(turn).look(step)
                if seal is not None:
                    _refuse_other_versions(seal.versions)
                    return turn, seal
                self._give_up(turn, step, problem)
        return None

    def _take_back(self, turn: int, seal: Seal) -> str:
        """Have the output as it was at a state; or what is wrong."""
        problem = self._states_of(turn).fetch_output(seal, self.output)
        if not problem:
            self._remove_output_but(seal.output)
        return problem

    def _give_up(self, turn: int, step: int, problem: str) -> None:
        logger.warning("the state of step %d is not used: %s", step, problem)
        self._states_of(turn).discard(step)

    def _warn(self, step: int, error: BaseException, state: "State") -> None:
        left = "the one before it stays, and the work goes on"
        if not is_full(error):
            why = redact(str(error))
            logger.warning("no state could be kept at step %d in %s (%s); %s", step, self.states.place.where, why, left)
            return
        from dpr_core.state import size

        free, needed = format_bytes(shutil.disk_usage(self.folder).free), format_bytes(size(state))
        room = f"{free} are free, and it needs {needed}"
        logger.warning("the disk is full: no state could be kept at step %d (%s); %s", step, room, left)

    def _remove_output_but(self, names: Mapping[str, str]) -> None:
        """Remove what was written into the output after a state."""
        for path, name in list(files_below(self.output)):
            if name not in names:
                path.unlink()
        for folder in sorted((path for path in self.output.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()


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
