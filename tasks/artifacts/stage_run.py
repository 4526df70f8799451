"""A stage's MLflow run in progress: metrics, extra files, and the atomic publish of its payload as an artifact."""

import errno
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from dpr_core.hashing import HashCache
from dpr_core.redaction import redact
from tasks.artifacts.identity import Manifest, RunEntry, check_files, file_entry, files_below
from tasks.artifacts.listed import Dataset, Model, Prompt, Trace
from tasks.artifacts.metric_buffer import Entry, MetricBuffer
from tasks.artifacts.payloads import beside_payload
from tasks.artifacts.run_records import MANIFEST, PAYLOAD, mlflow_name, record_of, results_text, split_tag
from tasks.local_home import sync

if TYPE_CHECKING:
    from tasks.artifacts.leases import Lease
    from tasks.artifacts.mlflow_client import MlflowClient


SYSTEM = "system"
"""Where MLflow looks for metrics of machines."""


class StageRun:
    """One MLflow run in progress. Metrics are sent every few seconds, everything else at once."""

    def __init__(
        self, run_id: str, client: "MlflowClient", root: Path | None, began: int = 0, lease: "Lease | None" = None
    ) -> None:
        self.id = run_id
        self._lease = lease
        self.turn = 0 if lease is None else lease.turn
        """Greater than of those that have held it before."""
        self._began = began
        self._client = client
        self._root = root
        self._buffer = MetricBuffer(self._try_metrics)
        self.last_step = 0
        self._results: list[Entry] = []

    def held(self) -> AbstractContextManager[object]:
        """Inside the block other hosts leave it alone."""
        return self._lease or nullcontext()

    def _try_metrics(self, entries: Sequence[Entry]) -> bool:
        return (self._lease is None or self._lease.is_trusted) and self._client.try_metrics(self.id, entries)

    def give_up_if_taken(self) -> None:
        """Raise if another host is known to have taken it over."""
        if self._lease is not None:
            self._lease.check()

    def keep_unsent_in(self, file: Path) -> None:
        """Where metrics are kept while MLflow is away. Those of an interrupted run are sent first."""
        self._buffer.keep_in(file)

    def reads(self, datasets: Sequence[Dataset]) -> None:
        """List the datasets that it reads."""
        if datasets:
            self._client.list_datasets(self.id, datasets)

    def traces(self, prompt: Prompt | None, traces: Sequence[Trace]) -> None:
        """List traces, and the prompt behind them."""
        if traces:
            self._client.list_traces(self._client.get_run(self.id), prompt, traces)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values over steps, with the time of this call. They reach MLflow within seconds of its being there."""
        self.give_up_if_taken()
        self.last_step = max(self.last_step, step)
        self._buffer.add(_entries(values, step))

    def system_metrics(self, values: Mapping[str, float]) -> None:
        """Log what the machine does, over seconds since the run began."""
        now = time.time_ns() // 1_000_000
        step = (now - self._began) // 1000
        self._buffer.add([(f"{SYSTEM}/{name}", float(value), now, step) for name, value in values.items()])

    def flush(self) -> None:
        """Have all metrics with MLflow or, while it is away, on disk."""
        self._buffer.flush()

    @property
    def is_lost(self) -> bool:
        """Whether MLflow has been away for longer than it may be."""
        return self._client.retry.exhausted

    def give_up_if_lost(self) -> None:
        """Call this where nothing would be lost by it."""
        if self.is_lost:
            raise self._client.retry.gave_up()

    def results(self, values: Mapping[str, float]) -> None:
        """Log the final metrics, under the last step and as the results that a reuse shows again."""
        self._results = _entries(values, self.last_step)
        self._buffer.add(self._results)
        for tag, piece in split_tag("dpr.results", results_text(values)).items():
            self._client.set_tag(self.id, tag, piece)

    def text(self, path: str, content: str) -> None:
        """Show a text beside the payload."""
        self._client.log_text(self.id, content, _beside_payload(path))

    def file(self, local: Path, folder: str) -> None:
        """Show a file beside the payload."""
        self._client.log_artifact(self.id, str(local), _beside_payload(folder))

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        """Show rows as a table that MLflow compares between runs; `path` ends in .json."""
        columns = dict.fromkeys(name for row in rows for name in row)
        self._client.log_table(self.id, {c: [row.get(c) for row in rows] for c in columns}, _beside_payload(path))

    def unpublished(self, directory: Path, manifest: Manifest) -> list[str]:
        """What keeps `directory` from being published. Its files may have been moved into their place already."""
        moved = self._root is not None and not any(directory.iterdir())
        return check_files(self._root / PAYLOAD if self._root is not None and moved else directory, manifest)

    def publish(
        self,
        directory: Path,
        manifest: Manifest,
        models: Sequence[Model] = (),
        measured: tuple[str, Dataset] | None = None,
    ) -> str:
        """Make `directory` the artifact's payload, and return its digest. A local store takes the directory itself.
        Its models are listed, and what was `measured` of a listed one on a dataset is shown with that.

        Files come first, then the manifest, then its digest, then the status. A reader asks for all four.
        """
        self._buffer.drain(lambda entries: self._client.log_metrics(self.id, entries))
        if self._lease is not None:
            self._lease.confirm()
        if self._root is None:
            self._client.log_folder(self.id, directory, PAYLOAD)
        elif any(directory.iterdir()):
            shutil.rmtree(self._root / PAYLOAD, ignore_errors=True)
            _move(directory, self._root / PAYLOAD)
        run = self._client.get_run(self.id)
        manifest = replace(manifest, run=self._as_it_is(run))
        self._client.log_text(self.id, manifest.to_json(), MANIFEST)
        if self._root is not None:
            _sync_all(self._root)
        if models:
            self._client.list_models(run, manifest.stage, manifest.config, models, self._results)
        if measured is not None:
            self._client.measure_model(run, *measured, self._results)
        digest = manifest.digest()
        self._client.set_tag(self.id, "dpr.run", manifest.run_digest())
        self._client.set_tag(self.id, "dpr.digest", digest)
        self._client.set_terminated(self.id, "FINISHED")
        return digest

    def _as_it_is(self, run: Any) -> RunEntry:
        """What MLflow shows of the run, read back, so that a later change of it is seen."""
        record = record_of(run)
        with beside_payload(self._client, self.id, self._root) as files:
            return {
                "name": record.name,
                "parent": record.parent,
                "owner": record.owner,
                "description": run.data.tags.get("mlflow.note.content", ""),
                "started": run.info.start_time,
                "ended": time.time_ns() // 1_000_000,
                "config": record.config,
                "results": record.results,
                "metrics": dict(run.data.metrics),
                "last_step": self.last_step,
                "files": [file_entry(path, name, HashCache()) for name, path in files.items()],
            }

    def end(self, status: str, reason: str = "", *, kept: bool = False) -> None:
        """End a run that made nothing, as FAILED or KILLED. What is already finished stays so. `kept`: it can be gone
        on with."""
        self.flush()
        with self._client.ending(status):
            if self._client.get_run(self.id).info.status == "FINISHED":
                return
            try:
                if reason:
                    self._client.set_tag(self.id, "dpr.reason", redact(reason)[:2000])
            finally:
                self._client.set_terminated(self.id, status)
            if self._lease is not None:
                self._lease.release(closed=not kept)


def _entries(values: Mapping[str, float], step: int) -> list[Entry]:
    now = time.time_ns() // 1_000_000
    return [(mlflow_name(name), float(value), now, step) for name, value in values.items()]


def _move(directory: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(directory, partial)
        partial.rename(target)


def _sync_all(root: Path) -> None:
    """Sync payload and manifest to the disk before anything refers to them: the power may fail."""
    payload = root / PAYLOAD
    for path, _ in files_below(payload):
        sync(path)
    for each in (*(path for path in payload.rglob("*") if path.is_dir()), payload, root / MANIFEST, root):
        sync(each)


def _beside_payload(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] in ("/", PAYLOAD, MANIFEST) or ".." in parts:
        raise ValueError(f"{path!r} is no place beside the payload")
    return path
