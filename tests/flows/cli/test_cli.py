"""`dpr` as its users call it: what it prints, and its exit status."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import typer
import yaml

from dpr_core import __version__
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import DensePathError
from flows import embedded, recipes
from flows.cli import benchmark, console
from flows.cli.__main__ import app
from flows.cli.console import OnceCommand
from tasks.artifacts.store import Store
from tasks.running.shutdown import terminations_raise
from tests.flows.conftest import run_dpr

pytestmark = pytest.mark.integration

TINY = Path(__file__).parents[1] / "tiny.yaml"
COMMANDS = [
    "run",
    "rerun",
    "resume",
    "job",
    "sweep",
    "reproduce",
    "artifacts",
    "show",
    "diff",
    "open",
    "verify",
    "export",
    "promote",
    "push",
    "score",
    "gc",
    "costs",
    "recipes",
    "config",
    "ui",
]

Dpr = Callable[..., Any]
OpenStore = Callable[[Path], Store]


# Help


def test_help_shows_the_commands_and_where_to_start(dpr: Dpr) -> None:
    result = dpr("--help")
    assert result.status == 0
    assert "dpr run demo" in result.stdout
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_itself(dpr: Dpr, command: str) -> None:
    result = dpr(command, "--help")
    assert result.status == 0
    assert "Usage: " in result.stdout
    assert f"dpr {command}" in result.stdout


def test_the_version_and_help_have_their_usual_names(dpr: Dpr) -> None:
    assert dpr("--version").stdout == f"dpr {__version__}\n"
    assert dpr("benchmark", "score", "-h").stdout == dpr("benchmark", "score", "--help").stdout != ""


def test_no_arguments_show_the_help(dpr: Dpr) -> None:
    result = dpr()
    assert "Usage: " in result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["sweep", "--help"], ["recipes"]])
def test_help_and_recipes_import_nothing_heavy(
    arguments: list[str], process_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    code = (
        "import sys; from flows.cli.__main__ import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'prefect', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=process_environment(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_only_looks_or_reuses_loads_neither_torch_nor_prefect(
    made: Any, process_environment: Callable[..., dict[str, str]]
) -> None:
    commands = [["artifacts"], ["show", made.id("report")], ["show", made.result.json["run_id"]], ["run", str(TINY)]]
    code = (
        "import sys; from flows.cli.__main__ import app\n"
        f"for arguments in {commands!r}:\n"
        "    try: app(arguments)\n"
        "    except SystemExit as end: assert not end.code, arguments\n"
        "    heavy = {'torch', 'transformers', 'accelerate', 'datasets', 'prefect'} & set(sys.modules)\n"
        "    assert not heavy, (arguments, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=process_environment(made.home), cwd=made.home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Nothing had changed: every stage was reused." in done.stdout


# Running


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own_has_a_server_of_its_own(made: Any) -> None:
    done = run_dpr("run", TINY, "--set", "judge.bootstrap_samples=150", "--json", home=made.home)
    assert done.status == 0, done.stderr
    ran = [entry["stage"] for entry in done.json["stages"] if entry["status"] == "ran"]
    assert ran == ["judge", "judge", "report"]
    assert (made.home / "prefect" / "prefect.db").is_file()


def test_run_prints_one_document(made: Any) -> None:
    document = made.result.json
    assert set(document) == {"run_id", "stages", "results"}
    assert [entry["stage"] for entry in document["stages"]] == [
        "backbone",
        "subsample",
        "sft",
        "reward",
        "diagnose",
        "reinforce",
        "answer",
        "answer",
        "judge",
        "answer",
        "judge",
        "report",
    ]
    for entry in document["stages"]:
        assert {"stage", "id", "status", "seconds"} <= set(entry)
        assert entry["status"] == "ran"
        assert entry["seconds"] >= 0
    assert [row["policy"] for row in document["results"]["rows"]] == ["SFT", "DPR", "extrapolated"]
    assert "reinforce: runs, because: never ran" in made.result.stderr


def test_a_second_run_reuses_everything_and_says_so(dpr: Dpr, made: Any) -> None:
    again = dpr("run", TINY, "--json", home=made.home).json
    before = made.result.json
    assert again["run_id"] != before["run_id"]
    assert [entry["id"] for entry in again["stages"]] == [entry["id"] for entry in before["stages"]]
    assert {entry["status"] for entry in again["stages"]} == {"reused"}
    assert again["results"] == before["results"]
    shown = dpr("run", TINY, home=made.home).stdout
    assert "Nothing had changed: every stage was reused." in shown
    assert made.id("reinforce") in shown
    assert "the reward: caution" in shown
    assert f"dpr rerun {made.id('reinforce')[:8]} --set algorithm.gamma=0.95 --downstream" in shown
    assert "dpr ui" in shown


def test_the_plan_of_a_changed_run_names_the_field(dpr: Dpr, made: Any, open_store: OpenStore) -> None:
    store = open_store(made.home)
    before = len(store.records())
    planned = dpr("run", TINY, "--set", "reward.formula=with_value", "--plan", "--json", home=made.home).json["plan"]
    assert {"stage", "name", "status", "id", "why"} == set(planned[0])
    by_name = {step["name"]: step for step in planned}
    assert [name for name, step in by_name.items() if step["status"] == "reuse"] == [
        "backbone",
        "subsample",
        "sft",
        "answer SFT on lab",
    ]
    assert by_name["reward"]["why"] == 'formula: "baseline_relative" -> "with_value"'
    assert by_name["sft"]["id"] == made.id("sft")
    assert len(store.records()) == before
    shown = dpr("run", TINY, "--set", "reward.formula=with_value", "--plan", home=made.home).stdout
    assert "8 of 12 stages would run; nothing was run." in shown


def test_a_failing_process_leaves_stdout_empty(dpr_process: Dpr, tmp_path: Path) -> None:
    source = "subsample.source={type: file, path: absent.jsonl}"
    result = dpr_process("run", TINY, "--set", source, "--json", home=tmp_path / "home")
    result.assert_refused(2, "absent.jsonl", "No such file or directory", "--set subsample.source.path=FILE")


def test_debug_shows_where_an_error_arose_and_ends_as_without_it(dpr: Dpr, made: Any) -> None:
    dpr("show", "zzzz", home=made.home).assert_refused(2, "'zzzz' is not an artifact ID")
    result = dpr("show", "zzzz", "--debug", home=made.home)
    assert result.status == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "error: 'zzzz' is not an artifact ID" in result.stderr


# Rerunning


def test_rerun_plans_by_the_stored_inputs(dpr: Dpr, made: Any) -> None:
    reinforce = made.id("reinforce")
    change = ("--set", "algorithm.gamma=0.9", "--plan", "--json")
    [alone] = dpr("rerun", reinforce[:8], *change, home=made.home).json["plan"]
    assert (alone["stage"], alone["status"], alone["why"]) == ("reinforce", "run", "algorithm.gamma: 1.0 -> 0.9")
    planned = dpr("rerun", f"runs:/{reinforce}/output", "--downstream", *change, home=made.home).json["plan"]
    # Other tests may have built more on it, such as a rating.
    assert {step["stage"] for step in planned} >= {"reinforce", "answer", "judge", "report"}
    assert {step["status"] for step in planned} == {"run"}


def test_rerun_of_what_has_not_changed_reuses_it(dpr: Dpr, made: Any) -> None:
    document = dpr("rerun", made.id("subsample")[:8], "--json", home=made.home).json
    assert [(entry["id"], entry["status"]) for entry in document["stages"]] == [(made.id("subsample"), "reused")]


@pytest.mark.usefixtures("prefect_here")
def test_rerun_with_a_change_and_downstream(dpr: Dpr, made: Any, open_store: OpenStore) -> None:
    answers = made.id("answer DPR on lab")
    result = dpr("rerun", answers[:8], "--set", "seed=21", "--downstream", "--json", home=made.home)
    assert result.status == 0, result.stderr
    stages, store = result.json["stages"], open_store(made.home)
    assert {entry["status"] for entry in stages} == {"ran"}
    assert set(result.json["results"]) >= {"title", "rows"}
    parent = store._client.get_run(result.json["run_id"])
    assert parent.info.run_name == "answer DPR on lab seed=21"
    assert parent.data.tags["dpr.changed"] == "seed=21"
    made_before = store._client.get_run(made.result.json["run_id"]).data.params
    assert parent.data.params["answer.seed"] == "21"
    shared = {name: parent.data.params[name] for name in ("sft.learning_rate", "reinforce.algorithm.kl_weight")}
    assert shared.items() <= made_before.items()
    under = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' AND tags.`dpr.policy` LIKE '%'"
    rows = {run.info.run_name for run in store._client.search_runs([store._experiment], under)}
    assert rows == {"SFT", "DPR seed=21", "extrapolated"}

    def made_of(stage: str, inputs: dict[str, str]) -> list[str]:
        """The artifacts of a stage with these inputs: other tests may have built more on these answers."""
        ids = [str(entry["id"]) for entry in stages if entry["stage"] == stage]
        return [each for each in ids if store.record(each).inputs == inputs]

    assert stages[0]["name"] == "answer DPR on lab"
    judged = made_of("judge", {"candidate": stages[0]["id"], "baseline": made.id("answer SFT on lab")})
    extrapolated = made.id("judge extrapolated on lab")
    reported = [made_of("report", {"DPR on lab": each, "extrapolated on lab": extrapolated}) for each in judged]
    assert sum(map(len, reported)) == 1


@pytest.mark.usefixtures("prefect_here")
def test_force_makes_the_same_artifact_again_under_another_id(dpr: Dpr, made: Any, open_store: OpenStore) -> None:
    document = dpr("rerun", made.id("subsample")[:8], "--force", "--json", home=made.home).json
    [entry] = document["stages"]
    assert (entry["status"], entry["id"] == made.id("subsample")) == ("ran", False)
    store = open_store(made.home)
    assert store.record(entry["id"]).digest == store.record(made.id("subsample")).digest
    [later] = dpr("rerun", made.id("subsample"), "--json", home=made.home).json["stages"]
    assert later["id"] == made.id("subsample")


# Looking


def test_artifacts_lists_those_of_a_stage(dpr: Dpr, made: Any) -> None:
    listed = dpr("artifacts", "--stage", "sft", "--json", home=made.home).json
    assert {entry["stage"] for entry in listed} == {"sft"}
    ours = next(entry for entry in listed if entry["id"] == made.id("sft"))
    assert ours["inputs"] == {"data": made.id("subsample"), "backbone": made.id("backbone")}
    shown = dpr("artifacts", home=made.home).stdout
    for entry in made.result.json["stages"]:
        assert entry["id"] in shown


def test_artifacts_are_chosen_and_tell_their_results(dpr: Dpr, made: Any) -> None:
    def ids(*options: object) -> list[str]:
        return [entry["id"] for entry in dpr("artifacts", *options, "--json", home=made.home).json]

    first = {entry["id"] for entry in made.result.json["stages"]}
    assert first <= set(ids("--pipeline", made.result.json["run_id"])) <= set(ids("--recipe", "tiny")) <= set(ids())
    assert ids("--since", "2026-01-31T18:00", "--status", "finished", "--limit", 2) == ids("--status", "finished")[:2]
    assert ids("--since", "2126-01-31") == ids("--status", "killed") == []
    shown = dpr("artifacts", "--stage", "report", home=made.home).stdout
    assert "win rate: " in shown
    assert "nothing that was made" in dpr("artifacts", "--status", "killed", home=made.home).stdout.lower()
    dpr("artifacts", "--recipe", "tiney", home=made.home).assert_refused(2, "did you mean tiny?")
    dpr("artifacts", "--since", "lately", home=made.home).assert_refused(2, "'lately' is no time", "7d")


def test_a_difference_is_of_settings_inputs_and_results(dpr: Dpr, made: Any) -> None:
    sft, trained = made.id("answer SFT on lab"), made.id("answer DPR on lab")
    found = dpr("diff", sft[:8], trained[:8], "--json", home=made.home).json
    assert [each["id"] for each in found["artifacts"]] == [sft, trained]
    assert (found["settings"], found["inputs"]) == ({}, {"policy": [made.id("sft"), made.id("reinforce")]})
    assert found["results"]["answer/kl_to_sft"][0] == 0
    words = dpr("diff", sft, trained, home=made.home).stdout
    assert "answer/kl_to_sft" in words
    assert "change" in words
    assert "do not differ" in dpr("diff", made.result.json["run_id"], made.result.json["run_id"], home=made.home).stdout
    dpr("diff", sft, made.id("sft"), home=made.home).assert_refused(2, "give two of one stage")
    dpr("diff", sft, made.result.json["run_id"], home=made.home).assert_refused(2, "give two of a kind")


def test_pages_are_opened_where_there_is_a_browser(dpr: Dpr, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    monkeypatch.setenv("DISPLAY", ":9")
    for reference, name in ((made.id("reward"), "credit.html"), (made.result.json["run_id"], "report.html")):
        page = Path(dpr("open", reference, home=made.home).stdout.strip())
        assert (page.name, page.as_uri(), page.is_file()) == (name, opened[-1], True)
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(variable, raising=False)
    assert not dpr("open", made.id("report"), "--json", home=made.home).json["opened"]
    assert len(opened) == 2
    dpr("open", made.id("sft"), home=made.home).assert_refused(2, "has no page", "report and reward")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dpr dif", "diff"),
        ("dpr run tin", None),
        ("dpr plan llama-3.1-8b-l", "llama-3.1-8b-lora"),
        ("dpr artifacts --stage rein", "reinforce"),
        ("dpr run demo --set reinforce.algorithm.gam", "reinforce.algorithm.gamma="),
        ("dpr rerun {reinforce} --set algorithm.gam", "algorithm.gamma="),
        ("dpr show {reinforce}", "{reinforce}"),
        ("dpr score {reinforce}", None),
        ("dpr show zz", None),
        ("dpr promote {reinforce} completed", "completed@champion"),
    ],
)
def test_completion_offers(
    made: Any,
    dpr: Dpr,
    words: str,
    offered: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = {"reinforce": made.id("reinforce")[:8]}
    if "promote" in words:
        dpr("promote", short["reinforce"], "completed@champion", home=made.home)
    monkeypatch.setenv("DPR_HOME", str(made.home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COMP_WORDS", words.format(**short))
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_DPR_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        app(prog_name="dpr")
    assert capsys.readouterr().out.split() == ([offered.format(**short)] if offered else [])


def test_an_empty_store_says_how_to_start(dpr: Dpr) -> None:
    assert "dpr run demo" in dpr("artifacts").stdout
    assert dpr("artifacts", "--json").json == []
    assert dpr("verify", "--all", "--json").json == []


def test_show_gives_the_verdict_of_a_diagnosis(dpr: Dpr, made: Any) -> None:
    diagnosis = dpr("show", made.id("diagnose"), "--json", home=made.home).json["diagnosis"]
    gravest = [reason["text"] for reason in diagnosis["reasons"] if reason["level"] == diagnosis["verdict"]]
    assert (diagnosis["verdict"], len(gravest) > 0) == ("caution", True)
    text = " ".join(dpr("show", made.id("diagnose"), home=made.home).stdout.replace("│", " ").split())
    for reason in gravest:
        assert reason.split()[0] in text
    assert f"the reward: {diagnosis['verdict']}" in text
    assert "diagnosis" not in dpr("show", made.id("reward"), "--json", home=made.home).json


def test_show_tells_all_about_an_artifact(dpr: Dpr, made: Any) -> None:
    shown = dpr("show", made.id("reinforce")[:8], "--json", home=made.home).json
    keys = {"id", "stage", "status", "key", "digest", "inputs", "config", "metrics", "files"}
    assert keys <= set(shown)
    assert (shown["id"], shown["stage"], shown["status"]) == (made.id("reinforce"), "reinforce", "FINISHED")
    assert shown["inputs"] == {"reward": made.id("reward")}
    assert shown["config"]["algorithm"]["kl_weight"] == 0.1
    assert 0 < shown["metrics"]["rollout/length"] <= 12
    assert "policy/model.safetensors" in [entry["path"] for entry in shown["files"]]
    assert made.id("answer DPR on lab") in shown["used_by"]
    text = dpr("show", made.id("reinforce"), home=made.home).stdout
    assert (shown["url"].endswith(shown["id"]), Path(shown["folder"]).is_dir()) == (True, True)
    assert ("batch_size" in text, "max_response_tokens" in text) == (True, True)
    assert "whiten" not in text
    assert "whiten" in dpr("show", made.id("reinforce"), "--all", home=made.home).stdout
    for part in ("made from", f"reward: {made.id('reward')[:8]}", f"data: {made.id('subsample')[:8]}", "used by"):
        assert part in text


@pytest.mark.parametrize(
    ("view", "command"),
    [
        ("run_view.run_summary", ["run", TINY]),
        ("run_view.plan_table", ["run", TINY, "--plan"]),
        ("inspect_view.record_table", ["artifacts"]),
        ("inspect_view.artifact_view", ["show", "{sft}"]),
        ("inspect_view.verification_table", ["verify", "{sft}"]),
    ],
)
def test_a_document_costs_no_view(
    dpr: Dpr, made: Any, monkeypatch: pytest.MonkeyPatch, view: str, command: list[Any]
) -> None:
    def refuse(*_: object, **named: object) -> None:
        raise AssertionError(view)

    monkeypatch.setattr(f"flows.cli.{view}", refuse)
    arguments = [str(argument).format(sft=made.id("sft")) for argument in command]
    result = dpr(*arguments, "--json", home=made.home)
    assert (result.status, json.loads(result.stdout) != []) == (0, True), result.stderr
    assert view in dpr(*arguments, home=made.home).assert_refused(1)


@contextmanager
def flipped_byte(path: Path) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    try:
        yield
    finally:
        path.write_bytes(content)


def test_damage_is_found_told_and_never_built_on(dpr: Dpr, made: Any, open_store: OpenStore) -> None:
    sft = made.id("sft")
    assert dpr("verify", "--all", home=made.home).status == 0
    file = open_store(made.home).fetch(sft).path / "checkpoints" / "0.5" / "model.safetensors"
    with flipped_byte(file):
        result = dpr("verify", "--all", "--json", home=made.home)
        assert (result.status, result.stderr) == (1, "")
        assert [entry["id"] for entry in result.json if not entry["sound"]] == [sft]
        told = dpr("verify", sft, home=made.home)
        assert (told.status, told.stderr) == (1, "")
        assert "1 checked, 1 damaged." in told.stdout
        assert dpr("verify", made.id("reinforce"), home=made.home).status == 0
        for command in (
            ("score", made.id("reward"), "--text", "a", "b"),
            ("export", sft, made.home.parent / "not-made"),
        ):
            dpr(*command, home=made.home).assert_refused(1, sft[:8], "checkpoints/0.5/model.safetensors", "dpr rerun")
        assert not (made.home.parent / "not-made").exists()
        planned = {s["name"]: s for s in dpr("run", TINY, "--plan", "--json", home=made.home).json["plan"]}
        assert planned["sft"]["status"] == "run"
        assert "is damaged" in planned["sft"]["why"]
    assert dpr("verify", sft, home=made.home).status == 0


def test_an_edited_result_is_found_and_never_told(dpr: Dpr, made: Any, open_store: OpenStore) -> None:
    report = made.id("report")
    client = open_store(made.home)._client
    true = client.get_run(report).data.tags["dpr.results"]
    edited = {name: 99.0 if name.endswith("win_rate") else value for name, value in json.loads(true).items()}
    assert edited != json.loads(true)
    client.set_tag(report, "dpr.results", json.dumps(edited))
    try:
        result = dpr("verify", report, home=made.home)
        assert (result.status, "does not agree with the tag dpr.results" in result.stdout) == (1, True)
        dpr("show", report, home=made.home).assert_refused(1, "dpr.results")
        planned = {s["name"]: s for s in dpr("run", TINY, "--plan", "--json", home=made.home).json["plan"]}
        assert (planned["report"]["status"], "is damaged" in planned["report"]["why"]) == ("run", True)
    finally:
        client.set_tag(report, "dpr.results", true)
    assert dpr("verify", report, home=made.home).status == 0


def test_the_page_to_open_is_as_it_was_published(dpr: Dpr, made: Any, open_store: OpenStore) -> None:
    payload = open_store(made.home).fetch(made.id("report")).path
    page = payload.parent / "report" / "report.html"
    assert str(page) in dpr("run", TINY, home=made.home).stdout
    with flipped_byte(page):
        result = dpr("verify", made.id("report"), home=made.home)
        assert (result.status, "report/report.html: its content has changed" in result.stdout) == (1, True)
        told = dpr("run", TINY, home=made.home).stdout
        assert (str(page) in told, str(payload / "report.html") in told) == (False, True)
    assert dpr("verify", made.id("report"), home=made.home).status == 0


@pytest.mark.parametrize(
    ("name", "part", "checkpoint"),
    [
        ("sft", "0.50", "checkpoints/0.5"),
        ("reward", "sft", "checkpoints/1.0"),
        ("reward", "ref", "checkpoints/0.5"),
        ("reinforce", None, "policy"),
    ],
)
def test_export_writes_a_plain_checkpoint(
    dpr: Dpr, made: Any, open_store: OpenStore, tmp_path: Path, name: str, part: str | None, checkpoint: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    option = ("--part", part) if part else ()
    written = dpr("export", made.id(name)[:8], tmp_path / "out", *option, "--json", home=made.home).json
    assert (written["id"], written["folder"]) == (made.id(name), str(tmp_path / "out"))
    source = made.id("sft") if name == "reward" else made.id(name)
    weights = open_store(made.home).fetch(source).path / checkpoint / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("Start at 1, add 2.", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]


def test_promote_points_an_alias_at_a_policy_and_copies_nothing(
    dpr: Dpr, made: Any, open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    sft, policy = made.id("sft"), made.id("reinforce")
    first = dpr("promote", policy[:8], "the lab@champion", "--json", home=made.home).json
    assert (first["version"], first["uri"], first["before"]) == (1, "models:/the lab@champion", None)
    assert dpr("promote", policy[:8], "the lab@champion", "--json", home=made.home).json == first
    moved = dpr("promote", sft[:8], "the lab@champion", "--part", "0.5", home=made.home).stdout
    assert moved == f"models:/the lab@champion -> version 2, {sft[:8]} (before: version 1, {policy[:8]})\n"
    dpr("promote", policy[:8], "the lab@runner-up", home=made.home)
    assert "the lab version 1 @runner-up" in dpr("show", policy, "--json", home=made.home).json["registered"]
    assert "the lab version 2 @champion" in dpr("show", sft, home=made.home).stdout
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made.home / 'mlflow.db'}")
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    loaded = Path(mlflow.artifacts.download_artifacts("models:/the lab@champion"))
    kept = open_store(made.home).fetch(sft).path / "checkpoints" / "0.5"
    assert (loaded / "model.safetensors").read_bytes() == (kept / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "target", "option", "words"),
    [
        ("reward", "lab@champion", (), ("stage reward", "sft or reinforce")),
        ("reinforce", "champion", (), ("a name and an alias", "word-problems@champion")),
        ("reinforce", "a/b@champion", (), ("a name and an alias",)),
        ("reinforce", "lab@v1", (), ("neither latest nor v1",)),
        ("reinforce", "lab@champion", ("--part", "0.1"), ("keeps no policy",)),
    ],
)
def test_promote_refuses_what_is_no_policy_or_no_name(
    dpr: Dpr, made: Any, name: str, target: str, option: tuple[str, ...], words: tuple[str, ...]
) -> None:
    dpr("promote", made.id(name), target, *option, home=made.home).assert_refused(2, *words)


def test_a_registry_without_rights_is_a_sentence(dpr: Dpr, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr("mlflow.MlflowClient.create_registered_model", refuse)
    refused = dpr("promote", made.id("reinforce"), "others@champion", home=made.home)
    refused.assert_refused(1, "could not be promoted to others@champion", "Permission denied", "needs the right")


# Scoring


def test_score_gives_every_token_its_reward(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    page = tmp_path / "credit.html"
    text = ("--text", "Start at 1, add 2.", "1 <b>+</b> 2 = 3.")
    result = dpr("score", made.id("reward")[:8], *text, "--html", page, "--json", home=made.home)
    assert result.status == 0, result.stderr
    scored = result.json
    assert set(scored) == {"input_ids", "tokens"}
    for position, token in enumerate(scored["tokens"]):
        assert set(token) == {"position", "token_id", "token", "log_pi_sft", "log_pi_ref", "reward", "return"}
        assert token["position"] == position
        assert token["reward"] == pytest.approx(token["log_pi_sft"] - token["log_pi_ref"], abs=1e-6)
        rest = sum(later["reward"] for later in scored["tokens"][position:])
        assert token["return"] == pytest.approx(rest, abs=1e-5)
    assert [t["token_id"] for t in scored["tokens"]] == scored["input_ids"][-len(scored["tokens"]) :]
    html = page.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "<b>+</b>" not in html
    for outside in ("http://", "https://", "src="):
        assert outside not in html


def test_score_of_several_texts_is_one_document_and_one_page(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    page = tmp_path / "credit.html"
    texts = [("Start at 1, add 2.", "-3 or three"), ("Start at 2, add 2.", "1 <i>+</i> 2 = 4.")]
    options = [part for text in texts for part in ("--text", *text)]
    result = dpr("score", made.id("reward"), *options, "--html", page, "--json", home=made.home)
    assert result.status == 0, result.stderr
    alone = [dpr("score", made.id("reward"), "--text", *text, "--json", home=made.home).json for text in texts]
    assert [scored["input_ids"] for scored in result.json] == [scored["input_ids"] for scored in alone]
    html = page.read_text(encoding="utf-8")
    assert html.count("Start at 1, add 2.") == html.count("Start at 2, add 2.") == 1
    shown = dpr("score", made.id("reward"), f"--text={texts[0][0]}", texts[0][1], *options[3:], home=made.home).stdout
    assert shown.count("return ") == 2
    lines = [line.split() for line in shown.splitlines() if line.endswith('"')]
    assert len(lines) == sum(len(scored["tokens"]) for scored in alone)
    assert max(len(words[1]) for words in lines if set(words[1]) <= {"+", "-"}) == 10


def test_every_command_refuses_an_option_that_is_given_twice() -> None:
    commands = [*app.registered_commands, *benchmark.app.registered_commands]
    assert len(commands) > 20
    assert [each for each in commands if not issubclass(each.cls or object, OnceCommand)] == []


def test_score_of_a_file_is_a_line_a_row(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "response": "b\xe2\x80\xa8b"}\n\n'
        b'{"system": "s", "prompt": "c", "response": "d e"}\n'
    )
    result = dpr("score", made.id("reward"), rows, "--json", home=made.home)
    lines = [json.loads(line) for line in result.stdout.rstrip("\n").split("\n")]
    assert [set(line) for line in lines] == [{"input_ids", "tokens"}] * 2
    shown = dpr("score", made.id("reward"), rows, home=made.home).stdout
    assert shown.count("return ") == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["has no rows"]),
        (b"nonsense\n", [":1: not JSON"]),
        (b'{"prompt": "a", "response": "b"}\n\n{"prompt": "a"}\n', [":3: no response", "prompt, response and maybe"]),
        (b'{"prompt": " ", "response": "b"}\n', [":1: empty prompt"]),
        (b'{"prompt": "a", "response": 7}\n', [":1: response is not text"]),
        (b'["a", "b"]\n', [":1: not a JSON object"]),
        (b'[{"prompt": "a", "response": "b"}]\n', ["one JSON list", "jq"]),
        (b'{"prompt": "caf\xe9", "response": "b"}\n', [":1: not UTF-8"]),
        (b'{"prompt": "a", "response": "half \\ud800"}\n', [":1: response is not valid Unicode"]),
    ],
)
def test_score_refuses_broken_rows_by_their_line(
    dpr: Dpr, made: Any, tmp_path: Path, content: bytes, words: list[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    dpr("score", made.id("reward"), rows, home=made.home).assert_refused(2, "rows.jsonl", *words)


def test_score_wants_either_a_text_or_a_file_that_is_there(dpr: Dpr, made: Any, tmp_path: Path) -> None:
    reward = made.id("reward")
    dpr("score", reward, home=made.home).assert_refused(2, "--text PROMPT RESPONSE")
    dpr("score", reward, "--text", "a", "half \ud800", home=made.home).assert_refused(2, "--text", "not valid Unicode")
    dpr("score", reward, tmp_path / "absent.jsonl", home=made.home).assert_refused(2, "absent.jsonl", "No such file")
    dpr("score", made.id("sft"), "--text", "a", "b", home=made.home).assert_refused(2, "stage sft", "reward")
    page = tmp_path / "absent" / "page.html"
    dpr("score", reward, "--text", "a", "b", "--html", page, home=made.home).assert_refused(2, str(page))


# Recipes


def test_recipes_lists_them(dpr: Dpr) -> None:
    listed = dpr("recipes", "--json").json
    assert [entry["name"] for entry in listed] == recipes.names()
    for entry in listed:
        assert entry["description"] in dpr("recipes").stdout


def test_config_prints_every_setting_with_its_meaning_and_reads_it_back(dpr: Dpr, tmp_path: Path) -> None:
    printed = dpr("config", "demo").stdout
    assert "# Fraction alpha of the SFT run whose checkpoint is the reference." in printed
    assert yaml.safe_load(printed) == dpr("config", "demo", "--json").json
    copy = tmp_path / "mine.yaml"
    copy.write_text(printed)
    assert recipes.load(str(copy)) == recipes.load("demo")
    assert {step["why"] for step in dpr("run", copy, "--plan", "--json").json["plan"]} == {"never ran"}
    assert PipelineConfig.model_validate(dpr("config", TINY, "--set", "seed=2", "--json").json).sft.seed == 2


def test_ui_serves_this_store(dpr: Dpr, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execvpe", lambda program, *rest: started.append(rest))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert dpr("ui", "--port", port, home=made.home).status == 0
    [(command, environment)] = started
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{made.home / 'mlflow.db'}"
    assert command[command.index("--port") + 1] == str(port)
    found = [(socket.AF_INET, "10.1.2.3"), (socket.AF_INET6, "fe80::1%eth0"), (socket.AF_PACKET, "00:00:5e:00:53:01")]
    interfaces = {"eth0": [SimpleNamespace(family=family, address=address) for family, address in found]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    told = dpr("ui", "--port", port, "--host", "0.0.0.0", home=made.home)
    command, environment = started[1]
    assert command[command.index("--host") + 1] == "0.0.0.0"
    names = [socket.gethostname(), "10.1.2.3", "[fe80::1]", "localhost", "127.0.0.1"]
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == ",".join(f"{name}:{port}" for name in names)
    assert "without a password" in told.stderr
    dpr("ui", "--host", "192.0.2.1", home=made.home).assert_refused(2, "192.0.2.1 is not an address of this machine")


# Embedded Prefect


def test_prefect_is_set_up_in_the_home_and_kept_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    embedded.prepare(tmp_path)
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert environment["PREFECT_LOGGING_LEVEL"] == "CRITICAL"
    assert environment["DO_NOT_TRACK"] == "true"


def test_a_disk_too_full_for_prefect_is_told_before_it_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(DensePathError, match="no space left"):
        embedded.prepare(tmp_path)


def test_a_taken_port_is_told(dpr: Dpr, made: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        dpr("ui", "--port", port, home=made.home).assert_refused(2, f"port {port} cannot be used")


def test_a_prefect_server_of_the_users_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {"PREFECT_API_URL": "http://prefect:4200/api"}
    monkeypatch.setattr(os, "environ", environment)
    embedded.prepare(tmp_path, debug=True)
    assert environment["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert "PREFECT_HOME" not in environment
    assert environment["PREFECT_LOGGING_LEVEL"] == "INFO"


def test_the_theory_as_a_document_and_as_a_table(dpr: Dpr) -> None:
    identities = dpr("reproduce", "theory", "--instances", 2, "--json").json["identities"]
    assert {frozenset(row) for row in identities} == {frozenset(("name", "residual", "tolerance", "holds", "note"))}
    by_name = {row["name"]: row for row in identities}
    assert any("Prop. 1" in name and row["holds"] for name, row in by_name.items())
    assert any("Theorem 2" in name and not row["holds"] for name, row in by_name.items())
    assert dpr("reproduce", "theory", "--instances", 1).stdout.startswith("| claim | holds |")


# Signals

ARGUMENTS = {
    "run": (),
    "plan": ("demo",),
    "rerun": ("abcd",),
    "resume": (),
    "job": ("demo", "sft"),
    "sweep": ("demo",),
    "reproduce": ("table1",),
    "artifacts": (),
    "show": ("abcd",),
    "diff": ("abcd", "abce"),
    "open": ("abcd",),
    "verify": (),
    "export": ("abcd", "folder"),
    "promote": ("abcd", "lab@champion"),
    "push": ("abcd", "me/model"),
    "backbone": ("smollm2-135m", "folder"),
    "import": ("final", "reference"),
    "score": ("abcd",),
    "gc": (),
    "costs": (),
    "recipes": (),
    "config": ("demo",),
    "ui": (),
    "benchmark list": (),
    "benchmark parity": ("first", "second"),
    "benchmark score": ("file", "--format", "mt-bench"),
    "benchmark judge": ("--answers", "file", "--baseline", "file", "--format", "mt-bench"),
    "benchmark rate": ("--answers", "file", "--questions", "file"),
    "benchmark export": ("abcd", "file", "--format", "mt-bench"),
}
"""Every command, and what it cannot do without."""

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def heeded() -> Iterator[None]:
    """A shell ignores SIGINT for what it runs in the background, and nohup SIGHUP."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_command_has_its_arguments_here() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    inner = commands["benchmark"].commands
    assert {*commands, *(f"benchmark {name}" for name in inner)} == {*ARGUMENTS, "benchmark"}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_signals_end_every_command_alike(command: str, dpr: Dpr, heeded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in SIGNALS:

        @contextmanager
        def signalled(number: int = number) -> Iterator[None]:
            with terminations_raise():
                os.kill(os.getpid(), number)
                yield

        monkeypatch.setattr(console, "terminations_raise", signalled)
        ended = dpr(*command.split(), *ARGUMENTS[command])
        assert (ended.status, ended.stdout) == (130, ""), ended.stderr
        assert ended.stderr.startswith("interrupted; nothing unfinished will be taken for whole")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_question_that_is_not_answered_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, console.reported(debug=False):
        raise typer.Abort
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_a_signal_that_was_ignored_at_the_start_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.reported(debug=False):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_ends_it_though_nobody_can_be_told() -> None:
    code = (
        "import sys, time; from flows.cli.console import reported\n"
        "with reported(debug=False): print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    )

    def in_a_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
        preexec_fn=in_a_terminal,
    )
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"ready")
    os.close(ours)
    assert process.wait(60) == 130


@pytest.mark.slow
@pytest.mark.parametrize("command", [("run", TINY), ("sweep", TINY, "--over", "seed=1,2", "--jobs", 2)])
def test_an_interrupt_of_the_whole_terminal_ends_it_soon(
    process_environment: Callable[..., dict[str, str]], tmp_path: Path, command: tuple[object, ...]
) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, command), "--set", "reinforce.iterations=5000"],
        env=process_environment(tmp_path / "home"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell ignores this signal for what it runs in the background, and so would all that these tests start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stderr is not None
    for line in started.stderr:
        if line.startswith("reinforce"):
            break
    os.killpg(started.pid, signal.SIGINT)
    # Without a server, Prefect tries for more than a minute to say how the flow ended.
    _, said = started.communicate(timeout=50)
    assert started.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; nothing unfinished will be taken for whole; go on with: dpr resume"
