"""Settings that nobody can mean, by every way in: each is refused in a sentence, and soon."""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect.exceptions import ParameterTypeError

from dpr_core.config.base import assign, parse, read_yaml
from dpr_core.config.strict_yaml import MOST_CHARACTERS
from dpr_core.errors import DensePathError, UsageError
from dpr_core.experiments.points import Study, read_over
from flows import deployed, pipeline, recipes
from flows.requests import RunRequest, read_request
from tasks.artifacts.parent_runs import StoredRequest

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.yaml")
SECONDS = 5
LONGEST = 10_000
"""Characters of an error: twenty lines, each with the path of the recipe."""


@contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    # Where no Python runs, no signal is handled either: then the whole process ends.
    faulthandler.dump_traceback_later(10 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(call: Callable[[], object]) -> str:
    with in_time(), pytest.raises(UsageError) as caught:
        call()
    said = str(caught.value)
    assert 0 < len(said) < LONGEST
    assert "Error" not in said
    return said


# Whole recipes

BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{below}'])}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n or ''}, *a{n or ''}]}}\n" for n in range(40))
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(3000))
STAIRS = "".join(f"{' ' * n}a:\n" for n in range(500))

RECIPES: dict[str, tuple[bytes | str, tuple[str, ...]]] = {
    "empty": ("", ("backbone: this field is required",)),
    "comments alone": ("# nothing\n", ("backbone: this field is required",)),
    "a list": ("- 1\n", ("a mapping of settings is expected, not list",)),
    "a number": ("3\n", ("a mapping of settings is expected, not int",)),
    "false": ("false\n", ("a mapping of settings is expected, not bool",)),
    "a text": ("hello\n", ("a mapping of settings is expected, not str",)),
    "binary": (bytes(range(256)), ("not UTF-8 text",)),
    "zeros": (bytes(4096), ("character 1 is U+0000",)),
    "Latin-1": ("name: café\n".encode("latin-1"), ("not UTF-8 text (byte 9)",)),
    "UTF-16": ("name: x\n".encode("utf-16"), ("not UTF-8 text",)),
    "escape characters": ("name: \x1b[2J\n", ("character 7 is U+001B",)),
    "huge": ("a: 1\n" * MOST_CHARACTERS, (f"longer than {MOST_CHARACTERS} bytes",)),
    "as large as may be": ("[" + "1," * (MOST_CHARACTERS // 2 - 2) + "]", ("more than 20000 values",)),
    "many unknown names": ("".join(f"k{n}: 1\n" for n in range(2000)), ("k0: no such field", "and 1981 more")),
    "a long name": (f"{'x' * 1000}: 1\n", ("no such field", "...")),
    "brackets 3,000 deep": (f"seed: {3000 * '['}{3000 * ']'}\n", ("line 1: nested more than 32 levels deep",)),
    "brackets that stay open": (f"seed: {3000 * '['}\n", ("line 1: nested more than 32 levels deep",)),
    "braces 3,000 deep": (f"seed: {3000 * '{a: '}{3000 * '}'}\n", ("nested more than 32 levels deep",)),
    "500 steps deep": (STAIRS, ("line 32: nested more than 32 levels deep",)),
    "a bomb": (BOMB, ("more than 20000 values, with aliases written out",)),
    "a bomb in a typed field": (f"{BOMB}sft: {{checkpoints: *i}}\n", ("more than 20000 values",)),
    "a bomb of merges": (MERGES, ("more than 20000 values",)),
    "a chain of aliases": (CHAIN, ("nested more than 32 levels deep",)),
    "an alias in itself": ("a: &a [*a]\n", ("line 1: the alias *a is part of what it stands for",)),
    "an alias of nothing": ("a: *b\n", ("line 1, column 4", "undefined alias")),
    "a name twice": ("sft: {}\nseed: 1\nsft:\n  epochs: 2\n", ("sft is given twice, in lines 1 and 3",)),
    "a name twice, deep": (
        "sft:\n  execution:\n    threads: 1\n    threads: 2\n",
        ("threads is given twice, in lines 3",),
    ),
    "a name twice in a line": ("sft: {epochs: 1, epochs: 2}\n", ("epochs is given twice, in line 1",)),
    "a name twice in a list": ("a:\n  - {b: 1,\n     b: 2}\n", ("b is given twice, in lines 2 and 3",)),
    "a name twice, once in quotes": ("seed: 1\n'seed': 2\n", ("seed is given twice, in lines 1 and 2",)),
    "a name twice as JSON": ('{"seed": 1,\n"seed": 2}', ("seed is given twice, in lines 1 and 2",)),
    "two merges": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", ("<< is given twice, in lines 3 and 4",)),
    "a long name twice": (2 * f"? {'x' * 100_000}\n: 1\n", ("is given twice, in lines 1 and 3",)),
    "a long tag": (f"seed: !{'x' * 100_000} 1\n", ("is not taken",)),
    "a long alias": (f"seed: *{'x' * 100_000}\n", ("line 1, column 7",)),
    "a list for a name": ("[a, b]: 1\n", ("line 1: a name is expected",)),
    "a number for a name": ("1: 2\n", ("1: ",)),
    "two documents": ("seed: 1\n---\nseed: 2\n", ("line 2, column 1",)),
    "a tab": ("sft:\n\tepochs: 1\n", ("line 2, column 1",)),
    "an object": ("name: !!python/object/apply:os.getcwd []\n", ("a tag (!!python/object/apply:os.getcwd)",)),
    "a tag without a value": ("seed: !!int\n", ("a tag (!!int) is not taken",)),
    "bytes": ("name: !!binary aGk=\n", ("a tag (!!binary) is not taken",)),
    "half a character": ('description: "\\ud800"\n', ("description: this text is not valid Unicode",)),
    "half a character in a template": ('subsample: {template: {text: "{prompt}\\udfff"}}\n', ("not valid Unicode",)),
    "half a character as a name": ('"\\ud800": 1\n', ("this text is not valid Unicode",)),
    "control characters in a name": ('name: "a\\nb"\n', ("name: ",)),
    "a file's name with an end": (
        'subsample: {source: {type: file, path: "a\\0b"}}\n',
        ("subsample.source.path: control characters",),
    ),
    "a backbone's name in two lines": ('backbone: {type: pretrained, name: "a\\nb"}\n', ("backbone.name: control",)),
    "a title with an escape": ('report: {title: "\\e[2J"}\n', ("report.title: control characters",)),
    "a seed of 6,000 digits": (f"seed: 0x{6000 * 'f'}\n", ("line 1: a number of 6002 digits",)),
    "a decimal seed of 6,000 digits": (f"seed: {6000 * '9'}\n", ("line 1: a number of 6000 digits",)),
    "a parent that is no text": ("extends: [a, b]\n", ("extends: the name of a recipe",)),
    "a parent that is a number": (f"extends: {'9' * 39}\n", ("extends: the name of a recipe",)),
    "a parent of a long name": (f"extends: {'x' * 100_000}\n", ("a name of 100000 characters",)),
    "a parent that is not there": (f"extends: {'x' * 3000}.yaml\n", ("cannot read",)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_none_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, words = RECIPES[name]
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refusal(lambda: recipes.load(str(recipe)))
    for word in words:
        assert word in said


def test_a_recipe_that_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe, folder, endless = (tmp_path / f"{name}.yaml" for name in ("pipe", "folder", "endless"))
    os.mkfifo(pipe)
    folder.mkdir()
    endless.symlink_to("/dev/zero")
    mine = tmp_path / "mine.yaml"
    for path, kind in ((pipe, "a named pipe"), (folder, "a folder"), (endless, "a device")):
        mine.write_text(f"extends: {path}\n")
        for named in (path, mine):
            assert f"{path} is {kind}" in refusal(lambda named=named: recipes.load(str(named)))


def test_recipes_extend_each_other_so_often_and_no_more(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    (tmp_path / "1000.yaml").write_text(f"extends: {TINY}\n")
    assert "more than 16 times" in refusal(lambda: recipes.load(str(tmp_path / "0.yaml")))
    assert recipes.load(str(tmp_path / "990.yaml")) == recipes.load(str(TINY))


def test_anchors_and_merges_are_taken(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    shared = "sft: {execution: &shared {threads: 2, rollout_rows: 8}}\n"
    recipe.write_text(f"extends: {TINY}\n{shared}reinforce: {{execution: {{<<: *shared, threads: 3}}}}\n")
    config = recipes.load(str(recipe))
    assert (config.sft.execution.threads, config.sft.execution.rollout_rows) == (2, 8)
    assert (config.reinforce.execution.threads, config.reinforce.execution.rollout_rows) == (3, 8)


@pytest.mark.parametrize("file", [*(ROOT / "deployments").glob("*.yaml"), *(ROOT / "flows/recipes").glob("*.yaml")])
def test_what_ships_is_strict_yaml(file: Path) -> None:
    text = file.read_text()
    values = yaml.safe_load(text)
    assert isinstance(values, dict)
    assert read_yaml(text, file.name) == values


# One value, by every way in

WRONG: list[tuple[str, str, str]] = [
    # field, value as YAML, what is said
    ("sft.batch_size", "true", "a whole number is expected"),
    ("sft.batch_size", "2.5", "a whole number is expected"),
    ("sft.batch_size", "16.0", "a whole number is expected"),
    ("sft.batch_size", "1e3", "a whole number is expected"),
    ("sft.batch_size", '"16"', "a whole number is expected"),
    ("sft.batch_size", '"1e3"', "a whole number is expected"),
    ("sft.batch_size", "020", "a whole number is expected"),
    ("sft.batch_size", "1:30", "a whole number is expected"),
    ("sft.batch_size", "0b11", "a whole number is expected"),
    ("sft.batch_size", "null", "a whole number is expected"),
    ("sft.batch_size", "[16]", "a whole number is expected"),
    ("sft.batch_size", "{a: 16}", "a whole number is expected"),
    ("sft.batch_size", ".inf", "a whole number is expected"),
    ("sft.batch_size", ".nan", "a whole number is expected"),
    ("sft.batch_size", "2024-01-01", "a whole number is expected"),
    ("sft.batch_size", "0", "greater than or equal to 1"),
    ("sft.batch_size", "-16", "greater than or equal to 1"),
    ("sft.batch_size", "99999999999999999999", "less than or equal to"),
    ("seed", "true", "a whole number is expected"),
    ("seed", "-1", "greater than or equal to 0"),
    ("seed", "2147483648", "less than 2147483648"),
    ("sft.learning_rate", '"5e-6"', "a number is expected"),
    ("sft.learning_rate", "true", "a number is expected"),
    ("sft.learning_rate", ".inf", "finite"),
    ("sft.learning_rate", ".nan", "finite"),
    ("sft.learning_rate", "1e999", "finite"),
    ("sft.learning_rate", "inf", "a number is expected"),
    ("sft.learning_rate", "1:30.5", "a number is expected"),
    ("sft.learning_rate", "1_0.5", "a number is expected"),
    ("sft.execution.compile", "no", "true or false is expected"),
    ("sft.execution.compile", "on", "true or false is expected"),
    ("sft.execution.compile", "y", "true or false is expected"),
    ("sft.execution.compile", "1", "true or false is expected"),
    ("sft.execution.compile", '"true"', "true or false is expected"),
    ("sft.execution.compile", "null", "true or false is expected"),
    ("sft.checkpoints", "0.5", "a list is expected"),
    ("reinforce.guard", "off", "a section of settings is expected"),
    ("sft.execution", "3", "a section of settings is expected"),
    ("methods", "[SR]", "a section of settings is expected"),
    ("sft.checkpoints", "[true, 1.0]", "a number is expected"),
    ("sft.checkpoints", '["0.5", 1.0]', "a number is expected"),
    ("sft.adam_betas", "[0.9]", "required"),
    ("reward.reference", "true", "a number is expected"),
    ("reward.reference", "[0.34, true]", "a number is expected"),
    ("description", "3", "text is expected"),
    ("description", "true", "text is expected"),
    ("description", '"\\udc80"', "not valid Unicode"),
    ("name", "12345", "text is expected"),
    ("name", '"a b"', "pattern"),
    ("report.title", '"a\\0b"', "control characters"),
    ("judge.bootstrap_samples", "1e12", "a whole number is expected"),
    ("judge.bootstrap_samples", "1000000000000", "less than or equal to 100000"),
    ("subsample.source.rows", "1000000000000", "less than or equal to"),
    ("sft.epochs", "1000000000000", "less than or equal to"),
    ("reinforce.iterations", "1000000000000", "less than or equal to"),
    ("reinforce.temperature", "1e-300", "greater than or equal to 0.01"),
    ("answer.temperature", "1e-300", "at least 0.01, or 0"),
    ("answer.max_response_tokens", "1000000000000", "less than or equal to"),
    ("backbone.layers", "1000000", "less than or equal to"),
    ("sft.execution.threads", "1000000", "less than or equal to"),
    ("sft.execution.launch.processes", "1000000", "less than or equal to"),
    ("sft.execution.checkpoint_minutes", "1e300", "less than or equal to"),
    ("judge.execution.request_seconds", "1e300", "less than or equal to"),
    ("judge.execution.requests_per_minute", "1e-300", "greater than or equal to"),
    ("judge.execution.concurrency", "1000000000", "less than or equal to"),
    ("diagnose.prompts", "1000000000000", "less than or equal to"),
    ("evaluation.benchmarks.lab.prompts", "1000000000000", "less than or equal to"),
]
IDS = [f"{field}={value}" for field, value, _ in WRONG]


def plain() -> dict[str, Any]:
    return recipes.load(str(TINY)).model_dump(mode="json")


@pytest.mark.parametrize(("field", "value", "words"), WRONG, ids=IDS)
def test_one_wrong_value_is_refused_by_every_way_in(field: str, value: str, words: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    nested = value
    for part in reversed(field.split(".")):
        nested = f"{{{part}: {nested}}}"
    recipe.write_text(f"{nested[1:-1]}\nextends: {TINY}\n")
    alone = [
        refusal(lambda: recipes.load(str(recipe))),
        refusal(lambda: recipes.load(str(TINY), [f"{field}={value}"])),
    ]
    in_sweep = refusal(lambda: study(read_over([f"{field}={value}"])).points())
    for said in (*alone, in_sweep):
        assert field in said or "not valid Unicode" in said
    for said in alone:
        assert words in said
    # A colon stands between the ends of a range there.
    assert words in in_sweep or ":" in value
    read: Any = read_yaml(f"v: {value}", "x")["v"]
    wrong = assign(plain(), {field: read})
    with in_time(), pytest.raises(ParameterTypeError) as deployed:
        pipeline.dense_path.validate_parameters({"config": wrong})
    assert "config" in str(deployed.value)
    request = RunRequest(config=recipes.load(str(TINY))).stored()
    stored = StoredRequest({**request.content, "config": wrong}, request.execution)
    with in_time(), pytest.raises(DensePathError, match="start it anew"):
        read_request(SimpleNamespace(request=stored, title="x", started=datetime.now(UTC)))  # type: ignore[arg-type]


def study(over: dict[str, list[Any]]) -> Study:
    return parse(Study, {"title": "t", "config": recipes.load(str(TINY)), "over": over}, "--over")


STUDIES = [{"title": "t", "config": plain(), "over": {}}]


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [
        (pipeline.dense_path, {"force": "yes"}),
        (pipeline.dense_path, {"force": 1}),
        (pipeline.rerun, {"artifact": "abcd", "downstream": "on"}),
        (pipeline.rerun, {"artifact": "abcd", "place": {"lunch": "gpu"}}),
        (pipeline.rerun, {"artifact": "abcd", "place": {"sft": "a/b/c"}}),
        (deployed.run, {"recipe": "demo", "overrides": "seed=1"}),
        (deployed.run, {"recipe": "demo", "jobs": True}),
        (deployed.run, {"recipe": "demo", "place": {"sft": 3}}),
        (deployed.sft, {"data": "abcd", "overrides": [1]}),
        (deployed.reinforce, {"reward": "abcd", "force": "no"}),
        (pipeline.sweep, {"studies": []}),
        (pipeline.sweep, {"studies": STUDIES, "jobs": True}),
        (pipeline.sweep, {"studies": STUDIES, "jobs": 10**6}),
        (pipeline.sweep, {"studies": STUDIES, "name": "a\nb"}),
    ],
)
def test_parameters_of_a_deployment_are_as_strict(flow: Any, parameters: dict[str, Any]) -> None:
    pipeline.sweep.validate_parameters({"studies": STUDIES, "jobs": 2})
    with in_time(), pytest.raises(ParameterTypeError):
        flow.validate_parameters(parameters)


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("sft.batch_size", "1_6", 16),
        ("sft.batch_size", "+16", 16),
        ("sft.batch_size", "0x10", 16),
        ("sft.learning_rate", "5e-6", 5e-6),
        ("sft.learning_rate", "5E-06", 5e-6),
        ("sft.learning_rate", "1", 1.0),
        ("sft.execution.compile", "True", True),
        ("description", "no", "no"),
        ("description", "2024-01-01", "2024-01-01"),
        ("description", "1:30", "1:30"),
        ("description", '"3"', "3"),
        ("reinforce.iterations", "~", None),
        ("answer.temperature", "0", 0.0),
    ],
)
def test_what_can_be_meant_is_taken(field: str, value: str, read: Any) -> None:
    node: Any = recipes.load(str(TINY), [f"{field}={value}"])
    for part in field.split("."):
        node = getattr(node, part)
    assert (node, type(node)) == (read, type(read))


# Assignments


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["sft.epochs=1", "sft.epochs=2"], "--set sft.epochs is given twice"),
        (["sft.epochs=1", "sft.epochs=1"], "--set sft.epochs is given twice"),
        (["sft.epochs=1", "sft={batch_size: 4}"], "--set sft.epochs and then --set sft"),
        (["sft={epochs: 1}", "sft.epochs=2"], "--set sft and then --set sft.epochs"),
        ([f"a{n}=1" for n in range(5000)], "1000 changes are the most"),
        (["methods={m: {changes: [reward.seed=1, reward.seed=2]}}"], "methods.m.changes reward.seed is given twice"),
        (["sft=3", "sft.epochs=2"], "--set sft and then --set sft.epochs"),
        (["reinforce.algorithm.type=ppo", "reinforce.algorithm={gamma: 1}"], "the second undoes the first"),
        (["sft={epochs: 1, epochs: 2}"], "epochs is given twice, in line 1"),
        ([f"sft={3000 * '['}"], "nested more than 32 levels deep"),
        ([f"{'a.' * 5000}a=1"], "there is no setting at a depth of 5001"),
        ([f"seed=0x{6000 * 'f'}"], "a number of 6002 digits"),
        (["seed=!!int 4f7f3a9c5e1b"], "--set seed=...: line 1: a tag (!!int) is not taken"),
        (["judge..key=4f7f3a9c5e1b"], "--set judge..key=...: expected field=value"),
        ([f"seed={'x' * MOST_CHARACTERS}y"], "longer than"),
        ([f"{'x' * MOST_CHARACTERS}=1"], "no such field"),
        (["description=\udcff"], "not valid Unicode"),
        (["\udcff=1"], "not valid Unicode"),
        (["sft.batch_size={a: [&a [1], *a]}"], "a whole number is expected"),
    ],
)
def test_assignments_that_cannot_be_meant_are_refused(assignments: list[str], words: str) -> None:
    assert words in refusal(lambda: recipes.load(str(TINY), assignments))


def test_assignments_that_go_together_are_taken() -> None:
    together = ["sft={epochs: 2}", "sft.batch_size=8", "backbone.type=lab", "backbone.layers=1", "backbone.width=32"]
    config = recipes.load(str(TINY), together)
    assert (config.sft.epochs, config.sft.batch_size) == (2, 8)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ("seed=1,true", "a whole number"),
        ("seed=1:3:0.5", "a whole number"),
        (f"seed={'[' * 3000}", "nested more than 32 levels"),
        (f"seed=0x{'f' * 6000}", "6002 digits"),
        ("seed={a: 1, a: 2}", "a is given twice"),
        ("seed=!!binary aGk=", "a tag"),
        (f"seed={'1,' * 2000}1", "2001 points"),
        ("seed=0:1e9:1", "at most 1000 values"),
    ],
)
def test_values_of_a_sweep_that_cannot_be_meant_are_refused(over: str, words: str) -> None:
    assert words in refusal(lambda: study(read_over([over])).points())


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", TINY, "--gpu", "h100", "--gpu", "h200"], "--gpu is given twice"),
        (["sweep", TINY, "--over", "seed=1", "--jobs", "1", "--jobs", "2"], "--jobs is given twice"),
        (["gc", "--older-than", "1d", "--older-than=7d"], "--older-than is given twice"),
        (["score", "abcd", "--text", "a", "b", "--html", "x", "--html", "y"], "--html is given twice"),
        (["benchmark", "export", "abcd", "x", "--format", "lima", "--benchmark", "lima"], "--format is given twice"),
        (["score", "abcd", "--text", "a"], "--text takes two values"),
        (["run", TINY, "seed=1", "seed=2"], "unexpected extra argument"),
    ],
)
def test_an_option_given_twice_is_refused(dpr: Callable[..., Any], arguments: list[Any], words: str) -> None:
    result = dpr(*arguments)
    assert result.status == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        *(["plan", TINY, "--gpus", many] for many in ("0", "1000000", 30 * "9")),
        *(["plan", TINY, "--gpu-memory", size] for size in ("nan", "inf", "1e308")),
        *(["plan", TINY, f"--{what}-tokens", "1e308"] for what in ("prompt", "response")),
        ["plan", TINY, "--utilisation", "nan"],
        ["reproduce", "theory", "--instances", "1000000000000"],
        ["reproduce", "theory", "--seed", 30 * "9"],
        ["reproduce", "table1", "--seeds", "1000000000000"],
    ],
)
def test_numbers_of_options_have_bounds(dpr: Callable[..., Any], arguments: list[Any]) -> None:
    with in_time():
        result = dpr(*arguments)
    assert result.status == 2
    assert arguments[2] in result.stderr


def test_a_file_given_twice_is_counted_once_or_not_at_all(dpr: Callable[..., Any], tmp_path: Path) -> None:
    judgments = tmp_path / "judgments.jsonl"
    judgments.write_text("{}\n")
    twice = dpr("benchmark", "score", "--format", "mt-bench", judgments, tmp_path / "." / judgments.name)
    twice.assert_refused(2, "judgments.jsonl is given twice")


def test_a_flag_may_be_given_twice(dpr: Callable[..., Any]) -> None:
    assert json.loads(dpr("recipes", "--json", "--json").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", TINY, "--set", f"seed=0x{6000 * 'f'}"],
        ["config", TINY, "--set", "description=\udcff"],
        ["run", "\udcff.yaml"],
        ["run", "x" * 5000 + ".yaml"],
        ["run", "\x1b[2J"],
        ["run", TINY, "--set", "sft.epochs=1", "--set", "sft.epochs=2"],
        ["plan", TINY, "--set", "judge.bootstrap_samples=1e12"],
        ["sweep", TINY, "--over", "sft.batch_size=true", "--plan"],
        ["reproduce", "table1", "--recipe", TINY, "--set", "sft.batch_size=true", "--plan"],
        ["reproduce", "table1", "--recipe", TINY, "--set", "sft.checkpoints=[a, 1.0]", "--plan"],
        ["reproduce", "table1", "--recipe", TINY, "--set", "sft.checkpoints=[true, 0.5]", "--plan"],
    ],
)
def test_commands_refuse_in_a_sentence(dpr: Callable[..., Any], arguments: list[Any]) -> None:
    with in_time(20):
        said = dpr(*arguments).assert_refused(2)
    assert len(said) < LONGEST
    assert "\x1b" not in said
