import time
from pathlib import Path

import pytest

from dpr_core import hashing
from dpr_core.config.data import HubSourceConfig
from dpr_core.data.sources import fingerprint
from dpr_core.errors import DensePathError, UsageError
from dpr_core.hashing import CLOCK_NS, HashCache, hash_file, hash_folder, open_pinned, read_pinned, several_at_once

A_TICK = 2 * CLOCK_NS / 1e9
"""Seconds after which a file is of an earlier moment."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of data, and a secret beside it."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "train.jsonl").write_text("{}\n")
    (tmp_path / "data" / "deep" / "more.jsonl").write_text("{}\n")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.jsonl").write_text("{}\n")
    return tmp_path / "data"


def test_names_and_contents_count(folder: Path) -> None:
    before = hash_folder(folder)
    (folder / "train.jsonl").rename(folder / "other.jsonl")
    renamed = hash_folder(folder)
    (folder / "other.jsonl").write_text("[]\n")
    assert len({before, renamed, hash_folder(folder)}) == 3
    assert len(before) == len(hash_file(folder / "other.jsonl")) == 64


@pytest.mark.parametrize("target", ["../secret/key.jsonl", "../secret", "/etc/hostname", "../nowhere"])
def test_a_link_out_of_a_folder_of_data_is_refused_by_name(folder: Path, target: str) -> None:
    (folder / "deep" / "link.jsonl").symlink_to(Path("..") / target)
    with pytest.raises(UsageError, match=r"deep/link\.jsonl is a link to .*, out of the folder"):
        fingerprint(HubSourceConfig(name=str(folder)))


def test_what_is_read_is_what_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first\n" * 50_000)
    pinned = hash_file(path)
    assert read_pinned(path, pinned) == read_pinned(path, None) == path.read_bytes()
    with open_pinned(path, pinned) as stream:
        assert stream.readline() == b"first\n"

    def appended_while_it_is_read() -> None:
        with open_pinned(path, pinned) as stream:
            stream.readline()
            with path.open("ab") as writer:
                writer.write(b"second\n")

    with pytest.raises(DensePathError, match=r"file changed after its hash was noted"):
        appended_while_it_is_read()
    with pytest.raises(DensePathError, match=r"file changed after its hash was noted"):
        read_pinned(path, pinned)
    with open_pinned(path, None) as stream:
        assert stream.readlines()[-1] == b"second\n"


def test_what_a_reader_raises_is_raised_though_the_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(KeyError), open_pinned(path, "0" * 64):
        raise KeyError


def test_links_inside_a_folder_and_those_of_the_hubs_cache_are_followed(folder: Path) -> None:
    plain = hash_folder(folder)
    (folder / "train.jsonl").rename(folder / "deep" / "blob")
    (folder / "train.jsonl").symlink_to("deep/blob")
    assert hash_folder(folder) != plain
    snapshot, blobs = folder / "snapshots" / "abc", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}\n")
    (snapshot / "train.jsonl").symlink_to("../../blobs/1")
    linked = hash_folder(snapshot)
    (blobs / "1").write_text("[]\n")
    assert hash_folder(snapshot) != linked


def test_a_file_keeps_its_hash_under_another_name_and_loses_it_with_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, moved = tmp_path / "work" / "file", tmp_path / "published" / "file"
    file.parent.mkdir()
    file.write_text("first")
    time.sleep(A_TICK)
    hashed: list[Path] = []
    monkeypatch.setattr(hashing, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    cache = HashCache()
    first = cache.sha256(file)
    file.parent.rename(moved.parent)
    assert (cache.sha256(moved), hashed) == (first, [file])
    moved.write_text("other")
    time.sleep(A_TICK)
    assert (cache.sha256(moved), hashed) == (hash_file(moved), [file, moved])


@pytest.mark.parametrize(("large", "times"), [(1, 1), (1000, 2)])
def test_a_file_of_this_moment_is_hashed_again_unless_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, times: int
) -> None:
    """A change within one tick of a file system's clock would not show; a large file is worth the wait for the next."""
    file = tmp_path / "file"
    file.write_text("now")
    now = file.stat().st_ctime_ns
    waited: list[float] = []
    hashed: list[Path] = []
    monkeypatch.setattr(hashing, "LARGE", large)
    monkeypatch.setattr(hashing.time, "time_ns", lambda: now + round(1e9 * sum(waited)))
    monkeypatch.setattr(hashing.time, "sleep", waited.append)
    monkeypatch.setattr(hashing, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    cache = HashCache()
    assert cache.sha256(file) == cache.sha256(file) == hash_file(file)
    assert (len(hashed), sum(waited) > 0) == (times, large == 1)


@pytest.mark.parametrize("size", [0, 2**30])
def test_several_files_at_once_are_told_of_in_their_order(tmp_path: Path, size: int) -> None:
    files = [tmp_path / name for name in "cabde"]
    for file in files:
        file.write_text(file.name)
    assert several_at_once(hash_file, files, size) == list(map(hash_file, files))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        several_at_once(hash_file, [*files, tmp_path / "nowhere"], size)
