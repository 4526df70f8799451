"""The system under test: homes of one or two hosts with their database, `dpr` commands in them, and the invariants."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from deployments.servers import mlflow_server
from tasks.artifacts.identity import Manifest, files_below
from tests.forked import Forked

ROOT = Path(__file__).parents[2]
SECRET = "sk-soak/Planted+9d41c7b2e6f0"
LIMIT = 240.0
"""Seconds that no command on so small a recipe may take."""

STATUSES = (0, 1, 2, 130)
SETTLE = 10.0
"""Seconds in which what a command has started must have ended after it."""

RECIPE = Path(__file__).with_name("smallest.yaml")

Recipe = tuple[str, ...]
"""What is set on top of the smallest recipe."""


class InvariantError(Exception):
    """An invariant that did not hold."""

    def __init__(self, invariant: str, expected: object, seen: object, output: str = "") -> None:
        super().__init__(f"{invariant}: expected {expected}, saw {seen}")
        self.invariant, self.expected, self.seen, self.output = invariant, str(expected), str(seen)[:4000], output


class Done(NamedTuple):
    """A command that has ended."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.out)
        except ValueError:
            raise InvariantError("one JSON document", "a document on stdout", self.out[:500], self.tail) from None

    @property
    def tail(self) -> str:
        lines = [*self.out.splitlines()[-8:], *self.err.splitlines()][-30:]
        return "\n".join([f"$ dpr {' '.join(self.words)[:600]}  -> {self.status}", *lines])

    def expect(self, invariant: str, *statuses: int) -> "Done":
        if self.status not in statuses:
            raise InvariantError(invariant, f"exit status {' or '.join(map(str, statuses))}", self.status, self.tail)
        return self


class Row(NamedTuple):
    """A run in the database, read without the program under test."""

    id: str
    status: str
    folder: Path
    tags: dict[str, str]

    @property
    def name(self) -> str:
        return self.tags.get("dpr.name", "")

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED" and {"dpr.stage", "dpr.key", "dpr.digest"} <= self.tags.keys()


class Expected(NamedTuple):
    """What an undisturbed run of a recipe comes to."""

    digests: dict[str, str]
    metrics: dict[str, dict[str, float]]
    table: dict[str, Any]


def run_words(recipe: Recipe, *more: str) -> list[str]:
    return ["run", str(RECIPE), *(word for assignment in recipe for word in ("--set", assignment)), *more]


class Running:
    """A command in a process group of its own, with what it prints read as it comes."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], faults: Mapping[str, Any], scratch: Path) -> None:
        self.words, self.scratch = tuple(map(str, words)), scratch
        scratch.mkdir(parents=True)
        self.ready = scratch.with_name(scratch.name + ".ready")
        arguments = ["-m", "tests.soak.child", json.dumps({**faults, "ready": str(self.ready)}), *self.words]
        self._begun = time.monotonic()
        self.process = Forked(arguments, {**env, "TMPDIR": str(scratch)}, ROOT, new_session=True)
        self._texts = ["", ""]
        self._readers = [
            threading.Thread(target=self._read, args=(number,), daemon=True) for number in range(len(self._texts))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int) -> None:
        with suppress(ValueError, OSError), (self.process.stdout, self.process.stderr)[number] as stream:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
            while piece := stream.read(4096):
                self._texts[number] += piece

    def send(self, number: int, after: float, group: bool) -> Self:
        """Send a signal to it, or to all its processes, so many seconds after it began."""
        while not self.ready.exists() and self.process.poll() is None:
            time.sleep(0.005)
        until = time.monotonic() + after
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)
        return self

    def finish(self, *also: int, limit: float = LIMIT) -> Done:
        """Its end; `also`: exit statuses that are right besides the documented ones."""
        try:
            self.process.wait(max(0.0, limit - (time.monotonic() - self._begun)))
        except subprocess.TimeoutExpired:
            stacks = subprocess.run(
                ["ps", "-o", "pid,stat,wchan,args", "-s", str(self.process.pid)], capture_output=True
            )
            self.end_all(self.processes())
            raise InvariantError(
                "within the time limit", f"an end within {limit:.0f} s", stacks.stdout.decode(), self._done(-9).tail
            ) from None
        left, until = self.processes(), time.monotonic() + SETTLE
        while left and time.monotonic() < until:
            time.sleep(0.1)
            left = self.processes()
        self.end_all(left)
        for reader in self._readers:
            reader.join(5)
        done = self._done(self.process.returncode)
        if left:
            raise InvariantError("no orphans", "no process", "; ".join(left.values()), done.tail)
        if done.status not in (*STATUSES, *also):
            raise InvariantError("a documented exit status", (*STATUSES, *also), done.status, done.tail)
        if "Traceback (most recent" in done.err + done.out:
            raise InvariantError("no traceback", "a sentence", "a traceback", done.tail)
        if "(--debug shows where)" in done.err:
            raise InvariantError("errors are sentences", "a sentence", "the name of an exception", done.tail)
        if SECRET in done.out + done.err:
            raise InvariantError("no secret is shown", "none", "the planted key", done.tail)
        # Torch's cache has one name for all processes, and stays.
        files = [str(path) for path in self.scratch.iterdir() if not path.name.startswith("torchinductor_")]
        if done.status >= 0 and files:
            raise InvariantError("no temporary files", "none", files, done.tail)
        shutil.rmtree(self.scratch, ignore_errors=True)
        return done

    def _done(self, status: int) -> Done:
        return Done(self.words, status, *self._texts, time.monotonic() - self._begun)

    def processes(self) -> dict[int, str]:
        """Processes of its session, or with its folder for temporary files, that live."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                state, *_, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                ours = (
                    int(session) == self.process.pid or str(self.scratch).encode() in (entry / "environ").read_bytes()
                )
                if ours and state != "Z":
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(entry.name)] = f"{entry.name} {command[:200]}"
        return found

    @staticmethod
    def end_all(left: Mapping[int, str]) -> None:
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@dataclass
class World:
    """One or two homes that share a database, what was done to them, and what must hold of them."""

    folder: Path
    homes: list[Path]
    prefect: str
    calm: Any
    digests: dict[str, str]
    """By key, of every artifact seen so far in any world, but for reports, which hold links."""
    server: Any = None
    address: str = ""
    damaged: dict[str, str] = field(default_factory=dict)
    """What was done to which artifact."""
    manifests: dict[str, Any] = field(default_factory=dict)
    """Of what is damaged, as they were before."""
    ever_finished: dict[str, Path] = field(default_factory=dict)
    twice_is_fine: bool = False
    """After --force, after damage, and with two hosts."""
    recipes: list[Recipe] = field(default_factory=list)
    commands: int = 0
    _hashes: dict[Path, tuple[tuple[int, ...], str]] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, hosts: int, prefect: str, calm: Any, digests: dict[str, str]) -> Self:
        folder.mkdir()
        world = cls(folder, [folder / f"host-{n}" for n in range(1, hosts + 1)], prefect, calm, digests)
        if hosts > 1:
            options = ["--backend-store-uri", f"sqlite:///{folder}/server/runs.db"]
            options += ["--no-serve-artifacts", "--default-artifact-root", (folder / "shared").as_uri()]
            world.server, world.address = mlflow_server(folder / "server", *options)
            world.server.start()
            world.twice_is_fine = True
        return world

    def expected_of(self, recipe: Recipe) -> Expected:
        return self.calm.expected(recipe)  # type: ignore[no-any-return]

    def close(self) -> None:
        if self.server is not None:
            self.server.stop(signal.SIGKILL)

    @property
    def database(self) -> Path:
        return self.folder / "server" / "runs.db" if self.server is not None else self.homes[0] / "mlflow.db"

    def start(self, *words: str, home: Path | None = None, own_prefect: bool = False, **faults: Any) -> Running:
        self.commands += 1
        settings = ("DPR_", "PREFECT_", "MLFLOW_", "OPENAI_", "HF_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        env |= {"DPR_HOME": str(home or self.homes[0]), "OMP_NUM_THREADS": "1", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        env |= {"OPENAI_API_KEY": SECRET, "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1", "DPR_PATIENCE_SECONDS": "60"}
        env |= {"DPR_LEASE_SECONDS": "10"}
        env |= {"MLFLOW_TRACKING_URI": self.address} if self.address else {}
        env |= {} if own_prefect else {"PREFECT_API_URL": self.prefect}
        return Running(words, env, faults, self.folder / "tmp" / str(self.commands))

    def dpr(self, *words: str, home: Path | None = None, limit: float = LIMIT, **faults: Any) -> Done:
        """A command that nothing disturbs but what is asked for."""
        killed = [-signal.SIGKILL] if "die_at" in faults else []
        return self.start(*words, home=home, **faults).finish(*killed, limit=limit)

    def rows(self) -> list[Row]:
        if not self.database.exists():
            return []
        runs = "select run_uuid, status, artifact_uri from runs where lifecycle_stage = 'active' order by start_time"
        with closing(sqlite3.connect(self.database, timeout=30)) as database:
            tags: dict[str, dict[str, str]] = {}
            for run, name, value in database.execute("select run_uuid, key, value from tags"):
                tags.setdefault(run, {})[name] = value
            return [
                Row(run, status, self._local(run, uri), tags.get(run, {}))
                for run, status, uri in database.execute(runs)
            ]

    def _local(self, run: str, uri: str) -> Path:
        """Where a payload lies, wherever the home was when it was made."""
        if self.server is None:
            return self.homes[0] / "artifacts" / run / "artifacts"
        return Path(uri.removeprefix("file://"))

    def finished(self, *stages: str, damaged: bool = False) -> list[Row]:
        """In an order that the seed decides: by name and key, not by ID."""
        found = [row for row in self.rows() if row.finished and (damaged or row.id not in self.damaged)]
        return sorted(
            (row for row in found if not stages or row.tags["dpr.stage"] in stages),
            key=lambda row: (row.name, row.tags["dpr.key"]),
        )

    def manifest(self, row: Row) -> Any:
        """As it was before anybody damaged it."""
        return self.manifests.get(row.id) or json.loads((row.folder / "MANIFEST.json").read_text())

    def hurt_now(self, row: Row, what: str) -> None:
        """It is about to be damaged."""
        self.manifests[row.id] = self.manifest(row)
        self.damaged[row.id] = what
        self.twice_is_fine = True

    def hurt(self, row: Row) -> bool:
        """Whether it, or anything that it was made from, is damaged."""
        reached, queue = set(), [row.id]
        while queue:
            run = queue.pop()
            reached.add(run)
            folder = next((each for each in self.rows() if each.id == run), None)
            queue += [entry["id"] for entry in self.manifest(folder)["inputs"].values()] if folder else []
        return bool(reached & self.damaged.keys())

    def problems(self, folder: Path) -> list[str]:
        """How a payload differs from its manifest, hashed without the program's own cache."""
        try:
            manifest = json.loads((folder / "MANIFEST.json").read_text())
        except (OSError, ValueError) as error:
            return [f"manifest: {error}"]
        wanted = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
        found = {name: self.hash(path) for path, name in files_below(folder / "output")}
        return [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]

    def hash(self, path: Path) -> str:
        if path.is_symlink():
            return "a link"
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if (known := self._hashes.get(path)) is None or known[0] != stamp:
            known = self._hashes[path] = (stamp, hashlib.sha256(path.read_bytes()).hexdigest())
        return known[1]

    def check(self) -> None:
        """Database and folders agree, and nothing claims to be what it is not."""
        rows = {row.id: row for row in self.rows()}
        keys: dict[str, list[str]] = {}
        for row in rows.values():
            if not row.finished or row.id in self.damaged:
                continue
            name = f"{row.id[:8]} {row.tags.get('dpr.name')}"
            if problems := self.problems(row.folder):
                raise InvariantError(
                    "what is finished is whole", "the files of the manifest", f"{name}: {problems[:5]}"
                )
            manifest = Manifest.from_json((row.folder / "MANIFEST.json").read_text())
            if (manifest.digest(), manifest.key) != (row.tags["dpr.digest"], row.tags["dpr.key"]):
                raise InvariantError("database and folders agree", "the manifest's key and digest in the tags", name)
            for source in manifest.inputs.values():
                used = rows.get(source["id"])
                if used is not None and not used.finished and used.id not in self.damaged:
                    raise InvariantError(
                        "inputs are finished", "a finished artifact", f"{name} is built on {source['id']}"
                    )
            if row.tags["dpr.stage"] != "report":
                right = self.digests.setdefault(manifest.key, manifest.digest())
                if right != manifest.digest():
                    raise InvariantError("one key, one content", right, f"{manifest.digest()} of {name}, {row.folder}")
            keys.setdefault(manifest.key, []).append(name)
            self.ever_finished[row.id] = row.folder
        if not self.twice_is_fine and (twice := [names for names in keys.values() if len(names) > 1]):
            raise InvariantError("nothing is made twice", "one artifact a key", twice)

    def check_kept(self) -> None:
        """All that was ever finished, and that nobody damaged, is still there."""
        for run, folder in self.ever_finished.items():
            if run not in self.damaged and (problems := self.problems(folder)):
                raise InvariantError("gc keeps what is sound", "the payload", f"{run}: {problems[:5]}")

    def check_use(self, row: Row | None, done: Done) -> None:
        """What builds on an artifact succeeds, or is refused where that is damaged; damage is never built on."""
        if row is not None:
            done.expect("what is sound is used", *((0, 1, 2) if self.hurt(row) else (0,)))
        document = done.json if done.status == 0 and "{" in done.out[:1] else {}
        if used := [stage for stage in document.get("stages", []) if stage["id"] in self.damaged]:
            raise InvariantError("damage is never used", "another artifact", used, done.tail)

    def check_run(self, recipe: Recipe, done: Done) -> None:
        """A finished run has the artifacts, the metrics and the table of one that nobody disturbed."""
        document = done.expect("a command comes to its end", 0).json
        self.check_use(None, done)
        expected, rows = self.expected_of(recipe), {row.id: row for row in self.rows()}
        digests = {stage["name"]: rows[stage["id"]].tags["dpr.digest"] for stage in document["stages"]}
        metrics = {stage["name"]: lasting(stage["metrics"]) for stage in document["stages"]}
        digests = {name: digest for name, digest in digests.items() if name in expected.digests}
        for what, right, seen in (
            ("digests", expected.digests, digests),
            ("metrics", expected.metrics, metrics),
            ("table", expected.table, document["results"]),
        ):
            if seen != right:
                changed = {
                    name: (right.get(name), seen.get(name)) for name in right if right.get(name) != seen.get(name)
                }
                raise InvariantError(f"as undisturbed: {what}", "the same", changed or sorted(seen), done.tail)

    def secrets(self) -> Iterator[str]:
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and SECRET.encode() in path.read_bytes():
                    yield str(path)


def lasting(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "per_second" not in name}


@dataclass
class Calm:
    """A home that nobody disturbs, in which every recipe is run once."""

    world: World
    known: dict[Recipe, Expected] = field(default_factory=dict)
    scores: dict[Any, Any] = field(default_factory=dict)

    def expected(self, recipe: Recipe) -> Expected:
        if recipe not in self.known:
            done = self.world.dpr(*run_words(recipe, "--json")).expect("an undisturbed run", 0)
            self.world.check()
            digests = {row.id: row.tags["dpr.digest"] for row in self.world.finished()}
            stages = done.json["stages"]
            self.known[recipe] = Expected(
                {stage["name"]: digests[stage["id"]] for stage in stages if stage["stage"] != "report"},
                {stage["name"]: lasting(stage["metrics"]) for stage in stages},
                done.json["results"],
            )
        return self.known[recipe]
