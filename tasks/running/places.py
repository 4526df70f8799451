"""Object storage: where states of unfinished stages lie, a folder or a prefix of a bucket, used alike."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from dpr_core.errors import UsageError
from dpr_core.redaction import address, redact
from tasks.artifacts.identity import files_below
from tasks.local_home import is_full, sync

VARIABLE = "DPR_STATES"

ATTEMPTS = 10
"""Of a request to S3, with pauses that double: a server that is away for half a minute is waited for."""


class UnreachableStatesError(UsageError):
    """Where states should lie cannot be read or written."""


@dataclass(frozen=True)
class Stored:
    """A file as it is listed."""

    size: int
    changed: datetime


class Place(Protocol):
    """Files by relative names. OSError for what does not work, FileNotFoundError for what is not there."""

    where: str
    """As it may be shown."""

    def files(self) -> dict[str, Stored]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes) -> None:
        """All of it at once: others see the file as it was, or as it is then."""

    def put(self, local: Path, name: str) -> None:
        """Keep a copy of a file of this machine."""

    def path(self, name: str, downloads: Path) -> Path:
        """Where a file can be read here; one that is elsewhere comes into `downloads`."""

    def staged(self, name: str, scratch: Path) -> Path:
        """A folder to write files into that `put` keeps below this name."""

    def remove(self, name: str) -> None:
        """A file, or all files below a name; nothing need be there."""

    def inside(self, name: str) -> "Place":
        """The place below a name."""


class Folder:
    """A folder of this machine, or one that several machines share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def files(self) -> dict[str, Stored]:
        found: dict[str, Stored] = {}
        for path, name in files_below(self.folder):
            try:
                state = path.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            found[name] = Stored(state.st_size, datetime.fromtimestamp(state.st_mtime, UTC))
        return found

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        with self._replacing(name) as new:
            new.write_bytes(content)

    def put(self, local: Path, name: str) -> None:
        if local != self.folder / name:
            with self._replacing(name) as new:
                shutil.copyfile(local, new)

    def path(self, name: str, downloads: Path) -> Path:
        return self.folder / name

    def staged(self, name: str, scratch: Path) -> Path:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def inside(self, name: str) -> "Folder":
        return Folder(self.folder / name)

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            yield new
            sync(new)
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)
        sync(path.parent)


class Bucket:
    """A prefix in an object store, by fsspec. A file is there once it has been sent whole."""

    def __init__(self, files: Any, root: str, where: str) -> None:
        self._fs, self._root, self.where = files, root.rstrip("/"), where

    def files(self) -> dict[str, Stored]:
        try:
            # By itself it takes a server that does not answer for one that has nothing.
            found = self._fs.find(self._root, detail=True, on_error="raise")
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {name[start:]: Stored(int(entry["size"]), _moment(entry)) for name, entry in found.items()}

    def read(self, name: str) -> bytes:
        content: bytes = self._fs.cat_file(self._at(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        with self._fs.open(self._at(name), "wb") as there:
            there.write(content)

    def put(self, local: Path, name: str) -> None:
        with local.open("rb") as here, self._fs.open(self._at(name), "wb") as there:
            shutil.copyfileobj(here, there, 2**22)

    def path(self, name: str, downloads: Path) -> Path:
        local = downloads / name.replace("/", "-")
        if not local.exists():
            part = local.with_name(f"{local.name}.part")
            with self._fs.open(self._at(name), "rb") as there, part.open("wb") as here:
                shutil.copyfileobj(there, here, 2**22)
            part.rename(local)
        return local

    def staged(self, name: str, scratch: Path) -> Path:
        scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="state-", dir=scratch))

    def remove(self, name: str) -> None:
        at = self._at(name)
        with suppress(FileNotFoundError):
            self._fs.rm(at, recursive=True)

    def inside(self, name: str) -> "Bucket":
        return Bucket(self._fs, self._at(name), f"{self.where}/{name}")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def shared_place() -> Folder | Bucket | None:
    """What `DPR_STATES` names: `s3://bucket/prefix`, `file:///folder`, or any address that fsspec can open; None where
    it is not set."""
    uri = os.environ.get(VARIABLE, "").strip()
    return _opened(uri) if uri else None


@cache
def _opened(uri: str) -> Folder | Bucket:
    example = f"set {VARIABLE} to an address like s3://bucket/prefix or file:///shared/folder"
    if address(uri) != uri:
        raise UsageError(
            f"{VARIABLE}: {address(uri)} holds a user, a password or a query, which others would see; leave them out, "
            "and give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in the files of the store's client"
        )
    parts = urlsplit(uri)
    if not parts.scheme or "://" not in uri:
        raise UsageError(f"{VARIABLE}: {uri} is no address; {example}")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UsageError(f"{VARIABLE}: {uri} names no folder from the root on; {example}")
        return Folder(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise UsageError(f"{VARIABLE}: {uri} names no bucket; {example}")
        return Bucket(_s3(), (parts.netloc + parts.path).rstrip("/"), uri.rstrip("/"))
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{VARIABLE}: {uri} cannot be opened ({redact(str(error))}); {example}") from error
    return Bucket(files, root, uri.rstrip("/"))


def _s3() -> Any:
    """Arrow's client: credentials and region from where all clients of S3 have them."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    options: dict[str, Any] = {}
    if endpoint:
        scheme, mark, rest = endpoint.partition("://")
        options = {"scheme": scheme, "endpoint_override": rest} if mark else {"endpoint_override": endpoint}
        options["endpoint_override"] = options["endpoint_override"].rstrip("/")
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    retries = AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    return ArrowFSWrapper(S3FileSystem(**options, retry_strategy=retries, allow_delayed_open=True))


def _moment(entry: dict[str, Any]) -> datetime:
    for name in ("mtime", "LastModified", "last_modified", "created"):
        if isinstance(found := entry.get(name), datetime):
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.now(UTC)


@contextmanager
def reached(place: Place) -> Iterator[None]:
    """What the operations of a shared place raise, as an error that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or is_full(error):
            raise
        raise UnreachableStatesError(
            f"{VARIABLE}: {place.where} cannot be used ({redact(str(error))}); see that it can be read and written "
            f"from here, name another place, or unset {VARIABLE} to keep states in DPR_HOME. What is there stays"
        ) from error


def remove(place: Folder | Bucket) -> None:
    """All that is there, and of a folder the one that it was in, if that is empty then."""
    place.remove("")
    if isinstance(place, Folder):
        with suppress(OSError):
            place.folder.parent.rmdir()


def check(place: Place) -> None:
    """UnreachableStatesError unless something can be written, read and removed there."""
    if isinstance(place, Folder) and not place.folder.is_dir():
        # Made here, it would be on this machine's own disk where a mount is missing.
        raise UnreachableStatesError(f"{VARIABLE}: there is no folder {place.where}; make or mount it, or name another")
    name = f"probe-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with reached(place):
            place.write(name, b"probe")
            if place.read(name) != b"probe":
                raise OSError("what was written is not what is read")
            place.remove(name)
    except FileNotFoundError as error:
        raise UnreachableStatesError(
            f"{VARIABLE}: {place.where} is not there ({redact(str(error))}); make the bucket, or name another place"
        ) from error
