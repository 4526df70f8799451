import json
import random
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from datasets.exceptions import DatasetNotFoundError

from dpr_core.config.data import ColumnsConfig, HubSourceConfig
from dpr_core.data.rows import BadRow, Demonstration
from dpr_core.data.sources import open_source
from dpr_core.errors import DensePathError, UsageError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows_of(name, **fields):
    return list(open_source(HubSourceConfig(name=str(name), **fields), seed=0).rows())


def test_a_local_folder_is_read_like_a_dataset_of_the_hub(tmp_path):
    frame = pd.DataFrame(
        {
            "id": ["a", "b", None],
            "system_prompt": ["s", None, ""],
            "question": ["q1", "q2", ""],
            "response": ["r1", "r2", "r3"],
            "score": [1, 2, 3],
        }
    )
    frame.to_parquet(tmp_path / "train-00000.parquet")
    (first, one), (_, two), (third, bad) = rows_of(tmp_path)
    assert (one, two) == (Demonstration("a", "s", "q1", "r1"), Demonstration("b", "", "q2", "r2"))
    assert (first, third) == (f"{tmp_path}:train:1", f"{tmp_path}:train:3")
    assert isinstance(bad, BadRow)
    assert (bad.where, bad.reason) == (third, "empty question")
    assert json.loads(bad.raw) == {"id": None, "system_prompt": "", "question": "", "response": "r3", "score": 3}


def test_a_split_and_columns_of_a_local_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"in": split, "out": "r"}) + "\n")
    columns = ColumnsConfig(id=None, system=None, prompt="in", response="out")
    assert [row for _, row in rows_of(tmp_path, split="test", columns=columns)] == [
        Demonstration("row-1", "", "test", "r")
    ]
    with pytest.raises(UsageError, match=r"Bad split: validation.*'train', 'test'.*split"):
        rows_of(tmp_path, split="validation", columns=columns)
    with pytest.raises(UsageError, match=r"none of the first 1 rows has a column 'response'.*in, out"):
        rows_of(tmp_path, columns=ColumnsConfig(prompt="in"))


def test_a_folder_that_is_missing_or_empty_and_a_file(tmp_path):
    with pytest.raises(UsageError, match="there is no dataset folder"):
        rows_of(tmp_path / "none")
    with pytest.raises(UsageError, match=r"cannot be opened.*subsample\.source\.name"):
        rows_of(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UsageError, match=r"is a file.*type=file"):
        rows_of(path)


def test_code_inside_a_dataset_folder_is_not_run(tmp_path):
    folder = tmp_path / "trap"
    folder.mkdir()
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "train.jsonl").write_text('{"question": "q", "response": "r"}\n')
    with pytest.raises(DensePathError, match=r"cannot be read: .*scripts are no longer supported"):
        rows_of(folder)
    assert not (tmp_path / "ran").exists()


def test_a_broken_file_inside_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "q", "response": "r"}\n{"question": \n')
    with pytest.raises(DensePathError, match=r"the dataset .* cannot be opened: JSON parse error: Invalid value"):
        rows_of(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['1,q,"He said', "2,q,r", '3,q,"r"'], "stopped at row 1, which begins in line 2: .*quote left open"),
        (["1,q,r,more"], r"train\.csv:2: more values than columns"),
    ],
)
def test_csv_in_a_folder_is_read_as_strictly_as_a_file(tmp_path, rows, message):
    path = tmp_path / "train.csv"
    path.write_text("\n".join(["id,question,response", *rows]) + "\n")
    with pytest.raises(DensePathError, match=message):
        rows_of(tmp_path)
    path.write_text("question,response,question\nq,r,other\n")
    with pytest.raises(UsageError, match="several columns called 'question'"):
        rows_of(tmp_path)
    path.write_text('id,question,response\n1,q,"one, ""two"""\n')
    assert [row for _, row in rows_of(tmp_path)] == [Demonstration("1", "", "q", 'one, "two"')]


def test_without_a_network_the_message_says_so():
    with pytest.raises(DensePathError, match=r"the hub cannot be reached for the dataset nobody/nothing.*local folder"):
        rows_of("nobody/nothing")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist"), UsageError, "there is no dataset a/b on the hub"),
        (ConnectionError("timed out"), DensePathError, "the hub cannot be reached"),
        (RuntimeError("a\nb"), DensePathError, "cannot be read: RuntimeError: a b"),
    ],
)
def test_failures_of_the_hub_become_one_sentence(monkeypatch, error, kind, message):
    def fail(*arguments, **options):
        assert options == {"revision": "abc"}
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(DensePathError, match=message) as caught:
        rows_of("a/b", revision="abc")
    assert type(caught.value) is kind


def test_a_connection_that_breaks_off_says_after_which_row(monkeypatch):
    def stream():
        yield {"question": "q", "response": "r"}
        raise ConnectionError("reset by peer")

    streamed = datasets.IterableDataset.from_generator(stream)
    builder = SimpleNamespace(config=None, as_streaming_dataset=lambda split: streamed)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **o: builder)
    with pytest.raises(DensePathError, match=r"stopped after row 1: .*reset by peer"):
        rows_of("a/b")


PEAK = """
import sys
from dpr_core.config.data import HubSourceConfig
from dpr_core.data.sources import open_source

def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) // 1024

rows = open_source(HubSourceConfig(name=sys.argv[1]), seed=0).rows()
after_some = [resident() for number, _ in enumerate(rows) if number == 2000]
print(resident() - after_some[0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_a_parquet_file(tmp_path):
    """50 MB in one row group. By default everything that has been read of it is kept."""
    rng = random.Random(0)
    texts = [rng.randbytes(2500).hex() for _ in range(10_000)]
    frame = pd.DataFrame({"question": texts, "response": "r"})
    frame.to_parquet(tmp_path / "train.parquet", compression=None)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30
