"""Checkpoints of unfinished stages: sealed sets of files in a folder or a bucket, each whole or ignored.

Below their place lie `000000012/`, a state with the files of every process and `SEAL.json`, and in a
place that machines share `output/`, the files of the stage's output by their hashes, each once.
"""

import json
import logging
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dpr_core import hashing
from dpr_core.errors import DensePathError
from tasks.artifacts.identity import files_below, library_versions
from tasks.local_home import syncing
from tasks.running.places import Folder, Place, reached
from tasks.running.together import first, rank, together, world_size

if TYPE_CHECKING:
    from dpr_core.state import State

logger = logging.getLogger("dense_path")

STATES_KEPT = 2
"""Should the newest be damaged, there is one before it."""

STATE_FORMAT = 3
"""To be raised when the states of training loops get other fields: those of another format are not loaded."""

SEAL = "SEAL.json"
OUTPUT = "output"

_STEP = re.compile(r"\d{9}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Seal:
    """What makes a state one: the hashes of its files, and whose it is. Written last."""

    step: int
    key: str
    run: str | None
    last_step: int
    versions: Mapping[str, str]
    state: Mapping[str, str]
    output: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps(
            {"format": STATE_FORMAT, **{name: value for name, value in vars(self).items() if name != "step"}}
        )

    @classmethod
    def from_json(cls, step: int, text: bytes) -> "Seal":
        """ValueError for what is none, OtherFormatError for one of another version of this program."""
        read = json.loads(text)
        if not isinstance(read, dict):
            raise ValueError(f"{SEAL} is none")
        if read.get("format") != STATE_FORMAT:
            raise OtherFormatError(
                f"another version of this program kept the state of step {step}, in another format; go on with that "
                "version, or have what is unfinished removed, to begin anew: dpr gc --unfinished"
            )
        seal = cls(step, *(read.get(name) for name in ("key", "run", "last_step", "versions", "state", "output")))
        if (
            type(seal.last_step) is not int
            or not isinstance(seal.key, str)
            or (seal.run is not None and not isinstance(seal.run, str))
            or not _texts(seal.versions)
            or any(not _texts(each) or not all(map(_safe, each.items())) for each in (seal.state, seal.output))
        ):
            raise ValueError(f"{SEAL} holds what this program does not write there")
        return seal


class OtherFormatError(DensePathError):
    """A state of another version of this program. It is neither used nor removed."""


class States:
    """The states of one stage, which all of its processes save and find together."""

    def __init__(self, place: Place, key: str, scratch: Path, is_shared: bool) -> None:
        self.place, self.key, self.is_shared = place, key, is_shared
        self._scratch = scratch

    def reached(self) -> AbstractContextManager[None]:
        """Errors of a place that machines share say what to do."""
        return reached(self.place) if self.is_shared else nullcontext()

    def steps(self) -> list[int]:
        """Of sealed states, the newest first."""
        return sealed(self.place.files())

    def seal(self, step: int) -> Seal:
        return Seal.from_json(step, self.place.read(f"{_name(step)}/{SEAL}"))

    def save(self, step: int, run: str | None, last_step: int, state: "State", output: Path) -> int:
        """Returns the bytes of all files. All processes call it."""
        from dpr_core.state import prepared

        name = _name(step)
        first(lambda: self.place.remove(name))
        write = prepared(state, together)
        kept = together(lambda: self._keep(name, write))
        hashes = {each: digest for one in kept for each, (digest, _) in one.items()}
        written = sum(size for one in kept for _, size in one.values())

        def seal() -> None:
            outputs = self._outputs(output)
            self._seal(Seal(step, self.key, run, last_step, library_versions(), hashes, outputs))

        first(seal)
        return written

    def discard(self, step: int) -> None:
        self.place.remove(_name(step))

    def prune(self) -> None:
        """Remove all but the newest states, and what they have no use for."""
        files = self.place.files()
        kept = sealed(files)[:STATES_KEPT]
        for old in sorted(_steps_of(files) - set(map(_name, kept))):
            self.place.remove(old)
        if self.is_shared:
            needed = {digest for step in kept for digest in self.seal(step).output.values()}
            for name in files:
                if name.startswith(f"{OUTPUT}/") and name.removeprefix(f"{OUTPUT}/") not in needed:
                    self.place.remove(name)

    def remove_unsealed(self) -> None:
        """What processes that were killed amid a state have left."""
        files = self.place.files()
        for name in _steps_of(files) - set(map(_name, sealed(files))):
            self.place.remove(name)

    def look(self, step: int) -> tuple[Seal | None, str]:
        """The seal of a state, or what is wrong with it."""
        try:
            seal = self.seal(step)
        except (ValueError, RecursionError, FileNotFoundError) as error:
            return None, f"{type(error).__name__}: {error}"
        return (seal, "") if seal.key == self.key else (None, "it is of another stage")

    def damage(self, seal: Seal, downloads: Path) -> str:
        """What is wrong with the files of a state, of which each process reads its share."""
        ranks = world_size()
        mine = [name for name in seal.state if _writer(name) % ranks == rank()]
        return next(filter(None, together(lambda: self._damage(seal, mine, downloads))), "")

    def fetch_output(self, seal: Seal, output: Path) -> str:
        """Have the output's files as they were, from the shared place where they are not here; or what is wrong."""
        for name, digest in seal.output.items():
            path = output / name
            if _hash(path) == digest:
                continue
            if not self.is_shared:
                return f"{output.name}/{name} has changed"
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output.parent) as folder:
                try:
                    found = self.place.path(f"{OUTPUT}/{digest}", Path(folder))
                    if _hash(found) != digest:
                        return f"{OUTPUT}/{digest} has changed"
                    Folder(path.parent).put(found, path.name)
                except FileNotFoundError:
                    return f"{OUTPUT}/{digest} is missing"
        return ""

    def path(self, step: int, name: str, downloads: Path) -> Path:
        return self.place.path(f"{_name(step)}/{name}", downloads)

    def _keep(self, name: str, write: Callable[[Path], list[Path]]) -> dict[str, tuple[str, int]]:
        """Have this process's files written and safe; hash and size of each."""
        folder = self.place.staged(name, self._scratch)
        try:
            files = write(folder)
            with syncing(files):
                sizes = [path.stat().st_size for path in files]
                hashes = hashing.several_at_once(hashing.KNOWN.sha256, files, sum(sizes))
            for path in files:
                self.place.put(path, f"{name}/{path.name}")
        finally:
            if not isinstance(self.place, Folder):
                shutil.rmtree(folder, ignore_errors=True)
        return {path.name: (digest, size) for path, digest, size in zip(files, hashes, sizes, strict=True)}

    def _outputs(self, output: Path) -> dict[str, str]:
        found = list(files_below(output))
        paths = [path for path, _ in found]
        with syncing(paths):
            hashes = hashing.several_at_once(hashing.KNOWN.sha256, paths, sum(path.stat().st_size for path in paths))
        if self.is_shared:
            there = self.place.files()
            for path, digest in zip(paths, hashes, strict=True):
                known = there.get(f"{OUTPUT}/{digest}")
                if known is None or known.size != path.stat().st_size:
                    self.place.put(path, f"{OUTPUT}/{digest}")
        return {name: digest for (_, name), digest in zip(found, hashes, strict=True)}

    def _seal(self, seal: Seal) -> None:
        self.place.write(f"{_name(seal.step)}/{SEAL}", seal.to_json().encode())

    def _damage(self, seal: Seal, names: Iterable[str], downloads: Path) -> str:
        downloads.mkdir(parents=True, exist_ok=True)
        for name in names:
            try:
                if _hash(self.place.path(f"{_name(seal.step)}/{name}", downloads)) != seal.state[name]:
                    return f"{name} has changed"
            except FileNotFoundError:
                return f"{name} is missing"
        return ""


class SavedState:
    """A state to go on from."""

    def __init__(self, states: States, seal: Seal, scratch: Path) -> None:
        self.step, self.last_step = seal.step, seal.last_step
        """`last_step` is the last step of which metrics had been logged."""
        self._states, self._seal = states, seal
        self._downloads = scratch / f"state-{uuid.uuid4().hex}"
        # What is mapped into memory stays readable.
        self._end = weakref.finalize(self, shutil.rmtree, self._downloads, ignore_errors=True)

    def damage(self) -> str:
        """What is wrong with it, for all processes, of which each reads its share."""
        found = self._states.damage(self._seal, self._downloads)
        if found:
            self._end()
        return found

    def read(self) -> dict[str, Any]:
        """What was saved. Each process calls it, and reads no more of large tensors than it goes on to use."""
        from safetensors import SafetensorError

        from dpr_core.state import read

        try:
            return read(self._find)
        except (ValueError, RecursionError, SafetensorError) as error:
            raise DensePathError(
                f"{self._states.place.where}: the state of step {self.step} cannot be read ({error}); "
                "have it removed, to begin anew: dpr gc --unfinished"
            ) from error

    def _find(self, name: str) -> Path:
        """A file of it on this machine, as it was sealed."""
        if name not in self._seal.state:
            raise ValueError(f"it has no {name}")
        with self._states.reached():
            path = self._states.path(self.step, name, self._downloads)
            # One in a folder was hashed before; one that comes from elsewhere may have come with other bytes.
            if path.is_relative_to(self._downloads) and _hash(path) != self._seal.state[name]:
                raise OSError(f"{name} of step {self.step} is not what it was a moment ago")
        return path


def sealed(files: Iterable[str]) -> list[int]:
    """The steps of sealed states among the files of a stage, the newest first."""
    seals = (name.partition("/") for name in files)
    return sorted((int(top) for top, _, rest in seals if rest == SEAL and _STEP.fullmatch(top)), reverse=True)


def _steps_of(files: Iterable[str]) -> set[str]:
    return {top for name in files if re.match(_STEP, top := name.partition("/")[0])}


def _name(step: int) -> str:
    return f"{step:09d}"


def _writer(name: str) -> int:
    """The process whose file it is, which with as many processes will need it."""
    number = re.search(r"\d+", name)
    return int(number[0]) if number else 0


def _hash(path: Path) -> str | None:
    try:
        return hashing.hash_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _texts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def _safe(entry: tuple[str, str]) -> bool:
    """Whether a name stays below the folder that it is put into, and has a hash."""
    name, digest = entry
    path = PurePosixPath(name)
    plain = bool(path.parts) and str(path) == name and not path.is_absolute()
    plain = plain and ".." not in path.parts and "\0" not in name
    return plain and bool(_DIGEST.fullmatch(digest))
