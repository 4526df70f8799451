"""Content-addressed identity: the cache key of a stage, and the manifest that a reader re-hashes."""

import hashlib
import json
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypedDict

from dpr_core import __version__, hashing
from dpr_core.hashing import HashCache

RECORDED_PACKAGES = ("accelerate", "datasets", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The cache key: a hash of all that decides what a stage makes; `inputs` has the digest of each role's artifact."""
    return _sha256({"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)})


@cache
def library_versions() -> Mapping[str, str]:
    """The versions that a manifest records."""
    versions = {"dense-path": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


class FileEntry(TypedDict):
    path: str
    size: int
    sha256: str


class InputEntry(TypedDict):
    id: str
    digest: str


class RunEntry(TypedDict):
    """What MLflow showed of an artifact when it was published, and the files beside its payload."""

    name: str
    parent: str | None
    owner: str
    description: str
    started: int
    """Milliseconds since 1970."""
    ended: int
    config: dict[str, Any]
    """With the settings that are no part of identity."""
    results: dict[str, float]
    metrics: dict[str, float]
    last_step: int
    files: list[FileEntry]


@dataclass(frozen=True)
class Manifest:
    """The files of a payload by their hashes, and its provenance."""

    stage: str
    stage_version: int
    config: dict[str, Any]
    seed: int
    inputs: dict[str, InputEntry]
    files: list[FileEntry]
    versions: dict[str, str]
    run: RunEntry | None = None
    """No part of the digest: two runs of the same work differ in it. None: an earlier version published it."""

    @classmethod
    def of_directory(
        cls,
        directory: Path,
        *,
        stage: str,
        stage_version: int,
        config: Mapping[str, Any],
        seed: int,
        inputs: Mapping[str, InputEntry],
        versions: Mapping[str, str] | None = None,
    ) -> Self:
        """Hash every file below `directory`, unless this process has since it last changed. Anything but plain files
        and folders is refused."""
        found = sorted(files_below(directory), key=lambda each: each[1])
        size = sum(path.lstat().st_size for path, _ in found)
        files = hashing.several_at_once(lambda each: file_entry(each[0], each[1], hashing.KNOWN), found, size)
        recorded = dict(library_versions() if versions is None else versions)
        return cls(stage, stage_version, dict(config), seed, dict(inputs), files, recorded)

    @property
    def key(self) -> str:
        digests = {role: entry["digest"] for role, entry in self.inputs.items()}
        return stage_key(self.stage, self.stage_version, self.config, digests)

    def digest(self) -> str:
        """Hash of everything but the IDs of the inputs and the run, so that the same work gives the same digest."""
        content = asdict(self) | {"inputs": {role: entry["digest"] for role, entry in self.inputs.items()}}
        del content["run"]
        return _sha256(content)

    def run_digest(self) -> str | None:
        """Hash of what it says of the run."""
        return None if self.run is None else hashlib.sha256(json.dumps(self.run, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest that may have been tampered with; raises ValueError naming what is wrong."""
        try:
            content = json.loads(text)
            # What a later version adds is no part of the digest.
            manifest = cls(**{field.name: content[field.name] for field in fields(cls) if field.name in content})
            listed = [*manifest.files, *(manifest.run["files"] if manifest.run else ())]
            well_formed = (
                isinstance(manifest.stage, str)
                and isinstance(manifest.stage_version, int)
                and isinstance(manifest.config, dict)
                and isinstance(manifest.seed, int)
                and all(isinstance(e["id"], str) and isinstance(e["digest"], str) for e in manifest.inputs.values())
                and all(isinstance(e["size"], int) and isinstance(e["sha256"], str) for e in listed)
                and isinstance(manifest.versions, dict)
                and (manifest.run is None or _is_run_entry(manifest.run))
            )
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a manifest ({type(error).__name__}: {error})") from None
        if not well_formed:
            raise ValueError("not a manifest (a field has the wrong type)")
        for entry in listed:
            if not _stays_inside(entry["path"]):
                raise ValueError(f"the file name {entry['path']!r} would leave the artifact")
        if len({entry["path"] for entry in manifest.files}) != len(manifest.files):
            raise ValueError("a file is listed twice")
        return manifest


def file_entry(path: Path, name: str, hashes: HashCache) -> FileEntry:
    """Size and hash of a file; anything but a plain one is refused."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: only plain files can be published")
    return {"path": name, "size": status.st_size, "sha256": hashes.sha256(path)}


def check_files(directory: Path, manifest: Manifest, hashes: HashCache | None = None) -> list[str]:
    """Every difference between a payload and its manifest, file by file; empty means sound."""
    hashes = hashes or HashCache()
    try:
        present = {name for _, name in files_below(directory)}
    except OSError as error:
        return [f"{directory.name}: cannot be read ({error.strerror})"]
    problems = [f"{name}: not in the manifest" for name in sorted(present - {e["path"] for e in manifest.files})]

    def check(entry: FileEntry) -> str:
        path = directory / entry["path"]
        return check_file(path, entry, hashes) if entry["path"] in present else f"{entry['path']}: missing"

    size = sum(entry["size"] for entry in manifest.files)
    return problems + [problem for problem in hashing.several_at_once(check, manifest.files, size) if problem]


def check_file(path: Path, entry: FileEntry, hashes: HashCache) -> str:
    """What is wrong with one file; empty if nothing is. One that cannot be read is wrong."""
    name = entry["path"]
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return f"{name}: not a plain file"
        if status.st_size != entry["size"]:
            return f"{name}: {status.st_size} bytes, expected {entry['size']}"
        if hashes.sha256(path) != entry["sha256"]:
            return f"{name}: its content has changed (sha256 differs)"
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"
    return ""


def files_below(directory: Path) -> Iterator[tuple[Path, str]]:
    """Everything below `directory` that is not a folder; links are listed and never followed."""
    if directory.is_symlink():
        yield directory, directory.name
        return
    for parent, folders, names in os.walk(directory, onerror=_unless_gone):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(parent) / name
            yield path, path.relative_to(directory).as_posix()


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be read is not an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_run_entry(run: RunEntry) -> bool:
    texts = all(isinstance(run[name], str) for name in ("name", "owner", "description"))
    times = all(isinstance(run[name], int) for name in ("started", "ended", "last_step"))
    numbers = all(isinstance(value, int | float) for name in ("results", "metrics") for value in run[name].values())
    return texts and times and numbers and isinstance(run["config"], dict) and isinstance(run["parent"], str | None)


def _stays_inside(name: Any) -> bool:
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
