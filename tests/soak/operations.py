"""What is done to a world: use, faults in the middle of it, damage between; each kind with how often it is drawn."""

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tests.soak.world import Calm, InvariantError, Recipe, Row, World, run_words

Operation = Callable[[World, random.Random, Calm], str]
"""Does it, raises InvariantError where an invariant does not hold, and says in a few words what it did."""

KINDS: dict[str, tuple[int, Operation]] = {}

SETTINGS: tuple[tuple[str, ...], ...] = (
    ("", "seed=1"),
    ("", "reward.reference=0.34"),
    ("", "reinforce.learning_rate=0.0003", "reinforce.iterations=3", "reinforce.algorithm.kl_weight=0"),
    ("", "answer.temperature=0.9", "answer.max_response_tokens=5"),
    ("", "evaluation.controls={extrapolated: {k: 2}}", "methods={late: {changes: [reward.reference=0.34]}}"),
    ("", "report.title=Ünïcode <b>'\"& {prompt}"),
)
"""A recipe takes one of each line, mostly the first."""

AMID = 3.0
"""Seconds after its begin within which a command is disturbed."""


def kind(weight: int) -> Callable[[Operation], Operation]:
    def register(operation: Operation) -> Operation:
        KINDS[operation.__name__.replace("_", " ")] = (weight, operation)
        return operation

    return register


def recipe_for(world: World, rng: random.Random) -> Recipe:
    """Often one that this world knows, so that there is something to reuse."""
    if world.recipes and rng.random() < 0.6:
        return rng.choice(world.recipes)
    chosen = tuple(filter(None, (each[0] if rng.random() < 0.8 else rng.choice(each[1:]) for each in SETTINGS)))
    world.recipes = list(dict.fromkeys([*world.recipes, chosen]))
    return chosen


def ensure(world: World, rng: random.Random, *stages: str, damaged: bool = False) -> Row:
    """An artifact, made now where there is none."""
    if not world.finished(*stages, damaged=damaged):
        run(world, rng, world.calm)
    return rng.choice(world.finished(*stages, damaged=damaged))


def resumable_run(world: World, rng: random.Random) -> tuple[Recipe, Path, list[str]]:
    """A run that keeps states all the time, which is no part of a recipe's identity."""
    recipe, often = (
        recipe_for(world, rng),
        [
            f"{stage}.execution.checkpoint_steps={rng.choice((1, 2))}"
            for stage in ("backbone", "sft", "reinforce", "answer")
        ],
    )
    return recipe, rng.choice(world.homes), run_words((*recipe, *often), "--json")


@kind(6)
def run(world: World, rng: random.Random, calm: Calm) -> str:
    recipe = recipe_for(world, rng)
    world.check_run(recipe, world.dpr(*run_words(recipe, "--json"), home=rng.choice(world.homes)))
    return " ".join(recipe)


@kind(8)
def signals(world: World, rng: random.Random, calm: Calm) -> str:
    """A signal at a random moment; then the same command, or `dpr resume`, or neither."""
    recipe, home, words = resumable_run(world, rng)
    number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    after = rng.uniform(0.05, AMID)
    done = world.start(*words, home=home).send(number, after, group=rng.random() < 0.5).finish(-signal.SIGKILL)
    if done.status == 0:
        world.check_run(recipe, done)
        return "too late"
    done.expect("a signal ends a command", -signal.SIGKILL if number == signal.SIGKILL else 130)
    return f"{number.name} after {after:.2f} s, then " + go_on(world, rng, recipe, home, words)


@kind(8)
def death(world: World, rng: random.Random, calm: Calm) -> str:
    """SIGKILL at a random write; a byte of what it leaves to go on from may flip."""
    recipe, home, words = resumable_run(world, rng)
    number = int(2 ** rng.uniform(0, 10))
    done = world.dpr(*words, home=home, die_at=number)
    world.check()
    left = sorted(path for path in (home / "work").rglob("*") if path.is_file() and path.stat().st_size)
    flipped = ""
    if left and rng.random() < 0.3:
        file = rng.choice(left)
        change(file, "flip", rng)
        flipped = f"{file.name} flipped, "
    return f"at write {number}: {done.status}, {flipped}then " + go_on(world, rng, recipe, home, words)


def go_on(world: World, rng: random.Random, recipe: Recipe, home: Path, words: list[str]) -> str:
    world.check()
    then = rng.choice(("the same command", "the same command", "resume", "later"))
    if then == "resume":
        resume(world, rng, world.calm)
    if then != "later":
        world.check_run(recipe, world.dpr(*words, home=home))
    return then


@kind(3)
def resume(world: World, rng: random.Random, calm: Calm) -> str:
    home = rng.choice(world.homes)
    done = world.dpr("resume", "--json", home=home).expect("what was interrupted goes on", 0)
    left = world.dpr("resume", "--plan", "--json", home=home).expect("a plan", 0).json["unfinished"]
    if left := [each for each in left if each["goes_on"]]:
        raise InvariantError("nothing is left after resume", "nothing", left, done.tail)
    return f"{len(done.json['resumed'])} went on"


@kind(5)
def rerun(world: World, rng: random.Random, calm: Calm) -> str:
    row = ensure(world, rng, damaged=True)
    words = [word for word in ("--downstream", "--force") if rng.random() < 0.3]
    world.twice_is_fine |= "--force" in words
    done = world.dpr("rerun", row.id[: rng.choice((8, 12, 32))], "--json", *words, home=rng.choice(world.homes))
    world.check_use(row, done)
    if done.status == 0 and world.damaged.get(row.id, "").startswith(("dpr.config", "dpr.inputs")):
        raise InvariantError("an edited request is refused", "a refusal", world.damaged[row.id], done.tail)
    if done.status == 0 and not words and not world.hurt(row):
        [entry] = done.json["stages"]
        if entry["id"] not in [each.id for each in world.finished() if each.tags["dpr.key"] == row.tags["dpr.key"]]:
            raise InvariantError("a rerun of what is there reuses it", row.id, entry, done.tail)
    return f"{row.name} {' '.join(words)}"


@kind(2)
def sweep(world: World, rng: random.Random, calm: Calm) -> str:
    over = rng.choice(("reinforce.learning_rate=0.0001,0.0003", "seed=0,1", "reward.reference=0.34,0.5"))
    words = ["sweep", run_words(())[1], "--over", over, "--jobs", str(rng.choice((1, 1, 2))), "--json"]
    home, cut = rng.choice(world.homes), rng.random() < 0.4
    if cut:
        world.start(*words, home=home).send(signal.SIGKILL, rng.uniform(0.05, AMID), group=True).finish(-signal.SIGKILL)
    world.check_use(None, world.dpr(*words, home=home).expect("a sweep comes to its end", 0))
    return over + (", killed before" if cut else "")


TEXTS = (
    ("Start at 1, add 2.", "Steps: 1, 3. Result: 3."),
    ("</s><|endoftext|> \u202e", "<pad>\x1b[31m\x01"),
    ("{prompt}{system}", "\U0001f600" * 40),
)


@kind(3)
def score(world: World, rng: random.Random, calm: Calm) -> str:
    row, text = ensure(world, rng, "reward", damaged=True), rng.choice(TEXTS)
    done = world.dpr("score", row.id, "--json", "--text", *text, home=rng.choice(world.homes))
    world.check_use(row, done)
    if done.status == 0 and done.json != (known := calm.scores.setdefault((row.tags["dpr.key"], text), done.json)):
        raise InvariantError("one reward, one score", known, done.json, done.tail)
    return f"{text[0]!r}: {done.status}"


@kind(3)
def export(world: World, rng: random.Random, calm: Calm) -> str:
    """Whole, as the manifest says, or not at all; also where it was killed."""
    row = ensure(world, rng, "backbone", "sft", "reinforce", damaged=True)
    target = world.folder / f"export-{world.commands}"
    words = ["export", row.id, str(target), *(("--part", "0.5") if row.tags["dpr.stage"] == "sft" else ())]
    if rng.random() < 0.3:
        world.start(*words).send(signal.SIGKILL, rng.uniform(0.05, 0.5), group=True).finish(-signal.SIGKILL)
        check_export(world, row, target)
        shutil.rmtree(target, ignore_errors=True)
    done = world.dpr(*words, home=rng.choice(world.homes))
    world.check_use(row, done)
    check_export(world, row, target)
    if target.exists() != (done.status == 0) or any(world.folder.glob(".dpr-export-*")):
        raise InvariantError("an export is there, and nothing beside it", target, os.listdir(world.folder), done.tail)
    shutil.rmtree(target, ignore_errors=True)
    return f"{row.name}: {done.status}"


def check_export(world: World, row: Row, target: Path) -> None:
    if target.exists():
        wanted = {entry["sha256"] for entry in world.manifest(row)["files"]}
        there = {path.name: world.hash(path) for path in target.iterdir()}
        if "model.safetensors" not in there or not set(there.values()) <= wanted:
            raise InvariantError("an export is whole", sorted(wanted), there)


@kind(4)
def verify(world: World, rng: random.Random, calm: Calm) -> str:
    rows = {row.id for row in world.finished(damaged=True)}
    done = world.dpr("verify", "--all", "--json", home=rng.choice(world.homes))
    found = {each["id"]: each["sound"] for each in done.json}
    damaged = world.damaged.keys() & rows
    wrong = {run: world.damaged.get(run, "sound") for run in rows if found.get(run) is not (run not in damaged)}
    if wrong:
        raise InvariantError("verify names what is damaged, and only that", "that", wrong, done.tail)
    if damaged:
        done.expect("verify fails where anything is damaged", 1)
    return f"{len(rows)} artifacts, {len(damaged)} damaged"


@kind(3)
def gc(world: World, rng: random.Random, calm: Calm) -> str:
    home, unfinished = rng.choice(world.homes), rng.random() < 0.5
    done = world.dpr("gc", "--yes", "--json", *(["--unfinished"] if unfinished else []), home=home).expect(
        "gc cleans", 0
    )
    world.check_kept()
    left = [path.name for path in (home / "work").iterdir() if not path.name.startswith("tmp")]
    left += [path.name for path in (home / "locks").iterdir() if len(path.stem) >= 32]
    left += map(str, home.rglob("*.partial"))
    if left and unfinished and world.server is None:
        raise InvariantError("gc leaves nothing behind", "empty folders", left, done.tail)
    return f"{'all' if unfinished else 'what is ended'}: {len(done.json['pieces'])} pieces"


@kind(3)
def look(world: World, rng: random.Random, calm: Calm) -> str:
    """Lists and plans agree with the database and change nothing."""
    before, home = world.rows(), rng.choice(world.homes)
    listed = world.dpr("artifacts", "--json", home=home).expect("a list", 0).json
    seen = {each["id"] for each in listed if each["finished"]}
    if seen - world.damaged.keys() != {row.id for row in before if row.finished} - world.damaged.keys():
        raise InvariantError("the list is the database", [row.id for row in before if row.finished], listed)
    for row in [row for row in before if row.finished][:1]:
        # What is edited is named, and not shown.
        world.dpr("show", row.id[:16], home=home).expect("a view", *((0, 1) if row.id in world.damaged else (0,)))
    for words in run_words(recipe_for(world, rng), "--plan"), ["resume", "--plan"], ["gc", "--plan", "--unfinished"]:
        world.dpr(*words, home=home).expect("a view", 0)
    if before != world.rows():
        raise InvariantError("to look changes nothing", before, world.rows())
    return f"{len(listed)} runs"


@kind(5)
def side_by_side(world: World, rng: random.Random, calm: Calm) -> str:
    """The same recipe twice, and something else meanwhile; one of them may be killed."""
    recipe, _, words = resumable_run(world, rng)
    world.expected_of(recipe)
    first, second = (world.start(*words, home=home) for home in (world.homes[0], world.homes[-1]))
    other = rng.choice(("gc --yes --unfinished", "gc --yes", "verify --all", "artifacts", "resume"))
    time.sleep(rng.uniform(0, AMID))
    beside = world.start(*other.split(), home=rng.choice(world.homes))
    if kill := rng.random() < 0.4:
        first.send(signal.SIGKILL, rng.uniform(0.05, AMID), group=True)
    ended = [first.finish(*([-signal.SIGKILL] if kill else [])), second.finish()]
    beside.finish().expect("beside a run", *((0, 1) if "verify" in other else (0,)))
    for done in ended:
        if done.status >= 0:
            world.check_run(recipe, done)
    world.check_kept()
    return other + (", one killed" if kill else "")


@kind(6)
def damage(world: World, rng: random.Random, calm: Calm) -> str:
    """Damage a file of an artifact: `verify` names it."""
    row = ensure(world, rng)
    files = [
        row.folder / "MANIFEST.json",
        *sorted(path for path in (row.folder / "output").rglob("*") if path.is_file()),
    ]
    file, how = rng.choice(files), rng.choice(("flip", "truncate", "delete", "append", "folder", "link", "add"))
    if how == "add":
        # What people put beside a payload is theirs.
        file = files[-1]
    world.hurt_now(row, f"{how} of {file.relative_to(row.folder)}")
    change(file, how, rng)
    done = world.dpr("verify", row.id, home=rng.choice(world.homes)).expect(f"verify sees damage ({how})", 1)
    if (named := file.name[:12] if how != "add" else "extra.bin") not in "".join(done.out.split()):
        raise InvariantError("verify names the file", named, done.out, done.tail)
    return f"{row.name}: {world.damaged[row.id]}"


def change(file: Path, how: str, rng: random.Random) -> None:
    """With the time stamps that it had."""
    data, status = bytearray(file.read_bytes() or b"\0"), file.stat()
    file.unlink()
    at = rng.randrange(len(data))
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    if how == "folder":
        file.mkdir()
    elif how == "link":
        file.symlink_to(os.devnull)
    elif how != "delete":
        file.write_bytes(bytes(data[:at] if how == "truncate" else data + b"\0" * (how == "append")))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    if how == "add":
        file.with_name("extra.bin").write_bytes(b"x")


@kind(3)
def edit(world: World, rng: random.Random, calm: Calm) -> str:
    """Change a tag or a result of an artifact in the database: `verify` names it, nothing uses it."""
    row = ensure(world, rng)
    tags = "digest", "key", "stage", "version", "inputs", "config", "results", "name"
    tag = f"dpr.{rng.choice(tags)}"
    old = row.tags[tag]
    digits = [n for n, letter in enumerate(old) if letter.isdigit()] or [0]
    at = rng.choice(digits)
    new = None if rng.random() < 0.3 else f"{old[:at]}{'7' if old[at] != '7' else '8'}{old[at + 1 :]}"
    world.hurt_now(row, f"{tag}: {old[max(0, at - 20) :][:40]} -> {new and new[max(0, at - 20) :][:40]}")
    with closing(sqlite3.connect(world.database, timeout=30)) as database, database:
        database.execute("delete from tags where run_uuid = ? and key = ?", (row.id, tag))
        if new is not None:
            database.execute("insert into tags (run_uuid, key, value) values (?, ?, ?)", (row.id, tag, new))
    done = world.dpr("verify", "--all", "--json", home=rng.choice(world.homes))
    if {each["id"]: each["sound"] for each in done.json}.get(row.id, True):
        raise InvariantError(f"verify sees that {tag} was edited", "damaged", world.damaged[row.id], done.tail)
    return f"{row.name}: {world.damaged[row.id]}"


@kind(3)
def restore(world: World, rng: random.Random, calm: Calm) -> str:
    """An older database, or none, beside newer folders: `verify` tells of them, `gc` keeps them."""
    if world.server is not None or not world.database.exists():
        return "not here"
    before, older = {row.id for row in world.finished()}, world.folder / "older.db"
    keep = older.exists() and rng.random() < 0.7
    (shutil.copy if keep else os.remove)(*((older, world.database) if keep else (world.database,)))
    world.twice_is_fine = True
    world.damaged = {run: what for run, what in world.damaged.items() if not what.startswith("dpr.")}
    lost = before - {row.id for row in world.finished()}
    done = world.dpr("verify", "--all", "--json")
    if lost and not any(run[:8] in done.out + done.err for run in lost):
        raise InvariantError("verify tells of payloads that the database does not know", lost, done.out, done.tail)
    world.dpr("gc", "--yes", *(["--unfinished"] if rng.random() < 0.5 else [])).expect("gc cleans", 0)
    world.check_kept()
    if again := rng.random() < 0.5:
        world.dpr("verify", "--all", "--register", "--json")
        if missing := before - {row.id for row in world.finished()}:
            raise InvariantError("what was lost is taken back in", "all of it", missing)
    told = f"{'an older one' if keep else 'none'}, {len(lost)} artifacts newer{', taken back in' * again}"
    return f"{told}; {run(world, rng, calm)}"


@kind(2)
def move(world: World, rng: random.Random, calm: Calm) -> str:
    """A home goes to another place, or a copy of it does and the old one is gone."""
    if world.server is not None or not world.database.exists():
        return "not here"
    old, new = world.homes[0], world.folder / f"moved {world.commands} ünï"
    if rng.random() < 0.5:
        old.rename(new)
    else:
        shutil.copytree(old, new, symlinks=True)
        shutil.rmtree(old)
    world.homes[0] = new
    world.ever_finished = {run: new / "artifacts" / run / "artifacts" for run in world.ever_finished}
    return f"{look(world, rng, calm)}; {verify(world, rng, calm)}; {run(world, rng, calm)}"


@kind(4)
def full_disk(world: World, rng: random.Random, calm: Calm) -> str:
    """No file may grow beyond a random size; then the same command without that."""
    recipe, home, words = resumable_run(world, rng)
    size = int(2 ** rng.uniform(10, 20))
    done = world.dpr(*words, home=home, file_bytes=size)
    if done.status == 0:
        world.check_run(recipe, done)
    return f"files of {size} bytes: {done.status}, then " + go_on(world, rng, recipe, home, words)


@kind(4)
def clock(world: World, rng: random.Random, calm: Calm) -> str:
    """The clock jumps in the middle of a run, which may be killed after it, or is wrong from its beginning."""
    recipe, home, words = resumable_run(world, rng)
    by = rng.choice((-1, 1)) * rng.choice((3600, 86400, 400 * 86400, 30 * 365 * 86400))
    after = rng.choice((0.0, rng.uniform(0, AMID)))
    running = world.start(*words, home=home, clock=(after, by))
    if kill := rng.random() < 0.4:
        running.send(signal.SIGKILL, rng.uniform(0.1, AMID), group=True)
    done = running.finish(*([-signal.SIGKILL] if kill else []))
    if done.status >= 0:
        world.check_run(recipe, done)
    return f"by {by} s after {after:.1f} s, {done.status}, then " + go_on(world, rng, recipe, home, words)


@kind(2)
def prefect_dies(world: World, rng: random.Random, calm: Calm) -> str:
    """The temporary server of a run is killed at a random moment: it never decides the result."""
    recipe = recipe_for(world, rng)
    running = world.start(*run_words(recipe, "--json"), home=rng.choice(world.homes), own_prefect=True)
    servers: list[int] = []
    while not servers and running.process.poll() is None:
        servers = [number for number, words in running.processes().items() if "uvicorn" in words]
        time.sleep(0.1)
    time.sleep(rng.uniform(0, 4 * AMID))
    for number in servers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    world.check_run(recipe, running.finish())
    return f"{len(servers)} killed"


@kind(6)
def server_dies(world: World, rng: random.Random, calm: Calm) -> str:
    """The MLflow server of two hosts is killed, stopped or hangs in the middle of their runs, and comes back."""
    if world.server is None:
        return "not here"
    recipe, _, words = resumable_run(world, rng)
    world.expected_of(recipe)
    runs = [world.start(*words, home=home) for home in world.homes[: rng.randint(1, 2)]]
    time.sleep(rng.uniform(0.2, 2 * AMID))
    how, away = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)), rng.uniform(0.1, 5)
    world.server.send(how) if how == signal.SIGSTOP else world.server.stop(how)
    time.sleep(away)
    world.server.send(signal.SIGCONT) if how == signal.SIGSTOP else world.server.start()
    ended = [running.finish(limit=360) for running in runs]
    for home, done in zip(world.homes, ended, strict=False):
        if done.status == 1 and "mlflow" not in done.err.lower():
            raise InvariantError("an outage is called one", "MLflow in the error", done.err[-500:], done.tail)
        world.check_run(recipe, done if done.status == 0 else world.dpr(*words, home=home))
    return f"{how.name} for {away:.1f} s: {[done.status for done in ended]}"


GOOD = [
    {"id": f"r{n}", "question": f"Start at {n % 5}, add 1.", "response": f"Result: {(n + 1) % 5}."} for n in range(30)
]
ODD: tuple[Any, ...] = (
    *({"response": odd} for odd in ("\x1b[2J\x07\u202e\x00", "x" * 300_000, float("nan"), None, " ", [1], {"a": 1})),
    *({"question": odd} for odd in ("<s></s><|endoftext|><pad>[INST]{system}{prompt}", "\u0301" * 50, 3, "\ud800")),
    *({"id": odd} for odd in ("row-2", "r1", "", 7, True, 1e309, ["r"])),
    *(b"null", b"3", b'"text"', b"[]", b"{}", b"\r", b"\xff\xfe", b"[" * 100_000, b'{"id": "cut'),
    b'{"id": "a", "id": "b", "question": "q", "question": "q2", "response": "r"}',
    b'\xef\xbb\xbf{"id": "b", "question": "q", "response": "r"}',
)
CELLS = ('"open', 'clo"sed', '"', "a\tb", "caf\xe9", "\x00", "a" * 5000)


@kind(5)
def hostile_rows(world: World, rng: random.Random, calm: Calm) -> str:
    """A file of good rows with hostile ones among them: refused, or whatever is kept stands in it as one row."""
    form, share = rng.choice(("jsonl", "csv")), rng.choice((0, 1))
    file = world.folder / f"rows-{world.commands}.{form}"
    planted = (plant_lines if form == "jsonl" else plant_cells)(file, rng)
    words = ["rerun", ensure(world, rng, "subsample").id, "--json"]
    for setting in (f"source={{type: file, path: '{file}'}}", f"max_bad_share={share}", "max_characters=2000"):
        words += ["--set", setting]
    done = world.dpr(*words, home=rng.choice(world.homes))
    for row in world.finished("subsample"):
        if world.manifest(row)["config"]["source"].get("path") == str(file):
            for line in (row.folder / "output" / "demonstrations.jsonl").read_text().splitlines():
                kept = json.loads(line)
                if (kept["prompt"], kept["response"]) not in planted:
                    raise InvariantError("rows are what the file holds", "a row of the file", line[:300], done.tail)
    return f"{form}, share {share}: {done.status}"


def plant_lines(file: Path, rng: random.Random) -> set[tuple[Any, Any]]:
    lines = [json.dumps(row).encode() for row in GOOD]
    for odd in rng.choices(ODD, k=rng.randrange(6)):
        line = odd if isinstance(odd, bytes) else json.dumps(rng.choice(GOOD) | odd).encode()
        lines.insert(rng.randrange(len(lines)), line)
    file.write_bytes(rng.choice((b"\n", b"\r\n")).join(lines))
    planted: set[tuple[Any, Any]] = set()
    for line in file.read_bytes().split(b"\n"):
        with suppress(ValueError, RecursionError, AttributeError):
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            planted.add((str(row.get("question")), str(row.get("response"))))
    return planted


def plant_cells(file: Path, rng: random.Random) -> set[tuple[Any, Any]]:
    rows = [list(row.values()) for row in GOOD]
    for cell in rng.choices(CELLS, k=rng.randrange(3)):
        rng.choice(rows)[2] = cell
    header = rng.choice(("id,question,response", "id,question,response", "question,response,question"))
    file.write_text("\n".join([header, *(f'{row[0]},"{row[1]}",{row[2]}' for row in rows)]) + "\n", encoding="utf-8")
    return {(row[1], row[2]) for row in rows}


FIELDS = (
    *("seed", "name", "device", "methods", "report.title", "launch.processes", "backbone.width", "backbone.heads"),
    *("backbone.task.operations", "subsample.size", "subsample.template.text", "sft.learning_rate", "sft.checkpoints"),
    *("sft.ema_decay", "reward.reference", "reward.formula", "reinforce.algorithm.gamma", "reinforce.algorithm.type"),
    *("reinforce.iterations", "answer.temperature", "evaluation.benchmarks", "judge.bootstrap_samples"),
)
VALUES = (
    *("nan", "-1", "0", "1e309", "-.inf", "9" * 400, "0x" + "f" * 5000, "null", "''", "true", "[]", "{}", "[[[[1]]]]"),
    *("a: b: c", "\ufffd", "\x1b[31m", "&a [x, *a]", "!!python/object/apply:os.system [id]", "[" * 3000, "a" * 100_000),
    *(
        "2024-01-01",
        "1_0",
        "|\n x",
        "=",
        "[0.5, 0.5]",
        "{type: no}",
        "{type: lab, rows: 1e6}",
        "*",
        "$HOME",
        "99999999",
    ),
)


@kind(5)
def hostile_settings(world: World, rng: random.Random, calm: Calm) -> str:
    """A wrong value is refused in a sentence and in seconds; a plan runs nothing."""
    field, value, before = rng.choice(FIELDS), rng.choice(VALUES), world.rows()
    done = world.dpr(*run_words((f"{field}={value}",), "--plan"), home=rng.choice(world.homes), limit=60)
    if world.rows() != before:
        raise InvariantError("a plan runs nothing", before, world.rows(), done.tail)
    return f"{field}={value[:30]!r}: {done.status}"
