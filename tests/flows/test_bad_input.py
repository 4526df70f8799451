"""What `dpr` says of a wrong request or of bad data: a sentence, an exit status, and nothing half-written."""

import errno
import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import recipes
from tasks.artifacts.store import Store
from tasks.locks import exclusive

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")
COMMANDS = ["run", "rerun", "artifacts", "show", "verify", "export", "backbone", "score", "recipes", "config", "ui"]

Dpr = Callable[..., Any]
OpenStore = Callable[[Path], Store]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "demmo"], ["no recipe 'demmo'", "did you mean demo?"]),
        (["run", "absent.yaml"], ["cannot read absent.yaml", "No such file"]),
        (["run", TINY, "--set", "reinforce.gama=1"], ["reinforce.gama: no such field"]),
        (["run", TINY, "--set", "reinforce.learning_rat=1"], ["did you mean learning_rate?"]),
        (["run", TINY, "--set", "sft.epochs=several"], ["sft.epochs: ", "'several'"]),
        (["run", TINY, "--set", "sft.epochs"], ["expected field=value"]),
        (["run", TINY, "--set", "reward.reference=1.5"], ["reward.reference: ", "less than or equal to 1"]),
        (["run", TINY, "--set", "reward.reference=-0.1"], ["reward.reference: ", "greater than or equal to 0"]),
        (["run", TINY, "--set", "reward.reference=0.6"], ["reward.reference is 0.6", "0.34, 0.5, 1", "--set"]),
        (
            ["run", TINY, "--set", "prompts.source={type: file, path: absent.jsonl}"],
            ["absent.jsonl: No such file", "--set prompts.source.path=FILE"],
        ),
        (["run", TINY, "--set", "backbone.type=lap"], ["unknown type 'lap'"]),
        (["config", TINY, "--set", "nme=x"], ["nme: no such field; did you mean name?"]),
        (["artifacts", "--stage", "sfd"], ["sfd", "sft"]),
        (["verify"], ["--all"]),
        (["backbone", "gpt5", "out"], ["a backbone 'gpt5'", "smollm2-135m, gemma-3-270m"]),
    ],
)
def test_a_wrong_request_is_one_sentence(dpr: Dpr, arguments: list[Any], words: list[str]) -> None:
    dpr(*arguments).assert_refused(2, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "00000000"], ["no artifact '00000000'", "dpr artifacts"]),
        (["rerun", "00000000"], ["no artifact '00000000'"]),
        (["show", "my-model"], ["'my-model' is not an artifact ID"]),
        (["show", "0a"], ["too short", "at least 4"]),
        (["export", "{reward}", "out"], ["--part sft", "--part ref"]),
        (["export", "{sft}", "out", "--part", "0.6"], ["keeps the fractions 0.34, 0.5, 1, not 0.6", "dpr rerun"]),
        (["export", "{sft}", "out", "--part", "half"], ["--part half", "0.50"]),
        (["export", "{reinforce}", "out", "--part", "sft"], ["leave --part out"]),
        (["export", "{subsample}", "out"], ["stage subsample", "backbone or sft or reward or reinforce"]),
        (["rerun", "{reinforce}", "--set", "gamma=0.9"], ["gamma: no such field; did you mean algorithm.gamma?"]),
        (["rerun", "{sft}", "--set", "batch_size=true"], ["batch_size: a whole number is expected"]),
        (["rerun", "{sft}", "--set", "epochs=2", "--set", "epochs=3"], ["--set epochs is given twice"]),
        (["rerun", "{reinforce}", "--set", "iterations=1000000000000"], ["iterations: ", "less than or equal to"]),
        (["rerun", "{reinforce}", "--set", "learning_rate=0"], ["learning_rate: ", "greater than 0"]),
    ],
)
def test_a_wrong_artifact_is_one_sentence(
    dpr: Dpr, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("sft", "reward", "reinforce", "subsample")
    filled = [argument.format(**{name: made.id(name) for name in names}) for argument in arguments]
    dpr(*filled, home=made.home).assert_refused(2, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_ambiguous_prefix_lists_the_candidates(dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("DPR_HOME", str(home))
    store = Store.open()
    ids = ["abcd" + 27 * "0" + last for last in "12"]
    for run_id in ids:
        with monkeypatch.context() as patch:
            patch.setattr(uuid, "uuid4", lambda run_id=run_id: uuid.UUID(run_id))
            config = recipes.load(str(TINY)).reward
            store.begin(
                stage="reward",
                name="reward",
                version=1,
                key="k",
                config=config,
                inputs={},
                parent=None,
                description=".",
            )
    dpr("show", "abcd", home=home).assert_refused(2, "'abcd' is ambiguous", *ids)
    assert dpr("show", "abcd" + 27 * "0" + "1", "--json", home=home).json["id"] == ids[0]


def test_export_leaves_what_is_there_alone(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    dpr("export", made.id("sft"), folder, home=made.home).assert_refused(2, str(folder), "not an empty folder")
    dpr("backbone", "smollm2-135m", folder).assert_refused(2, str(folder), "not an empty folder")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    dpr("export", made.id("sft"), folder / "notes.txt" / "in", home=made.home).assert_refused(2, "notes.txt")
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "notes.txt").write_text("mine")
    assert dpr("export", made.id("sft"), tmp_path / "out", home=made.home).status == 0
    assert (tmp_path / "out.unfinished" / "notes.txt").read_text() == "mine"


def test_export_into_an_empty_folder(dpr: Dpr, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for here in (".", "../empty"):
        dpr("export", made.id("sft"), here, home=made.home).assert_refused(2, f"{here} is the folder that you are in")
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o027)
    try:
        assert dpr("export", made.id("sft"), "empty", home=made.home).status == 0
    finally:
        os.umask(mask)
    assert (empty / "model.safetensors").is_file()
    assert stat.S_IMODE(empty.stat().st_mode) == 0o750
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_what_killed_exports_left_is_removed_by_the_next_one_there(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    left, live, new, older = (tmp_path / f".dpr-export-{name}" for name in ("left", "live", "new", "older"))
    for folder in (left, live, new, older):
        (folder / "checkpoint").mkdir(parents=True)
    (left / "lock").touch()
    os.utime(older, (0, 0))
    (tmp_path / ".dpr-export-file").write_text("mine")
    with exclusive(live / "lock"):
        assert dpr("export", made.id("sft"), tmp_path / "out", home=made.home).status == 0
    assert (left.exists(), older.exists()) == (False, False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        ".dpr-export-live",
        ".dpr-export-new",
        ".dpr-export-file",
    }
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out" / "lock").exists()


def test_an_export_that_fails_leaves_nothing(
    dpr: Dpr, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        (target / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flows.export.shutil.copytree", full)
    said = dpr("export", made.id("sft"), tmp_path / "out", home=made.home).assert_refused(2, "No space left on device")
    assert str(tmp_path / "out") in said
    assert list(tmp_path.iterdir()) == []


def test_what_an_error_quotes_cannot_steer_the_terminal(dpr: Dpr) -> None:
    said = dpr("run", TINY, "--set", "name=\x1b[2Jx").assert_refused(2, "name: ")
    assert "\x1b" not in said
    assert dpr("run", "\x9b31m.yaml").assert_refused(2, "cannot read \u27e8U+009B\u27e931m.yaml")


# Wrong surroundings


def test_a_home_that_cannot_be_written(dpr: Dpr, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    dpr("run", TINY, home=home).assert_refused(
        2, "DPR_HOME", str(home), "set DPR_HOME to a folder that you may write to"
    )


@pytest.mark.usefixtures("prefect_here")
def test_a_disk_that_fills_up_leaves_nothing_that_counts(dpr: Dpr, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(sample: object, folder: Path) -> None:
        (folder / "demonstrations.jsonl").write_text('{"half": ')
        raise OSError(errno.ENOSPC, "No space left on device")

    change = ("--set", "subsample.seed=77")
    with monkeypatch.context() as patch:
        patch.setattr("dpr_core.data.subsample.write", full)
        dpr("run", TINY, *change, home=made.home).assert_refused(1, f"no space left in {made.home}", "set DPR_HOME")
    failed = dpr("artifacts", "--stage", "subsample", "--json", home=made.home).json[0]
    assert (failed["status"], failed["finished"]) == ("FAILED", False)
    assert not (made.home / "work" / failed["id"]).exists()
    planned = {
        step["name"]: step for step in dpr("run", TINY, *change, "--plan", "--json", home=made.home).json["plan"]
    }
    assert planned["subsample"]["status"] == "run"
    [entry] = dpr("rerun", failed["id"], "--json", home=made.home).json["stages"]
    assert entry["status"] == "ran"


def test_an_mlflow_server_that_is_not_there(dpr: Dpr, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    dpr("artifacts").assert_refused(1, "http://127.0.0.1:9", "check MLFLOW_TRACKING_URI, or unset it")


# Bad data


def good_row(number: int) -> bytes:
    question, response = f"Start at {number % 5}, add 1.", f"The answer is {number}."
    return json.dumps({"id": f"row {number}", "question": question, "response": response}).encode()


BAD_ROWS = {
    b'{"id": "no response", "question": "Start at 1."}': "no response",
    b'{"id": "no prompt", "question": "  ", "response": "1."}': "empty question",
    b'{"id": "latin", "question": "caf\xe9", "response": "1."}': "not UTF-8",
    json.dumps({"id": "long", "question": "x" * 2**20, "response": "1."}).encode(): "longer than 200000 characters",
    b'{"id": "row 3", "question": "Start at 3, add 1.", "response": "4."}': "duplicate id",
    b'{"id": "cut", "question": ': "not JSON",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*map(good_row, range(40)), *BAD_ROWS]) + b"\n")
    return path


def of_file(data: Path) -> tuple[str, str]:
    return "--set", f"subsample.source={{type: file, path: {data}}}"


@pytest.mark.usefixtures("prefect_here")
def test_too_many_bad_rows_fail_the_stage_and_a_higher_share_lets_them_pass(
    dpr: Dpr, made: Any, data: Path, open_store: OpenStore
) -> None:
    home = made.home
    said = dpr("run", TINY, *of_file(data), home=home).assert_refused(1, "6 of 46", str(data), "max_bad_share")
    quarantine = next(Path(word.rstrip(".,;:")) for word in said.split() if "quarantine" in word and "/" in word)
    assert len(quarantine.read_text(encoding="utf-8").splitlines()) == len(BAD_ROWS)
    failed = dpr("artifacts", "--stage", "subsample", "--json", home=home).json[0]
    assert failed["status"] == "FAILED"
    result = dpr("rerun", failed["id"][:8], "--set", "max_bad_share=0.2", "--json", home=home)
    assert result.status == 0, result.stderr
    [entry] = result.json["stages"]
    assert entry["metrics"] == {"data/rows_read": 46.0, "data/rows_kept": 24.0, "data/rows_bad": 6.0}
    payload = open_store(home).fetch(entry["id"]).path
    bad = [json.loads(line) for line in (payload / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["reason"] for row in bad] == list(BAD_ROWS.values())
    assert [row["where"].rpartition(":")[2] for row in bad] == [str(line) for line in range(41, 47)]
    assert max(len(row["raw"]) for row in bad) < 1000


@pytest.mark.usefixtures("prefect_here")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot read", "rows.jsonl", "No such file"]),
        (b"", ["has no rows"]),
        (b'{"text": "a"}\n', ["column 'question'", "columns there: text", "--set subsample.source.columns.prompt"]),
        (b'[{"question": "a", "response": "b"}]', ["JSONL", "jq"]),
    ],
)
def test_a_source_that_is_no_source(
    dpr: Dpr, made: Any, tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    if content is not None:
        data.write_bytes(content)
    dpr("run", TINY, *of_file(data), home=made.home).assert_refused(2, *words)


SPECIAL = {"pipe.yaml": "a named pipe", "/dev/zero": "a device", "folder.yaml": "a folder"}


@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("file", SPECIAL)
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", TINY, "--plan", "--set", "subsample.source={{type: file, path: {file}}}"],
        ["run", TINY, "--plan", "--set", "evaluation.benchmarks={{mine: {{type: file, path: {file}}}}}"],
        ["score", "{reward}", "{file}"],
        ["score", "{reward}", "--text", "a", "b", "--html", "{file}"],
        ["benchmark", "score", "--format", "mt-bench", "{file}"],
        ["benchmark", "score", "--format", "mt-bench", "{judged}", "--answers", "{file}"],
        ["benchmark", "judge", "--format", "mt-bench", "--answers", "{file}", "--baseline", "{rows}"],
        ["benchmark", "judge", "--format", "lima", "--answers", "{rows}", "--baseline", "{rows}", "--output", "{file}"],
        ["benchmark", "rate", "--answers", "{file}", "--questions", "{rows}"],
        ["benchmark", "rate", "--answers", "{rows}", "--questions", "{rows}", "--output", "{file}"],
        ["benchmark", "rate", "--answers", "{rows}", "--questions", "{rows}", "--set", "prompts={file}"],
    ],
)
def test_what_is_no_file_is_refused_before_it_is_opened(
    dpr: Dpr, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("folder.yaml").mkdir()
    Path("rows").write_text('{"question_id": 1, "model_id": "m", "choices": [{"turns": ["a", "b"]}]}\n')
    Path("judged").write_text('{"question_id": 1, "model": "m", "judge": ["j", "single-v1"], "turn": 1, "score": 8}\n')
    filled = [str(each).format(file=file, rows="rows", judged="judged", reward=made.id("reward")) for each in arguments]
    dpr(*filled, home=made.home).assert_refused(2, f"{file} is {SPECIAL[file]}, but a file is needed")


@pytest.mark.usefixtures("hang_limit")
def test_a_recipe_and_an_output_that_are_no_files(dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("mine.yaml").write_text("extends: pipe.yaml\n")
    for command in (["run", "pipe.yaml"], ["run", "mine.yaml"], ["config", "pipe.yaml"]):
        dpr(*command).assert_refused(2, "pipe.yaml is a named pipe, but a file is needed")
    dpr("reproduce", "table2", "--out", "pipe.yaml").assert_refused(2, "pipe.yaml is a named pipe")


@pytest.mark.usefixtures("prefect_here")
def test_a_backbone_without_an_end_token(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    folder = tmp_path / "no-end"
    assert dpr("export", made.id("backbone"), folder, home=made.home).status == 0
    for name in ("tokenizer_config.json", "config.json", "generation_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            settings = json.loads(path.read_text())
            path.write_text(json.dumps({key: value for key, value in settings.items() if not key.startswith("eos")}))
    backbone = f"backbone={{type: pretrained, name: {folder}, dtype: float32}}"
    dpr("run", TINY, "--set", backbone, home=made.home).assert_refused(2, "eos_token", "tokenizer_config.json")
    absent = f"backbone={{type: pretrained, name: {tmp_path / 'absent'}, dtype: float32}}"
    dpr("run", TINY, "--set", absent, home=made.home).assert_refused(2, str(tmp_path / "absent"))


@pytest.mark.usefixtures("prefect_here")
def test_a_reference_that_the_sft_run_did_not_keep(dpr: Dpr, made: Any) -> None:
    dpr("rerun", made.id("reward"), "--set", "reference=0.7", home=made.home).assert_refused(
        2,
        "keeps the fractions 0.34, 0.5, 1, not 0.7",
        f"dpr rerun {made.id('sft')[:8]} --set 'checkpoints=[0.7, 0.34, 0.5, 1]'",
    )
