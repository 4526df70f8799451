import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from dpr_core.config.data import (
    ColumnsConfig,
    FileSourceConfig,
    HubSourceConfig,
    LabSourceConfig,
    PromptsConfig,
    SubsampleConfig,
    TemplateConfig,
)
from dpr_core.data import subsample as module
from dpr_core.data.rows import Demonstration
from dpr_core.data.sources import fingerprint
from dpr_core.data.subsample import Counts, read, subsample, write
from dpr_core.errors import DensePathError, UsageError

REAL = Path(__file__).parents[4] / "shared" / "bench" / "sft_data"


def config_of(path, columns=None, **fields):
    fields = {"size": 1000, "max_bad_share": 1.0, **fields}
    return SubsampleConfig(source=FileSourceConfig(path=str(path), columns=columns or ColumnsConfig()), **fields)


def rows(count):
    return [{"id": f"id-{i}", "question": f"q{i}", "response": f"r{i}"} for i in range(count)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_rows_with_the_smallest_hashes_are_kept_in_the_order_of_their_hashes(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows(200))
    sample = subsample(config_of(path, size=10, seed=3))
    expected = sorted((f"id-{i}" for i in range(200)), key=lambda id: hashlib.sha256(f"3:{id}".encode()).hexdigest())
    assert [row.id for row in sample.demonstrations] == expected[:10]
    assert sample.counts == Counts(read=200, requested=10, kept=10, bad={})


def test_the_order_of_the_source_changes_nothing_and_the_seed_does(tmp_path):
    original = rows(300)
    shuffled = random.Random(0).sample(original, 300)
    one, two = write_rows(tmp_path / "1", original), write_rows(tmp_path / "2", shuffled)
    first, second = (subsample(config_of(path, size=50)) for path in (one, two))
    assert first == second
    other = subsample(config_of(one, size=50, seed=1))
    assert {row.id for row in other.demonstrations} != {row.id for row in first.demonstrations}


def test_a_larger_sample_contains_the_smaller_one(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows(100))
    small, large = (subsample(config_of(path, size=size)).demonstrations for size in (10, 30))
    assert large[:10] == small


@pytest.mark.parametrize(("share", "seen", "unseen"), [(0.0, 0, 40), (0.25, 10, 30), (0.5, 20, 20), (1.0, 20, 0)])
def test_prompts_have_the_overlap_that_is_asked_for_and_the_smallest_hashes(tmp_path, share, seen, unseen):
    path = write_rows(tmp_path / "rows.jsonl", rows(120))
    learned = subsample(config_of(path, size=20, seed=1, template=TemplateConfig(text="{prompt}?")))
    source = FileSourceConfig(path=str(path), columns=ColumnsConfig(response=None))
    prompts = subsample(PromptsConfig(source=source, size=40, overlap=share, seed=3), learned=learned)
    known = {row.id for row in learned.demonstrations}
    every = sorted((f"id-{i}" for i in range(120)), key=lambda id: hashlib.sha256(f"3:{id}".encode()).hexdigest())
    expected = set([id for id in every if id in known][:seen] + [id for id in every if id not in known][:unseen])
    assert {row.id for row in prompts.demonstrations} == expected
    assert prompts.overlap(learned) == share
    assert {row.response for row in prompts.demonstrations} == {""}
    assert prompts.template == learned.template
    assert subsample(PromptsConfig(source=source, size=120), learned=learned).overlap(learned) == 20 / 120


def test_prompts_are_as_many_as_there_can_be_with_an_overlap(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows(10))
    learned = subsample(config_of(path, size=7))
    prompts = subsample(PromptsConfig(source=FileSourceConfig(path=str(path)), overlap=0.7), learned=learned)
    assert (prompts.counts.kept, prompts.overlap(learned)) == (10, 0.7)


def test_prompts_of_an_overlap_that_cannot_be_are_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows(10))
    learned = subsample(config_of(path))
    with pytest.raises(UsageError, match="0 rows with unseen prompts and 10 with seen ones make no sample"):
        subsample(PromptsConfig(source=FileSourceConfig(path=str(path)), overlap=0), learned=learned)


def test_fewer_rows_than_asked_for_are_all_kept(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", rows(5))
    sample = subsample(config_of(path, size=50))
    assert sample.counts == Counts(read=5, requested=50, kept=5, bad={})


def test_bad_rows_are_set_aside_with_place_and_reason_and_counted(tmp_path):
    good = rows(3)
    long = {"id": "long", "question": "q", "response": "x" * 1_000_000}
    other = {"id": "id-0", "question": "again", "response": "other"}
    path = write_rows(tmp_path / "rows.jsonl", [*good, long, other, {"id": "none", "question": "q"}, other])
    sample = subsample(config_of(path, max_characters=1000))
    assert {row.prompt for row in sample.demonstrations} == {"q0", "q1", "q2"}
    assert sample.counts.bad == {"duplicate id": 2, "longer than 1000 characters": 1, "no response": 1}
    assert sample.counts.bad_rows == 4
    assert [(bad.where, bad.reason) for bad in sample.bad] == [
        (f"{path}:4", "longer than 1000 characters"),
        (f"{path}:5", "duplicate id"),
        (f"{path}:6", "no response"),
        (f"{path}:7", "duplicate id"),
    ]
    assert len(sample.bad[0].raw) == 500
    assert json.loads(sample.bad[1].raw) == {"id": "id-0", "system": "", "prompt": "again", "response": "other"}


def test_a_bad_row_does_not_take_the_id_from_a_good_one(tmp_path):
    path = write_rows(
        tmp_path / "rows.jsonl", [{"id": "a", "question": "q"}, {"id": "a", "question": "q", "response": "r"}]
    )
    sample = subsample(config_of(path))
    assert sample.demonstrations == [Demonstration("a", "", "q", "r")]
    assert sample.counts.bad == {"no response": 1}


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_without_an_id_takes_none_from_a_row_that_has_one(tmp_path, order):
    """Rows 1 and 5 are named by their numbers, which rows 2 to 4 have as their own ids."""
    unnamed = {"question": "unnamed", "response": "r"}
    named = [{"id": id, "question": id, "response": "r"} for id in ("row-1", "row-5", "row-5-2")]
    source = [unnamed, *named[::order], unnamed, {**named[0], "question": "again"}]
    path = write_rows(tmp_path / "rows.jsonl", source)
    sample = subsample(config_of(path))
    assert {(row.id, row.prompt) for row in sample.demonstrations} == {
        ("row-1", "row-1"), ("row-5", "row-5"), ("row-5-2", "row-5-2"), ("row-1-2", "unnamed"), ("row-5-3", "unnamed"),
    }  # fmt: skip
    assert sample.counts.bad == {"duplicate id": 1}
    ids = [row.id for row in sample.demonstrations]
    for size in range(1, 5):
        smaller = subsample(config_of(path, size=size)).demonstrations
        assert [row.prompt for row in smaller] == [row.prompt for row in sample.demonstrations[:size]]
        assert len({row.id for row in smaller}) == size
    write(sample, tmp_path / "out")
    assert [row.id for row in read(tmp_path / "out").demonstrations] == ids


@pytest.mark.parametrize(("lengths", "kept"), [((4, 3, 3), 1), ((4, 3, 4), 0)])
def test_the_length_limit_counts_every_text_of_a_row(tmp_path, lengths, kept):
    system, prompt, response = ("x" * n for n in lengths)
    row = {"id": "a", "system_prompt": system, "question": prompt, "response": response}
    path = write_rows(tmp_path / "rows.jsonl", [row, *rows(1)])
    assert subsample(config_of(path, max_characters=10)).counts.kept == kept + 1


def test_too_many_bad_rows_fail_with_counts_and_a_quarantine(tmp_path):
    path = write_rows(
        tmp_path / "rows.jsonl", [*rows(17), {"question": "q"}, {"question": "q"}, {"question": "", "response": "r"}]
    )
    assert subsample(config_of(path, max_bad_share=0.15)).counts.bad_rows == 3
    quarantine = tmp_path / "made" / "bad.jsonl"
    with pytest.raises(DensePathError) as caught:
        subsample(config_of(path, max_bad_share=0.14), quarantine=quarantine)
    message = str(caught.value)
    assert "3 of 20 rows are bad (2 x no response, 1 x empty question), more than max_bad_share=0.14" in message
    assert f"listed with their places in {quarantine}. " in message
    assert [json.loads(line)["where"] for line in quarantine.read_text().splitlines()] == [
        f"{path}:{n}" for n in (18, 19, 20)
    ]


def test_a_source_without_one_good_row_fails_whatever_share_is_allowed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"PK\x03\x04\xff\n\xfe\n")
    with pytest.raises(
        DensePathError, match=r"2 of 2 rows .*\(2 x not UTF-8\), so that none is left.*rows\.jsonl:1 \(not UTF-8\)"
    ):
        subsample(config_of(path))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder"])
def test_a_source_that_changed_after_its_hash_was_noted_gives_no_sample(tmp_path, kind):
    frame = pd.DataFrame(rows(20))
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / ("train.csv" if kind == "folder" else f"rows.{kind}")

    def write_frame(frame):
        if kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        elif kind == "parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)

    config = config_of(path)
    if kind == "folder":
        config = config.model_copy(update={"source": HubSourceConfig(name=str(folder))})
    write_frame(frame)
    pinned = config.model_copy(
        update={"source": config.source.model_copy(update={"content": fingerprint(config.source)})}
    )
    assert subsample(pinned) == subsample(config)
    write_frame(pd.DataFrame(rows(21)))
    assert subsample(config).counts.read == 21
    with pytest.raises(DensePathError, match=r"changed after its hash was noted .* run the same command again"):
        subsample(pinned)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_source_is_a_wrong_request(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="has no rows"):
        subsample(config_of(path))


def test_only_the_first_bad_rows_are_kept_but_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUARANTINED", 3)
    path = write_rows(tmp_path / "rows.jsonl", [*[{"question": "q", "response": ""}] * 9, *rows(1)])
    sample = subsample(config_of(path))
    assert (len(sample.bad), sample.counts.bad) == (3, {"empty response": 9})


def test_what_is_written_is_read_back_and_has_the_same_bytes_again(tmp_path):
    hostile = {
        "id": "\u00e9",
        "system_prompt": "{prompt}",
        "question": "line\nend\u2028 \x00",
        "response": "\U0001f600",
    }
    path = write_rows(tmp_path / "rows.jsonl", [hostile, {"question": "q"}, *rows(5)])
    config = config_of(path, template=TemplateConfig(text="<{prompt}>"))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write(subsample(config), folder)
    sample = read(folders[0])
    assert sample == subsample(config)
    assert Demonstration("\u00e9", "{prompt}", "line\nend\u2028 \x00", "\U0001f600") in sample.demonstrations
    names = sorted(file.name for file in folders[0].iterdir())
    assert names == ["demonstrations.jsonl", "quarantine.jsonl", "summary.json", "template.json"]
    assert [(folders[0] / n).read_bytes() for n in names] == [(folders[1] / n).read_bytes() for n in names]
    digest = hashlib.sha256((folders[0] / "demonstrations.jsonl").read_bytes()).hexdigest()
    assert json.loads((folders[0] / "summary.json").read_text()) == {
        "read": 7,
        "requested": 1000,
        "kept": 6,
        "bad": {"no response": 1},
        "content_hash": digest,
    }


def test_a_folder_that_holds_no_sample_is_named(tmp_path):
    with pytest.raises(DensePathError, match="does not hold a sample"):
        read(tmp_path)


def test_progress_tells_the_rows_read_and_what_is_to_come():
    seen = []
    config = SubsampleConfig(source=LabSourceConfig(rows=2500), size=10)
    subsample(config, lambda done, total: seen.append((done, total)))
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_memory_holds_the_sample_and_not_the_source(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as stream:
        for i in range(20_000):
            stream.write(json.dumps({"id": str(i), "question": "q" * 500, "response": "r" * 500}) + "\n")
    tracemalloc.start()
    try:
        sample = subsample(config_of(path, size=100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sample.counts == Counts(20_000, 100, 100, {})
    assert peak < path.stat().st_size / 3


real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real data files are not here")


@real_files
def test_gsm8k(tmp_path):
    columns = ColumnsConfig(prompt="question", response="answer")
    sample = subsample(config_of(REAL / "gsm8k_train.jsonl", columns, size=500))
    assert sample.counts == Counts(read=7473, requested=500, kept=500, bad={})
    assert all("####" in row.response for row in sample.demonstrations)
    with pytest.raises(UsageError, match=r"'response' for the response; columns there: question, answer\."):
        subsample(config_of(REAL / "gsm8k_train.jsonl"))


@real_files
def test_dolly_is_a_json_list(tmp_path):
    with pytest.raises(UsageError, match=r"dolly_3k\.json holds one JSON list"):
        subsample(config_of(REAL / "dolly_3k.json"))


@real_files
def test_a_row_of_openorca_fits_the_default_columns(tmp_path):
    sample = subsample(config_of(REAL / "openorca_1row.jsonl"))
    (row,) = sample.demonstrations
    assert (row.id, row.system) == ("niv.242684", "")
    assert row.prompt.startswith("You will be given a definition of a task first")


@real_files
def test_nested_columns_are_refused_with_the_columns_there(tmp_path):
    with pytest.raises(UsageError, match="columns there: input, "):
        subsample(config_of(REAL / "orca_dpo_pairs_validation.jsonl"))


def test_a_row_keeps_the_result_that_its_source_has_and_says_nothing_where_there_is_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"id": "a", "question": "2+2?", "response": "4", "answer": 4},
        {"id": "b", "question": "?", "response": "r"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ColumnsConfig(answer="answer")
    drawn = subsample(SubsampleConfig(source=FileSourceConfig(path=str(path), columns=columns)))
    write(drawn, tmp_path / "out")
    assert {row.id: row.answer for row in read(tmp_path / "out").demonstrations} == {"a": "4", "b": ""}
    kept = [json.loads(line) for line in (tmp_path / "out" / "demonstrations.jsonl").read_text().splitlines()]
    assert {row["id"]: "answer" in row for row in kept} == {"a": True, "b": False}
    plain = SubsampleConfig(source=FileSourceConfig(path=str(path)))
    assert "answer" not in plain.identity()["source"]["columns"]
