"""Records of MLflow runs: their tags read and written, within MLflow's limits of length."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.artifacts.identity import Manifest, canonical_json

PAYLOAD = "output"
MANIFEST = "MANIFEST.json"
TAG_LIMIT = 7500
PARAM_LIMIT = 2000
NOTE_LIMIT = 7500
ID = re.compile(r"[0-9a-f]{32}")
KEY = re.compile(r"[0-9a-f]{64}")
"""IDs and keys become names of files, wherever they came from."""
UNKNOWN = "unknown"
"""The stage of a run whose tag is lost."""


@dataclass(frozen=True)
class Record:
    """An artifact, or a run that made none, as stored."""

    id: str
    stage: str
    name: str
    status: str
    key: str
    digest: str | None
    inputs: dict[str, str]
    config: dict[str, Any]
    started: datetime
    seconds: float | None
    parent: str | None
    version: int = 0
    results: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    run_digest: str | None = None
    """Hash of what the manifest says of the run."""
    owner: str = ""
    """The host and the `DPR_HOME` that it was made in."""
    commit: str = ""
    """Of the code that made it, where that is known."""
    since: str = ""
    """For what it was made anew, if it was: the moment before which nothing was to be reused."""

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED" and self.digest is not None

    @property
    def title(self) -> str:
        return f"{self.id[:8]} ({run_name(self.stage, self.name)})"


@dataclass(frozen=True)
class Artifact:
    """A verified payload on this machine."""

    id: str
    stage: str
    digest: str
    config: dict[str, Any]
    inputs: dict[str, str]
    path: Path


def record_of(run: Any) -> Record:
    """The record of an MLflow run."""
    tags = run.data.tags
    ended = None if run.info.status == "RUNNING" else run.info.end_time
    version = tags.get("dpr.version", "")
    return Record(
        id=run.info.run_id,
        stage=tags.get("dpr.stage", UNKNOWN),
        name=tags.get("dpr.name", tags.get("dpr.stage", UNKNOWN)),
        status=run.info.status,
        key=key if KEY.fullmatch(key := tags.get("dpr.key", "")) else "",
        digest=tags.get("dpr.digest"),
        inputs=mapping_in_tag("dpr.inputs", tags),
        config=mapping_in_tag("dpr.config", tags),
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        seconds=(ended - run.info.start_time) / 1000 if ended else None,
        parent=tags.get("mlflow.parentRunId"),
        version=int(version) if version.isdecimal() else 0,
        results=mapping_in_tag("dpr.results", tags),
        reason=tags.get("dpr.reason", ""),
        run_digest=tags.get("dpr.run"),
        owner=tags.get("dpr.owner", ""),
        commit=tags.get("mlflow.source.git.commit", ""),
        since=tags.get("dpr.since", ""),
    )


def moment(not_before: datetime) -> str:
    """A moment as in the tag `dpr.since`."""
    return str(round(not_before.timestamp() * 1000))


def is_recent(record: Record, not_before: datetime | None) -> bool:
    """Whether it was begun at a moment or later, by this clock; or for the same moment, by whichever clock."""
    return not_before is None or record.started >= not_before or record.since == moment(not_before)


class Snapshot:
    """All records at one moment, indexed in memory for plans of a thousand stages. Files are still checked on disk."""

    def __init__(self, runs: Iterable[Any], problems: Callable[[Any], list[str]], pipelines: Mapping[str, str]) -> None:
        self._problems = problems
        self._runs = {str(run.info.run_id): run for run in runs}
        self._records = {run_id: record_of(run) for run_id, run in self._runs.items()}
        self._finished: dict[str, list[Record]] = defaultdict(list)
        self._named: dict[tuple[str, str, str | None], list[Record]] = defaultdict(list)
        for record in self._records.values():
            self._named[record.stage, record.name, pipelines.get(record.parent or "")].append(record)
            if record.finished:
                self._finished[record.key].insert(0, record)
        self.digests = {run_id: record.digest for run_id, record in self._records.items()}

    def record(self, run_id: str) -> Record | None:
        """An artifact by its full ID; none if it is not there, or came later."""
        return self._records.get(run_id)

    def finished(self, key: str) -> list[Record]:
        """The finished artifacts with this key, earliest first."""
        return self._finished.get(key, [])

    def named(self, stage: str, name: str, pipeline: str | None) -> list[Record]:
        """The runs of a stage under this name in pipelines of one name, newest first."""
        return self._named.get((stage, name, pipeline), [])

    def problems(self, run_id: str) -> list[str]:
        """Every reason not to trust a finished artifact, by the hashes that this process has made of its files."""
        return self._problems(self._runs[run_id])


def _named_in(held: Any, stored: Any) -> Any:
    """Of the settings in a tag those that a manifest names, at any depth: the others are no part of identity."""
    if not (isinstance(held, dict) and isinstance(stored, dict)):
        return stored
    return {name: _named_in(value, stored.get(name)) for name, value in held.items()}


def disagreements(record: Record, manifest: Manifest) -> list[str]:
    """The tags of a run that contradict its manifest."""
    stored = _named_in(manifest.config, record.config)
    run = manifest.run
    same = {
        "dpr.digest": record.digest == manifest.digest(),
        "dpr.stage": record.stage == manifest.stage,
        "dpr.version": record.version == manifest.stage_version,
        "dpr.key": record.key == manifest.key,
        "dpr.inputs": record.inputs == {role: entry["id"] for role, entry in manifest.inputs.items()},
        "dpr.config": canonical_json(stored) == canonical_json(manifest.config)
        and (run is None or record.config == run["config"]),
        "dpr.run": record.run_digest == manifest.run_digest(),
        "dpr.name": run is None or record.name == run["name"],
        "dpr.results": run is None or same_numbers(record.results, run["results"]),
    }
    return [f"{MANIFEST}: does not agree with the tag {tag}" for tag, agrees in same.items() if not agrees]


def results_text(values: Mapping[str, float]) -> str:
    """The tag of the final metrics."""
    return json.dumps({name: float(value) for name, value in values.items()}, ensure_ascii=False)


def same_numbers(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two mappings are equal, where no number equals no number."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def wrong_stage(title: str, stage: str, accepted: tuple[str, ...]) -> str:
    """Why something made by `stage` does not fit; empty if it does. Without `accepted`, everything fits."""
    if not accepted or stage in accepted:
        return ""
    return (
        f"{title} is an artifact of stage {stage}; one of stage {' or '.join(accepted)} is needed. "
        f"Those there are: dpr artifacts --stage {accepted[0]}"
    )


def usable_as(record: Record, accepted: tuple[str, ...]) -> str:
    """Why this artifact cannot be an input where `accepted` stages fit; empty if it can."""
    problem = wrong_stage(record.title, record.stage, accepted)
    if problem or record.finished:
        return problem
    return (
        f"{record.title} was never finished (its status is {record.status}), so nothing can be built on it; "
        f"make it again with: dpr rerun {record.id[:8]}"
    )


def run_name(stage: str, name: str) -> str:
    return name if name.startswith(stage) else f"{stage} · {name}"


def split_tag(name: str, text: str) -> dict[str, str]:
    """MLflow limits the length of a tag, so a long text goes into `name`, `name.1`, `name.2`, ..."""
    pieces = [text[start : start + TAG_LIMIT] for start in range(0, len(text), TAG_LIMIT)] or [""]
    return {name if i == 0 else f"{name}.{i}": piece for i, piece in enumerate(pieces)}


def join_tag(name: str, tags: Mapping[str, str]) -> str:
    pieces = [tags.get(name, "")]
    while (piece := tags.get(f"{name}.{len(pieces)}")) is not None:
        pieces.append(piece)
    return "".join(pieces)


def mapping_in_tag(name: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of a tag; one broken by hand reads as empty, and the manifest then contradicts it."""
    try:
        value = json.loads(join_tag(name, tags))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and leaves of nested mappings; a list or an empty mapping is a leaf."""
    if isinstance(value, Mapping) and (value or not path):
        for name, child in value.items():
            yield from flatten(child, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def mlflow_name(name: str) -> str:
    """`name` without the characters that MLflow refuses in names of params and metrics."""
    parts = [re.sub(r"[^\w.\- :]", "_", part) for part in name.split("/")]
    return "/".join(part for part in parts if part.strip("."))[:250] or "_"


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """A config as flat MLflow params; long values are cut here, the whole of them is in config.yaml."""
    texts = {mlflow_name(name): _text(value) for name, value in flatten(config)}
    return {name: text if len(text) <= PARAM_LIMIT else text[:PARAM_LIMIT] + "..." for name, text in texts.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
