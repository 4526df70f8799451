"""Bottom-k sampling: the rows with the smallest hashes, in one pass and in any order; bad rows are quarantined."""

import hashlib
import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpr_core.config.data import PromptsConfig, PromptTemplate, SubsampleConfig, TemplateConfig
from dpr_core.data.rows import BadRow, Demonstration, Exchange, GeneratedId, unused_id
from dpr_core.data.sources import open_source
from dpr_core.data.template import load_template, save_template
from dpr_core.errors import DensePathError, UsageError

DEMONSTRATIONS_FILE = "demonstrations.jsonl"
QUARANTINE_FILE = "quarantine.jsonl"
SUMMARY_FILE = "summary.json"

MAX_QUARANTINED = 10_000
"""Further bad rows are counted, but not written."""

ROWS_PER_PROGRESS = 1000

MAX_PLACES_LISTED = 3

Prompt = tuple[str, tuple[Exchange, ...], str]

Ranked = tuple[int, bool, Demonstration]
"""The negated rank of a row, and whether its id is its own."""

OnProgress = Callable[[int, int], None]
"""Called with the number of rows read and the expected total (the number read, where it is unknown)."""


@dataclass(frozen=True)
class Counts:
    """Counts of the rows that were read, kept and rejected."""

    read: int
    requested: int
    kept: int
    bad: dict[str, int]
    """Bad rows by reason."""

    @property
    def bad_rows(self) -> int:
        return sum(self.bad.values())


@dataclass(frozen=True)
class Sample:
    """The sampled rows in the order of their hashes, the quarantined ones, and the prompt template."""

    demonstrations: list[Demonstration]
    bad: list[BadRow]
    counts: Counts
    template: PromptTemplate
    content_hash: str
    """SHA-256 of the file that the demonstrations are written to."""

    @property
    def prompts(self) -> frozenset["Prompt"]:
        """Its prompts, with what stands in front of them."""
        return frozenset(map(_prompt, self.demonstrations))

    def overlap(self, learned: "Sample") -> float:
        """The share of its rows whose prompt is one of another sample."""
        known = learned.prompts
        return sum(_prompt(row) in known for row in self.demonstrations) / len(self.demonstrations)


def subsample(
    config: SubsampleConfig | PromptsConfig,
    on_progress: OnProgress | None = None,
    quarantine: Path | None = None,
    learned: Sample | None = None,
) -> Sample:
    """Keep the `size` rows with the smallest sha256(seed, id); of two that tie, the one whose id is its own. Prompts
    are drawn beside the rows that SFT `learned` from, with an overlap so many of the seen and the unseen ones.

    Where too many rows are bad the draw fails, and leaves them in the file `quarantine` if one is named.
    Memory holds the sample and eight bytes of hash for every row read, plus a few megabytes.
    """
    assert config.source is not None
    source = open_source(config.source, config.seed)
    share = config.overlap if isinstance(config, PromptsConfig) else None
    known = learned.prompts if learned and share is not None else frozenset()
    unseen: list[Ranked] = []
    seen: list[Ranked] = []
    hashes = _HashSet()
    bad: list[BadRow] = []
    reasons: Counter[str] = Counter()
    read = 0
    for where, row in source.rows():
        read += 1
        if on_progress is not None and read % ROWS_PER_PROGRESS == 0:
            on_progress(read, max(read, source.expected_rows or 0))
        if isinstance(row, Demonstration):
            rank = _rank(config.seed, row.id)
            if row.characters > config.max_characters:
                row = _quarantined(row, where, f"longer than {config.max_characters} characters")
            elif isinstance(row.id, GeneratedId) or hashes.add(rank >> 192):
                _keep_smallest(seen if _prompt(row) in known else unseen, config.size, rank, row)
            else:
                row = _quarantined(row, where, "duplicate id")
        if isinstance(row, BadRow):
            reasons[row.reason] += 1
            if len(bad) < MAX_QUARANTINED:
                bad.append(row)
    if read == 0:
        raise UsageError(f"{source.name} has no rows; a source of demonstrations needs at least one")
    if on_progress is not None:
        on_progress(read, read)
    heap = unseen if share is None else _mixed(unseen, seen, config.size, share)
    if not (unseen or seen) or reasons.total() > config.max_bad_share * read:
        if quarantine is not None:
            quarantine.parent.mkdir(parents=True, exist_ok=True)
            _write_lines(quarantine, bad)
        raise DensePathError(_too_many_bad(config, source.name, read, reasons, bad, quarantine))
    if not heap:
        raise UsageError(
            f"{source.name}: {len(unseen)} rows with unseen prompts and {len(seen)} with seen ones make no sample with "
            f"an overlap of {share:g}; ask for another, or name another source"
        )
    drawn = _distinct([row for *_, row in sorted(heap, key=_order, reverse=True)])
    counts = Counts(read, config.size, len(drawn), dict(sorted(reasons.items())))
    template = config.template if isinstance(config, SubsampleConfig) else learned.template if learned else None
    return Sample(drawn, bad, counts, template or TemplateConfig(), _content_hash(drawn))


def write(sample: Sample, folder: Path) -> None:
    """The sample as files, the same bytes for the same sample."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / DEMONSTRATIONS_FILE, sample.demonstrations)
    _write_lines(folder / QUARANTINE_FILE, sample.bad)
    save_template(sample.template, folder)
    summary = {**asdict(sample.counts), "content_hash": sample.content_hash}
    (folder / SUMMARY_FILE).write_bytes(f"{json.dumps(summary, ensure_ascii=False, indent=2)}\n".encode())


def read(folder: Path) -> Sample:
    """The sample that `write` wrote."""
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_bytes())
        content_hash = summary.pop("content_hash")
        return Sample(
            demonstrations=[Demonstration.of(row) for row in _objects(folder / DEMONSTRATIONS_FILE)],
            bad=[BadRow(**row) for row in _objects(folder / QUARANTINE_FILE)],
            counts=Counts(**summary),
            template=load_template(folder),
            content_hash=content_hash,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DensePathError(f"{folder} does not hold a sample of demonstrations: {error}") from error


def _mixed(unseen: list[Ranked], seen: list[Ranked], size: int, share: float) -> list[Ranked]:
    """As many rows as there can be with this share of seen ones, the smallest hashes of each kind."""
    most = min(size, len(seen) / share if share else size, len(unseen) / (1 - share) if share < 1 else size)
    rows = int(most + 1e-6)  # 3 / (1 - 0.7) is just below 10
    of_seen = round(rows * share)
    of_unseen = rows - of_seen
    return heapq.nlargest(of_unseen, unseen, key=_order) + heapq.nlargest(of_seen, seen, key=_order)


def _prompt(row: Demonstration) -> Prompt:
    return row.system, row.history, row.prompt


def _order(ranked: Ranked) -> tuple[int, bool]:
    return ranked[:2]


class _HashSet:
    """A set of 64-bit numbers in eight bytes each, where Python's own takes about a hundred."""

    def __init__(self) -> None:
        self._buckets = [array("Q") for _ in range(2**16)]

    def add(self, value: int) -> bool:
        """True where it was not there before."""
        bucket = self._buckets[value >> 48]
        if value in bucket:
            return False
        bucket.append(value)
        return True


def _rank(seed: int, id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest())


def _keep_smallest(heap: list[Ranked], size: int, rank: int, row: Demonstration) -> None:
    """The heap holds negated ranks, so that the largest rank is the first to leave."""
    ranked = -rank, not isinstance(row.id, GeneratedId), row
    if len(heap) < size:
        heapq.heappush(heap, ranked)
    elif ranked[:2] > heap[0][:2]:
        heapq.heapreplace(heap, ranked)


def _distinct(rows: list[Demonstration]) -> list[Demonstration]:
    """Generated ids that another row has as its own are changed."""
    own = {row.id for row in rows if not isinstance(row.id, GeneratedId)}
    return [replace(row, id=unused_id(row.id, own)) if isinstance(row.id, GeneratedId) else row for row in rows]


def _quarantined(row: Demonstration, where: str, reason: str) -> BadRow:
    return BadRow.of(where, reason, json.dumps(_values(row), ensure_ascii=False))


def _too_many_bad(
    config: SubsampleConfig | PromptsConfig,
    name: str,
    read: int,
    reasons: Counter[str],
    bad: list[BadRow],
    quarantine: Path | None,
) -> str:
    by_reason = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r)))
    if reasons.total() == read:
        consequence, remedy = "so that none is left", "Mend them, or name other columns."
    else:
        consequence = f"more than max_bad_share={config.max_bad_share:g} allows"
        remedy = "Mend them, or allow more: --set subsample.max_bad_share=SHARE"
    if quarantine is None:
        first = "; ".join(f"{row.where} ({row.reason})" for row in bad[:MAX_PLACES_LISTED])
        places = f"The first of them: {first}."
    else:
        places = f"They are listed with their places in {quarantine}."
    return f"{name}: {reasons.total()} of {read} rows are bad ({by_reason}), {consequence}. {places} {remedy}"


def _write_lines(path: Path, rows: Iterable[Demonstration | BadRow]) -> None:
    with path.open("wb") as stream:
        stream.writelines(map(_json_line, rows))


def _json_line(row: Demonstration | BadRow) -> bytes:
    return f"{json.dumps(_values(row), ensure_ascii=False)}\n".encode()


def _values(row: Demonstration | BadRow) -> dict[str, Any]:
    """Without a result a row is the same bytes as before there could be one."""
    values = row.as_dict() if isinstance(row, Demonstration) else asdict(row)
    return {name: value for name, value in values.items() if name != "answer" or value}


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            yield json.loads(line)


def _content_hash(rows: Iterable[Demonstration]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_json_line(row))
    return digest.hexdigest()
