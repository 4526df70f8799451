"""A golden record of what `dpr` does, with which the code after a refactoring is compared.

    python tests/golden.py record build/golden --dpr ../old/.venv/bin/dpr --bench FOLDER
    python tests/golden.py compare build/golden [SECTION ...]

The sections; without a name, all of them:

    help     --help of every command, and every setting with its meaning
    keys     the key of every stage of every recipe, with the settings that it is a hash of
    plans    --json of config, plan and run --plan for every recipe
    theory   --json of reproduce theory
    scores   scores and costs of real files in FOLDER, which has alpaca_eval/, arena_hard/ and mt_bench/
    store    artifacts, show, verify, score, export, rerun --plan and a reused run, on the store of the recorded code
    demo     dpr run demo in a fresh store: the hash of every file that it makes, and the same documents (minutes)

Numbers agree to within 1e-9; hashes, keys and texts exactly. IDs, times and paths are masked. The last bits of weights
depend on the machine and its libraries, so a record holds for one machine; libraries that have changed are listed.
Where a difference is meant, `record` with the names of sections renews these alone. `make clean` removes build/.
"""

import argparse
import difflib
import hashlib
import importlib
import json
import math
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

TOLERANCE = 1e-9
LISTED = 20
"""Differences of a section that are listed; the others are counted."""

FOREIGN = ("DPR_", "HF_", "MLFLOW_", "PREFECT_", "PYTHONPATH")
"""Environment variables that do not reach the recorded commands: HF_HUB_OFFLINE alone changes tokenizer_config.json."""
STEADY = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}

TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00| UTC)?")
ID = re.compile(r"\b[0-9a-f]{32}\b")
VOLATILE = re.compile(r"seconds$|_per_second$")
"""Names of numbers that no two runs have in common."""

FAILED = {"exit_status", "error"}
PIPELINE = "pipeline"
PROMPT = "Start at 1, add 2."
TEXTS = ["The answer is 3.", "1 + 2 = 3. The answer is 4."]
CLUSTER = ["--gpu", "h200", "--gpus", "8", "--prompt-tokens", "200", "--response-tokens", "250"]

RATINGS = "mt_bench/model_judgment/orpo_mix_gpt-4_single.jsonl"
BATTLES = "arena_hard/v0.1/model_judgment/gpt-4-1106__llama-3.1-8b-instruct.jsonl"
ALPACA = "alpaca_eval/results/alpaca-7b"
MT_PAIR = (
    "judge --format mt-bench --questions mt_bench/question.jsonl --answers mt_bench/model_answer/gpt-3.5-turbo.jsonl "
    "--baseline mt_bench/model_answer/vicuna-7b-v1.3.jsonl"
)
ARENA_PAIR = (
    "judge --format arena-hard --answers arena_hard/v0.1/model_answer/gpt-4-0314.jsonl "
    "--baseline arena_hard/v0.1/model_answer/gpt-4-0314.jsonl --questions arena_hard/v0.1"
)
RATE = "rate --questions mt_bench/question.jsonl --answers mt_bench/model_answer/vicuna-7b-v1.3.jsonl"
REFERENCES = "--references mt_bench/reference_answer/gpt-4.jsonl"
BENCHMARKS = [
    f"score --format alpaca-eval {ALPACA}/annotations_ae1.json",
    f"score --format alpaca-eval {ALPACA}/annotations_ae1.json --answers {ALPACA}/model_outputs.json",
    f"score --format alpaca-eval {ALPACA}/annotations_ae2.json --answers {ALPACA}/model_outputs.json",
    f"score --format arena-hard {BATTLES}",
    f"score --format arena-hard {BATTLES} --questions arena_hard/v0.1/question.jsonl",
    f"score --format arena-hard {BATTLES} --questions arena_hard/v0.1/question_schema1.jsonl",
    f"score --format mt-bench {RATINGS}",
    f"score --format mt-bench {RATINGS} --questions mt_bench/question.jsonl",
    f"{MT_PAIR} --set by.type=scripted --set by.rule=longer",
    f"{MT_PAIR} --set by.type=scripted --set by.rule=first",
    f"{MT_PAIR} --dry-run",
    f"{ARENA_PAIR}/question.jsonl --set by.type=scripted --set by.rule=longer",
    f"{ARENA_PAIR}/question_schema1.jsonl --set by.type=openai-batch --dry-run",
    f"{RATE} --set by.type=scripted",
    f"{RATE} {REFERENCES} --dry-run",
    f"{RATE} {REFERENCES} --set prompts=mt_bench/judge_prompts.jsonl --dry-run",
]


Documents = dict[str, Any]
"""What commands printed, by command."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "compare"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path, help="where the record lies")
        command.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
        command.add_argument("--dpr", type=Path, default=Path(sys.executable).with_name("dpr"), help="whose output")
        command.add_argument("--bench", type=Path, help="FOLDER of the section scores; the record remembers it")
    commands.add_parser("inside").add_argument("part", choices=INSIDE)
    given = parser.parse_args()
    if given.command == "inside":
        answer_inside(given.part)
        return
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; sections: {', '.join(SECTIONS)}")
    record = Record(given.folder.resolve())
    with tempfile.TemporaryDirectory() as work:
        subject = Subject(given.dpr.absolute(), Path(work).resolve(), record, given.bench)
        if given.command == "record":
            make_record(subject, given.sections or list(SECTIONS))
        elif not record.sections():
            parser.exit(1, f"no record in {record.folder}: python tests/golden.py record {record.folder} --dpr DPR\n")
        else:
            sys.exit(compare(subject, given.sections or record.sections()))


@dataclass(frozen=True)
class Record:
    """A folder with one file a section, and the store that the demo left."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def sections(self) -> list[str]:
        return [name for name in SECTIONS if (self.folder / f"{name}.json").is_file()]

    def read(self, name: str) -> Documents:
        file = self.folder / f"{name}.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def write(self, name: str, documents: Documents) -> None:
        text = json.dumps(documents, indent=1, sort_keys=True, ensure_ascii=False)
        (self.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Subject:
    """The `dpr` whose output is recorded or compared, and a folder to work in."""

    dpr: Path
    work: Path
    record: Record
    given_bench: Path | None

    @property
    def bench(self) -> Path | None:
        known = self.given_bench or self.record.read("about").get("bench")
        return Path(known).resolve() if known else None

    def run(self, command: Sequence[str | Path], home: Path, cwd: Path, stdin: str = "") -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        environment = {**inherited, **STEADY, "DPR_HOME": str(home)}
        done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, text=True, env=environment, cwd=cwd)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}: exit status {done.returncode}")
        return done.stdout

    def inside(self, part: str, wanted: Any = None, home: Path | None = None, cwd: Path | None = None) -> Any:
        """What a function of this file returns in the interpreter of `dpr`, which starts and imports once."""
        # -P, since folders beside this file are called as the packages are.
        command: list[str | Path] = [self.dpr.with_name("python"), "-P", __file__, "inside", part]
        return json.loads(self.run(command, home or self.work / "home", cwd or self.work, json.dumps(wanted)))

    def ask(self, calls: Sequence[Sequence[str]], home: Path | None = None, cwd: Path | None = None) -> Documents:
        """What `dpr` prints, by its arguments."""
        printed = self.inside("calls", calls, home, cwd)
        return {shlex.join(call): document for call, document in zip(calls, printed, strict=True)}


def make_record(subject: Subject, sections: Sequence[str]) -> None:
    record = subject.record
    record.folder.mkdir(parents=True, exist_ok=True)
    for name in sections:
        documents = SECTIONS[name](subject)
        if documents is None:
            print(f"{name:<8} left out: needs {NEEDS[name]}")
            continue
        if name == "demo":
            shutil.rmtree(record.store, ignore_errors=True)
            copy_store(subject.work / "demo", record.store)
        record.write(name, documents)
        print(f"{name:<8} {len(documents)} documents recorded", flush=True)
        for command, printed in documents.items():
            if isinstance(printed, dict) and printed.keys() >= FAILED:
                print(f"    {command}: {printed['error']}")
    bench = str(subject.bench) if subject.bench else None
    record.write("about", {"bench": bench, "libraries": subject.inside("libraries")})


def compare(subject: Subject, sections: Sequence[str]) -> bool:
    """Print a line a section, with the differences below it; whether there are any."""
    before, now = subject.record.read("about")["libraries"], subject.inside("libraries")
    changed = [
        f"{name} {before.get(name, '-')} -> {now.get(name, '-')}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    print(f"libraries: {', '.join(changed) or 'the same'}")
    failed = False
    for name in sections:
        documents = SECTIONS[name](subject)
        if documents is None:
            print(f"{name:<8} not compared: needs {NEEDS[name]}")
            failed = True
            continue
        found = list(differences(subject.record.read(name), documents))
        print(f"{name:<8} {len(documents)} documents, {len(found) or 'no'} differences", flush=True)
        for line in found[:LISTED]:
            print(f"    {line}")
        if len(found) > LISTED:
            print(f"    and {len(found) - LISTED} more")
        failed = failed or bool(found)
    return failed


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Every place where two documents differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            place = f"{where} > {name}" if where else name
            if name not in now:
                yield f"{place}: is gone (was {shown(before[name])})"
            elif name not in before:
                yield f"{place}: is new ({shown(now[name])})"
            else:
                yield from differences(before[name], now[name], place)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{where} > {number}")
    elif isinstance(before, str) and isinstance(now, str) and "\n" in before + now:
        if before != now:
            lines = difflib.ndiff(before.splitlines(), now.splitlines())
            yield "\n      ".join([f"{where}:", *(line.rstrip() for line in lines if line[0] in "+-")])
    elif not same(before, now):
        yield f"{where}: {shown(before)} -> {shown(now)}"


def same(before: Any, now: Any) -> bool:
    if isinstance(before, float) or isinstance(now, float):
        numbers = isinstance(before, int | float) and isinstance(now, int | float)
        return numbers and math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(before) is type(now) and bool(before == now)


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}..."


def help_texts(subject: Subject) -> Documents:
    calls = [*subject.inside("commands"), ["config", "demo"], ["config", "paper-table1"]]
    return subject.ask(calls)


def stage_keys(subject: Subject) -> Documents:
    return dict(subject.inside("keys"))


def plans(subject: Subject) -> Documents:
    recipes = [entry["name"] for entry in subject.ask([["recipes", "--json"]])["recipes --json"]]
    calls = [
        [command, recipe, *options, "--json"]
        for recipe in recipes
        for command, *options in (("config",), ("plan",), ("run", "--plan"))
    ]
    calls.append(["plan", "llama-3.1-8b-8gpu", *CLUSTER, "--json"])
    return subject.ask(calls)


def theory(subject: Subject) -> Documents:
    return subject.ask([["reproduce", "theory", "--json"]])


def scores(subject: Subject) -> Documents | None:
    if subject.bench is None or not subject.bench.is_dir():
        return None
    return subject.ask([["benchmark", *shlex.split(call), "--json"] for call in BENCHMARKS], cwd=subject.bench)


def old_store(subject: Subject) -> Documents | None:
    """A copy is looked at: a newer MLflow may migrate its database."""
    if not subject.record.store.is_dir():
        return None
    return about_store(subject, copy_store(subject.record.store, subject.work / "store"))


def demo(subject: Subject) -> Documents:
    home = subject.work / "demo"
    printed = json.loads(subject.run([subject.dpr, "run", "demo", "--json"], home, subject.work))
    files = {
        f"{name} > {path.relative_to(output)}": sha256(path)
        for run, name in names_of_runs(home).items()
        for output in [home / "artifacts" / run / "artifacts" / "output"]
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }
    document = masked({"run demo --json": printed}, masks(subject, home))
    return {"files": files, **document, **about_store(subject, copy_store(home, subject.work / "copy"))}


def about_store(subject: Subject, home: Path) -> Documents:
    """What `dpr` says of every artifact, what can be had from it, and what would run again; at last, a run."""
    ids = {name: run for run, name in names_of_runs(home).items()}
    cwd = subject.work / f"in-{home.name}"
    cwd.mkdir()
    (cwd / "rows.jsonl").write_text("".join(json.dumps({"prompt": PROMPT, "response": text}) + "\n" for text in TEXTS))
    stages = [name for name in ids if name != PIPELINE]
    exports = [("backbone",), ("sft",), ("sft", "0.5"), ("reward", "ref"), ("reinforce",)]
    calls = [
        ["artifacts"],
        ["artifacts", "--stage", "reward"],
        *(["show", run] for run in ids.values()),
        ["verify", "--all"],
        ["score", ids["reward"], "--text", PROMPT, TEXTS[0]],
        ["score", ids["reward"], "rows.jsonl"],
        *(
            ["export", ids[name], "-".join([name, *part]), *(["--part", *part] if part else [])]
            for name, *part in exports
        ),
        *(["rerun", ids[name], "--downstream", "--plan"] for name in stages),
        ["rerun", ids["reinforce"], "--downstream", "--plan", "--set", "algorithm.gamma=0.95"],
        ["run", "demo", "--plan"],
        ["run", "demo", "--plan", "--force"],
        ["sweep", "demo", "--over", "seed=0,1", "--plan"],
        ["resume", "--plan"],
        ["run", "demo"],
    ]
    documents = subject.ask([[*call, "--json"] for call in calls], home, cwd)
    documents["exported"] = {str(p.relative_to(cwd)): sha256(p) for p in sorted(cwd.rglob("*")) if p.is_file()}
    return masked(documents, masks(subject, home))


SECTIONS: dict[str, Callable[[Subject], Documents | None]] = {
    "help": help_texts,
    "keys": stage_keys,
    "plans": plans,
    "theory": theory,
    "scores": scores,
    "demo": demo,
    "store": old_store,
}
NEEDS = {"scores": "--bench FOLDER", "store": "the section demo recorded before"}


def names_of_runs(home: Path) -> dict[str, str]:
    """The names of all stages by the IDs of their runs, and of what they were made for."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        tags = "SELECT run_uuid, value FROM tags WHERE key = 'dpr.name'"
        rows = database.execute(
            f"SELECT r.run_uuid, coalesce(t.value, '{PIPELINE}') FROM runs r LEFT JOIN ({tags}) t USING (run_uuid)"
        )
        return dict(rows)


def copy_store(home: Path, to: Path) -> Path:
    """A store knows where it lies, so that a copy has to be told."""
    shutil.copytree(home, to, ignore=shutil.ignore_patterns("prefect"))
    with closing(sqlite3.connect(to / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            place = f"instr({column}, '/artifacts')"
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, {place}) WHERE {place} > 0", (to.as_uri(),)
            )
    return to


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def masks(subject: Subject, home: Path) -> dict[str, str]:
    """What stands for the IDs, whole or as commands quote them, and for the folders of one comparison."""
    names = names_of_runs(home)
    places = {str(home): "<home>", str(subject.work): "<work>"}
    return {**places, **{run: f"<{name}>" for run, name in names.items()}}


def masked(value: Any, names: Mapping[str, str], field: str = "") -> Any:
    """A document without what differs from run to run."""
    if isinstance(value, dict):
        return {masked(name, names): masked(each, names, name) for name, each in value.items()}
    if isinstance(value, list):
        return [masked(each, names) for each in value]
    if isinstance(value, int | float) and VOLATILE.search(field):
        return "<number>"
    if not isinstance(value, str):
        return value
    for text, name in names.items():
        value = value.replace(text, name)
    return ID.sub("<id>", TIME.sub("<time>", value))


def answer_inside(part: str) -> None:
    """Read what is wanted from stdin and write the answer to stdout, which nothing else reaches."""
    wanted = json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        answer = INSIDE[part](wanted)
    json.dump(answer, sys.stdout)


def printed_by(calls: Sequence[Sequence[str]]) -> list[Any]:
    """The document that each call of `dpr` prints; of one that fails, the exit status and the error too."""
    main_of_dpr = entry_point().load()
    return [_printed_by(main_of_dpr, call) for call in calls]


def _printed_by(main_of_dpr: Callable[[], None], call: Sequence[str]) -> Any:
    sys.argv = ["dpr", *call]
    out, err, status = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main_of_dpr()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    printed = document_of(out.getvalue())
    if status:
        return {"exit_status": status, "error": err.getvalue().rpartition("error: ")[2].strip(), "stdout": printed}
    return printed


def document_of(text: str) -> Any:
    """One JSON document, one a line, or text."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines()]
    except ValueError:
        return "\n".join(line.rstrip() for line in text.splitlines())


def help_calls(_: Any) -> list[list[str]]:
    """`--help` of the program and of everything below it."""
    import typer

    module = importlib.import_module(entry_point().module)
    (app,) = (value for value in vars(module).values() if isinstance(value, typer.Typer))

    def walk(command: Any, path: list[str]) -> Iterator[list[str]]:
        yield [*path, "--help"]
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, [*path, name])

    return list(walk(typer.main.get_command(app), []))


def keys_of_recipes(_: Any) -> Documents:
    """Every stage of every recipe, the key of an input in place of the digest that it would have."""
    recipes, wiring = (importlib.import_module(f"flows.{name}") for name in ("recipes", "wiring"))
    stage_named, stage_key = function("tasks", "stage_named"), function("tasks", "stage_key")
    found: Documents = {}
    for recipe in recipes.names():
        stages = found[recipe] = {}
        for node in wiring.nodes(recipes.load(recipe)):
            stage = stage_named(node.stage)
            sources = {role: stages[source.removeprefix("@")] for role, source in node.inputs.items()}
            config = pinned(stage, node.config)
            version = stage.version
            # Earlier versions had neither of these.
            if hasattr(stage, "settle"):
                config = stage.settle(config, {role: source["settings"] for role, source in sources.items()})
                version = stage.version_of(config)
            settings = config.identity()
            key = stage_key(stage.name, version, settings, {role: source["key"] for role, source in sources.items()})
            stages[node.name] = {"key": key, "version": version, "inputs": node.inputs, "settings": settings}
    return found


def pinned(stage: Any, config: Any) -> Any:
    """The settings with the hashes of the files that they name, where these are here."""
    errors = importlib.import_module("dpr_core.errors")
    try:
        return config if stage.missing(config) else stage.pin(config)
    except errors.UsageError:
        return config


def function(package: str, name: str) -> Any:
    """A function of a package, in whichever module it is defined."""
    root = Path(*importlib.import_module(package).__path__)
    for file in root.rglob("*.py"):
        if f"\ndef {name}(" in file.read_text(encoding="utf-8"):
            parts = file.relative_to(root.parent).with_suffix("").parts
            return getattr(importlib.import_module(".".join(parts).removesuffix(".__init__")), name)
    raise LookupError(f"{package} defines no function {name}")


def entry_point() -> metadata.EntryPoint:
    (found,) = metadata.entry_points(group="console_scripts", name="dpr")
    return found


def libraries(_: Any) -> dict[str, str]:
    return {each.name: each.version for each in metadata.distributions()}


INSIDE: dict[str, Callable[[Any], Any]] = {
    "calls": printed_by,
    "commands": help_calls,
    "keys": keys_of_recipes,
    "libraries": libraries,
}

if __name__ == "__main__":
    main()
