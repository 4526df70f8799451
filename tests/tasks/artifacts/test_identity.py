import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dpr_core import hashing
from dpr_core.hashing import HashCache
from tasks.artifacts.identity import Manifest, canonical_json, check_files, library_versions, stage_key

ALPHA = "ab" * 32
INPUTS: dict[str, Any] = {"sft": {"id": "1" * 32, "digest": ALPHA}}


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"hello")
    (folder / "deep" / "a.bin").write_bytes(b"\x00\x01")
    return folder


def manifest_of(payload: Path, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "stage": "reward",
        "stage_version": 1,
        "config": {"reference": 0.5},
        "seed": 7,
        "inputs": INPUTS,
        "versions": {"torch": "2"},
    }
    return Manifest.of_directory(payload, **(values | changes))


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, 2.5, None, "é"], "a": {"y": True, "x": 1e-5}}) == (
        '{"a":{"x":1e-05,"y":true},"b":[1,2.5,null,"é"]}'
    )


def test_canonical_json_refuses_what_json_has_no_word_for() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_key_is_a_known_hash() -> None:
    text = '{"config":{"lr":0.1},"inputs":{"data":"d1"},"stage":"sft","version":2}'
    assert stage_key("sft", 2, {"lr": 0.1}, {"data": "d1"}) == hashlib.sha256(text.encode()).hexdigest()
    assert stage_key("sft", 2, {"lr": 0.1}, {"data": "d1"}) == (
        "ce68437547252f298389565a278428fe88c87630023df31bc9447bffbef003f0"
    )


@pytest.mark.parametrize(
    "other",
    [
        ("reward", 2, {"lr": 0.1}, {"data": "d1"}),
        ("sft", 3, {"lr": 0.1}, {"data": "d1"}),
        ("sft", 2, {"lr": 0.2}, {"data": "d1"}),
        ("sft", 2, {"lr": 0.1}, {"data": "d2"}),
        ("sft", 2, {"lr": 0.1}, {"other": "d1"}),
    ],
)
def test_everything_in_the_key_counts(other: tuple[str, int, dict[str, Any], dict[str, str]]) -> None:
    assert stage_key(*other) != stage_key("sft", 2, {"lr": 0.1}, {"data": "d1"})


def test_manifest_lists_files_with_size_and_hash(payload: Path) -> None:
    assert manifest_of(payload).files == [
        {
            "path": "b.txt",
            "size": 5,
            "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        },
        {
            "path": "deep/a.bin",
            "size": 2,
            "sha256": "b413f47d13ee2fe6c845b2ee141af81de858df4ec549a58b7970bb96645bc8d2",
        },
    ]


def test_manifest_reads_back(payload: Path) -> None:
    manifest = manifest_of(payload)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_manifest_knows_its_key(payload: Path) -> None:
    assert manifest_of(payload).key == stage_key("reward", 1, {"reference": 0.5}, {"sft": ALPHA})


def test_digest_does_not_depend_on_the_ids_of_inputs(payload: Path) -> None:
    same = manifest_of(payload, inputs={"sft": {"id": "2" * 32, "digest": ALPHA}})
    assert same.digest() == manifest_of(payload).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "sft"},
        {"stage_version": 2},
        {"config": {"reference": 0.25}},
        {"seed": 8},
        {"inputs": {"sft": {"id": "1" * 32, "digest": "cd" * 32}}},
        {"inputs": {}},
        {"versions": {"torch": "3"}},
    ],
)
def test_digest_depends_on_everything_else(payload: Path, change: dict[str, Any]) -> None:
    assert manifest_of(payload, **change).digest() != manifest_of(payload).digest()


def test_digest_depends_on_content(payload: Path) -> None:
    before = manifest_of(payload).digest()
    (payload / "b.txt").write_bytes(b"hallo")
    assert manifest_of(payload).digest() != before


def test_recorded_versions_name_the_code_and_the_libraries() -> None:
    assert {"dense-path", "python", "torch", "transformers"} <= set(library_versions())


def test_links_are_not_published(payload: Path) -> None:
    (payload / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="link: only plain files"):
        manifest_of(payload)


def test_a_sound_payload_has_no_problems(payload: Path) -> None:
    assert check_files(payload, manifest_of(payload)) == []


def same_size(payload: Path) -> None:
    (payload / "b.txt").write_bytes(b"hallo")


def truncated(payload: Path) -> None:
    (payload / "b.txt").write_bytes(b"hel")


def missing(payload: Path) -> None:
    (payload / "b.txt").unlink()


def extra(payload: Path) -> None:
    (payload / "deep" / "more").write_bytes(b"")


def link_to_the_same_content(payload: Path) -> None:
    (payload / "b.txt").rename(payload.parent / "kept")
    (payload / "b.txt").symlink_to(payload.parent / "kept")


def linked_folder(payload: Path) -> None:
    (payload / "deep").rename(payload.parent / "deep")
    (payload / "deep").symlink_to(payload.parent / "deep")


def link_for_the_payload(payload: Path) -> None:
    payload.rename(payload.parent / "elsewhere")
    payload.symlink_to(payload.parent / "elsewhere")


def gone(payload: Path) -> None:
    payload.rename(payload.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (same_size, ["b.txt: its content has changed (sha256 differs)"]),
        (truncated, ["b.txt: 3 bytes, expected 5"]),
        (missing, ["b.txt: missing"]),
        (extra, ["deep/more: not in the manifest"]),
        (link_to_the_same_content, ["b.txt: not a plain file"]),
        (linked_folder, ["deep: not in the manifest", "deep/a.bin: missing"]),
        (link_for_the_payload, ["output: not in the manifest", "b.txt: missing", "deep/a.bin: missing"]),
        (gone, ["b.txt: missing", "deep/a.bin: missing"]),
    ],
)
def test_every_damage_is_named(payload: Path, damage: Any, expected: list[str]) -> None:
    manifest = manifest_of(payload)
    damage(payload)
    assert check_files(payload, manifest) == expected


@pytest.mark.parametrize("name", ["../b.txt", "/etc/passwd", "deep/../b.txt", "deep//a.bin", "", ".", "a\0b", 3])
def test_names_that_leave_the_artifact_are_refused(payload: Path, name: Any) -> None:
    entry = {"path": name, "size": 5, "sha256": ALPHA}
    text = json.dumps(dataclasses.asdict(manifest_of(payload)) | {"files": [entry]})
    with pytest.raises(ValueError, match="would leave the artifact"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        '{"stage": 1, "stage_version": 1, "config": {}, "seed": 0, "inputs": {}, "files": [], "versions": {}}',
        '{"stage": "a", "stage_version": 1, "config": {}, "seed": 0, "inputs": {"x": 1}, "files": [], "versions": {}}',
        '{"stage": "a", "stage_version": 1, "config": {}, "seed": 0, "inputs": {}, "files": [{}], "versions": {}}',
        '{"stage": "a", "stage_version": 1, "config": {}, "seed": 0, "inputs": [], "files": [], "versions": {}}',
    ],
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        Manifest.from_json(text)


def test_a_file_listed_twice_is_refused(payload: Path) -> None:
    manifest = manifest_of(payload)
    twice = dataclasses.replace(manifest, files=manifest.files + manifest.files[:1])
    with pytest.raises(ValueError, match="listed twice"):
        Manifest.from_json(twice.to_json())


def test_unchanged_files_are_hashed_once(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifest_of(payload)
    time.sleep(2 * hashing.CLOCK_NS / 1e9)
    hashes = HashCache()
    hashed: list[str] = []
    hash_file = hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    assert check_files(payload, manifest, hashes) == []
    assert check_files(payload, manifest, hashes) == []
    assert sorted(hashed) == ["a.bin", "b.txt"]


def test_a_change_with_the_old_size_and_time_is_still_seen(payload: Path) -> None:
    manifest = manifest_of(payload)
    os.utime(payload / "b.txt", (1_000_000_000, 1_000_000_000))
    hashes = HashCache()
    assert check_files(payload, manifest, hashes) == []
    (payload / "b.txt").write_bytes(b"hallo")
    os.utime(payload / "b.txt", (1_000_000_000, 1_000_000_000))
    assert check_files(payload, manifest, hashes) == ["b.txt: its content has changed (sha256 differs)"]
