"""Verified reads of published payloads: nothing is used before it has been re-hashed."""

import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dpr_core import hashing
from dpr_core.hashing import HashCache
from tasks.artifacts.identity import Manifest, check_file, check_files, files_below
from tasks.artifacts.run_records import MANIFEST, PAYLOAD, disagreements, record_of, same_numbers
from tasks.locks import exclusive

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient


class Payloads:
    """The files of MLflow runs: read in place where they lie on this machine, else downloaded into `home/cache`."""

    def __init__(self, client: "MlflowClient", home: Path, artifacts: Path | None) -> None:
        self._client = client
        self._home = home
        self._artifacts = artifacts

    def root(self, run: Any) -> Path | None:
        """Where the files of a run lie, if on this machine.

        In a home's own store by the run's ID, whatever MLflow remembers: the home may have been moved or copied.
        """
        if self._artifacts is not None:
            return self._artifacts / str(run.info.run_id) / "artifacts"
        return local_path(run.info.artifact_uri)

    def manifest(self, run: Any) -> tuple[Manifest | None, list[str]]:
        """The manifest of a run, and what keeps it from being believed."""
        try:
            manifest = Manifest.from_json(self._manifest_text(run))
            return manifest, disagreements(record_of(run), manifest)
        except FileNotFoundError:
            return None, [f"{MANIFEST}: missing"]
        except OSError as error:
            return None, [f"{MANIFEST}: cannot be read ({error.strerror})"]
        except (ValueError, RecursionError) as error:
            return None, [f"{MANIFEST}: {error}"]

    def inspect(self, run: Any, *, cached: bool = True) -> tuple[Manifest | None, Path, list[str]]:
        """Manifest, payload folder and every problem. Not `cached`: download again, and hash again."""
        root = self.root(run)
        payload = (root or self._home / "cache" / run.info.run_id) / PAYLOAD
        manifest, problems = self.manifest(run)
        if manifest is None or problems:
            return None, payload, problems
        hashes = hashing.KNOWN if cached else HashCache()
        if root is not None:
            return manifest, payload, check_files(payload, manifest, hashes)
        with exclusive(self._home / "locks" / f"{run.info.run_id}.lock"):
            if not cached or check_files(payload, manifest, hashes):
                shutil.rmtree(payload.parent, ignore_errors=True)
                payload.parent.mkdir(parents=True)
                if PAYLOAD in self._names(run):
                    self._client.download_artifacts(run.info.run_id, PAYLOAD, str(payload.parent))
            return manifest, payload, check_files(payload, manifest, hashes)

    def shown(self, run: Any, manifest: Manifest) -> list[str]:
        """What is shown beside the payload, by MLflow or as a file, and is not as it was published."""
        if (published := manifest.run) is None:
            return []
        parent, metrics = record_of(run).parent, run.data.metrics
        problems = [] if parent == published["parent"] else ["the tag mlflow.parentRunId: has changed"]
        problems += [
            f"the metric {name}: {metrics.get(name)}, published as {value}"
            for name, value in published["metrics"].items()
            if not same_numbers({"": metrics.get(name)}, {"": value})
        ]
        with beside_payload(self._client, run.info.run_id, self.root(run)) as files:
            for entry in published["files"]:
                path = files.get(entry["path"])
                problem = f"{entry['path']}: missing" if path is None else check_file(path, entry, HashCache())
                problems += [problem] if problem else []
        return problems

    def _manifest_text(self, run: Any) -> str:
        root = self.root(run)
        if root is None:
            if MANIFEST not in self._names(run):
                raise FileNotFoundError(MANIFEST)
            with tempfile.TemporaryDirectory(dir=self._home / "work") as folder:
                path = self._client.download_artifacts(run.info.run_id, MANIFEST, folder)
                return Path(path).read_text(encoding="utf-8")
        return manifest_text(root)

    def _names(self, run: Any) -> list[str]:
        """What there is of a run in a store on another machine, which tells what is missing only by an error."""
        return [entry.path for entry in self._client.list_artifacts(run.info.run_id)]


def manifest_text(root: Path) -> str:
    """The manifest in the folder of a run on this machine."""
    if not stat.S_ISREG((root / MANIFEST).lstat().st_mode):
        raise ValueError("not a plain file")
    return (root / MANIFEST).read_text(encoding="utf-8")


@contextmanager
def beside_payload(client: "MlflowClient", run_id: str, root: Path | None) -> Iterator[dict[str, Path]]:
    """The files of a run that are neither payload nor manifest, by their names; downloaded if they are not here."""
    ours = (PAYLOAD, f"{PAYLOAD}.partial", MANIFEST)
    if root is not None:
        tops = sorted(top for top in root.iterdir() if top.name not in ours)
        yield {name: path for top in tops for path, name in _named(top)}
        return
    with tempfile.TemporaryDirectory() as folder:
        for entry in client.list_artifacts(run_id):
            if entry.path not in ours:
                client.download_artifacts(run_id, entry.path, folder)
        yield {name: path for top in sorted(Path(folder).iterdir()) for path, name in _named(top)}


def _named(top: Path) -> Iterator[tuple[Path, str]]:
    if top.is_symlink() or not top.is_dir():
        yield top, top.name
    else:
        yield from ((path, f"{top.name}/{name}") for path, name in files_below(top))


def local_path(uri: str) -> Path | None:
    """The folder behind an artifact URI, if it is one of this machine."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(uri)
