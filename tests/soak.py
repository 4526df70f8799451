"""Kill a pipeline again and again, mostly while it publishes, and see that it never makes a false artifact.

    python tests/soak.py --kills 50

Every life of the pipeline is a process group of its own that ends by SIGKILL: at a random moment, or at one of the
points below, when it is passed for the n-th time. After every kill everything that claims to be finished is hashed
again; at the end all digests must be those of a pipeline that nobody disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.forked import Forked  # noqa: E402

RECIPE = ROOT / "tests" / "flows" / "tiny.yaml"
STAGES = ("backbone", "sft", "reinforce", "answer")
EVERY_STEP = [f"{stage}.execution.checkpoint_steps=1" for stage in STAGES]

READY = "ready"
DEADLINE = 120.0

POINTS = {
    "half the files moved": 3,
    "before the manifest": 2,
    "half the manifest": 2,
    "before the digest": 3,
    "after the digest": 3,
    "after the status": 2,
    "before the work is sealed as done": 2,
    "after the work is sealed as done": 2,
    "half a state": 2,
    "after a state": 1,
    "results told": 1,
}
"""Where a life may end, and how often that is chosen; moments by the clock come on top."""

BY_THE_CLOCK = 8


@dataclass
class Figures:
    """What came of it."""

    kills: int = 0
    by_point: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    taken_up: int = 0
    """Attempts that a later life went on with, in the same run."""
    stages: int = 0
    steps: int = 0
    steps_redone: int = 0
    """Steps of metrics that were logged more than once."""
    bytes_written: int = 0
    bytes_redone: int = 0
    """Beyond what the undisturbed pipeline wrote."""
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and points")
    parser.add_argument("--json", action="store_true", help="one JSON document in place of lines")
    parser.add_argument("--life", nargs=2, metavar=("POINT", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.life:
        live(arguments.life[0], int(arguments.life[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), arguments.kills, arguments.seed, lambda line: print(line, file=sys.stderr))
    if arguments.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        print(
            f"{figures.kills} kills, {figures.taken_up} attempts taken up again, {figures.steps_redone} of "
            f"{figures.steps} steps done twice, {figures.bytes_redone:,} bytes written in vain, "
            f"{len(figures.violations)} violations, {figures.seconds:.0f} s"
        )
        print("\n".join(figures.violations))
    raise SystemExit(1 if figures.violations else 0)


def soak(folder: Path, kills: int, seed: int, tell: Callable[[str], None] = lambda line: None) -> Figures:
    """Run the pipeline undisturbed in one home, and among kills in another; start over there when it is done."""
    started = time.monotonic()
    figures, rng = Figures(), random.Random(seed)
    calm = folder / "calm"
    life = Life(calm, "never", 1)
    if life.wait() != 0:
        raise RuntimeError(f"the undisturbed pipeline failed:\n{life.errors()}")
    expected, alone = digests(calm), life.written
    length = life.seconds
    round_number, status = 0, 0
    while figures.kills < kills and status == 0:
        round_number += 1
        home = folder / f"round-{round_number}"
        written = 0
        while True:
            enough = figures.kills >= kills
            point, number = ("never", 1) if enough else choose(rng)
            life = Life(home, point, number)
            status = life.wait(rng.uniform(0, length) if point == "clock" else DEADLINE)
            figures.lives += 1
            written += life.written
            figures.violations += violations(home)
            if status == -signal.SIGKILL:
                figures.kills += 1
                figures.by_point[point] += 1
                tell(f"kill {figures.kills} of {kills}: {point}" + (f", time {number}" if number > 1 else ""))
            elif status == 0:
                break
            else:
                figures.violations.append(f"a life ended with status {status}:\n{life.errors()[-2000:]}")
                break
        figures.bytes_written += written
        figures.bytes_redone += max(0, written - alone)
        tally(home, figures)
        if (found := digests(home)) != expected:
            changed = sorted(name for name in expected if found.get(name) != expected[name])
            figures.violations.append(f"round {round_number} ended with other digests: {', '.join(changed)}")
        shutil.rmtree(home)
    figures.seconds = time.monotonic() - started
    return figures


def choose(rng: random.Random) -> tuple[str, int]:
    """A point and which passing of it, or `clock`."""
    names = [*POINTS, "clock"]
    point = rng.choices(names, [*POINTS.values(), BY_THE_CLOCK])[0]
    return point, rng.randint(1, 4)


class Life:
    """The pipeline in a process group of its own."""

    def __init__(self, home: Path, point: str, number: int) -> None:
        home.mkdir(exist_ok=True)
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("DPR_", "PREFECT_", "MLFLOW_"))}
        environment = {**inherited, "DPR_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self._process = Forked([__file__, "--life", point, number], environment, new_session=True)
        self.written = 0
        self.seconds = 0.0

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its status, once it has ended or, so many seconds after its imports, been killed."""
        self._process.stdout.readline()
        started = time.monotonic()
        while self._process.poll() is None:
            self._look()
            if time.monotonic() - started > seconds:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            time.sleep(0.01)
        self.seconds = time.monotonic() - started
        return self._process.returncode

    def _look(self) -> None:
        """How many bytes it has written so far."""
        try:
            told = Path(f"/proc/{self._process.pid}/io").read_text()
        except OSError:
            return
        self.written = next((int(line.split()[1]) for line in told.splitlines() if line.startswith("wchar")), 0)

    def errors(self) -> str:
        return self._process.stderr.read()


def violations(home: Path) -> list[str]:
    """Everything that claims to be finished and is not sound, or is built on what is not finished."""
    store = opened(home)
    found = []
    records = {record.id: record for record in store.records()}
    for record in records.values():
        if record.finished:
            found += [f"{record.title}: {problem}" for problem in store.verify(record.id)]
            found += [
                f"{record.title} is built on {source[:8]}, which is not finished"
                for source in record.inputs.values()
                if not records[source].finished
            ]
    twice = [key for key, n in Counter(r.key for r in records.values() if r.finished).items() if n > 1]
    return found + [f"{key[:8]} was made {twice.count(key) + 1} times" for key in twice]


def digests(home: Path) -> dict[str, str | None]:
    return {record.name: record.digest for record in opened(home).records() if record.finished}


def tally(home: Path, figures: Figures) -> None:
    """How much was done twice."""
    store = opened(home)
    for record in store.records():
        figures.stages += 1
        run = store._client.get_run(record.id)
        figures.taken_up += int(run.data.tags.get("dpr.taken_up", "0"))
        histories = [store._client.get_metric_history(record.id, name) for name in run.data.metrics]
        steps = [Counter(entry.step for entry in history) for history in histories]
        if steps:
            longest = max(steps, key=len)
            figures.steps += len(longest)
            figures.steps_redone += sum(count - 1 for count in longest.values())


def opened(home: Path) -> Any:
    os.environ["DPR_HOME"] = str(home)
    from tasks.artifacts.store import Store

    return Store.open()


def live(point: str, number: int) -> None:
    """One life: every stage of the pipeline, with a trap at one point."""
    import torch

    from dpr_core.config.base import override, parse
    from dpr_core.config.pipeline import PipelineConfig
    from flows import recipes, wiring
    from tasks.graph import in_order, resolved
    from tasks.run_stage import Outcome, StageJob, run_job

    torch.set_num_threads(1)
    config = parse(PipelineConfig, override(recipes.load(str(RECIPE)).model_dump(mode="json"), EVERY_STEP), "tiny")
    trap(point, number)
    print(READY, flush=True)
    outcomes: dict[str, Outcome] = {}
    for node in in_order(wiring.nodes(config)):
        inputs = resolved(node, outcomes)
        outcomes[node.name] = run_job(StageJob(node.stage, node.name, node.config, inputs, None))


def trap(point: str, number: int) -> None:
    """Die at the n-th passing of a point."""
    import dpr_core.state
    import tasks.artifacts.stage_run
    import tasks.running.stage_workdir
    from tasks.artifacts.mlflow_client import MlflowClient
    from tasks.running.stage_workdir import StageWorkdir

    passed = 0

    def reached() -> bool:
        nonlocal passed
        passed += 1
        return passed == number

    def die() -> None:
        os.killpg(os.getpgid(0), signal.SIGKILL)

    def around(owner: Any, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                before(*args, **kwargs)
            result = original(*args, **kwargs)
            if after is not None:
                after(*args, **kwargs)
            return result

        setattr(owner, name, wrapped)

    def half_moved(directory: Path, target: Path) -> None:
        if reached():
            partial = target.with_name(target.name + ".partial")
            partial.mkdir(parents=True)
            first = next(path for path in sorted(directory.rglob("*")) if path.is_file())
            (partial / first.name).write_bytes(first.read_bytes()[: first.stat().st_size // 2])
            die()

    def half_state(state: Any, folder: Path, *ranks: int) -> None:
        if reached():
            (folder / "state.safetensors").write_bytes(b"half")
            die()

    def on(condition: Callable[..., bool]) -> Callable[..., None]:
        def maybe(*args: Any, **kwargs: Any) -> None:
            if condition(*args, **kwargs) and reached():
                die()

        return maybe

    def is_manifest(client: Any, run: str, text: str, path: str) -> bool:
        return path == tasks.artifacts.stage_run.MANIFEST

    def half_manifest(client: Any, run: str, text: str, path: str) -> None:
        if is_manifest(client, run, text, path) and reached():
            root = Path(os.environ["DPR_HOME"]) / "artifacts" / run / "artifacts"
            (root / path).write_text(text[: len(text) // 2])
            die()

    def is_digest(client: Any, run: str, name: str, value: str) -> bool:
        return name == "dpr.digest"

    def always(*args: Any, **kwargs: Any) -> bool:
        return True

    def client_method(name: str) -> None:
        """MLflow's methods are looked up by name; give the class ones of its own that can be wrapped."""

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return MlflowClient.__getattr__(self, name)(*args, **kwargs)

        setattr(MlflowClient, name, call)

    for name in ("log_text", "set_tag", "set_terminated"):
        client_method(name)
    match point:
        case "half the files moved":
            around(tasks.artifacts.stage_run, "_move", half_moved, None)
        case "before the manifest":
            around(MlflowClient, "log_text", on(is_manifest), None)
        case "half the manifest":
            around(MlflowClient, "log_text", half_manifest, None)
        case "before the digest":
            around(MlflowClient, "set_tag", on(is_digest), None)
        case "after the digest":
            around(MlflowClient, "set_tag", None, on(is_digest))
        case "after the status":
            around(MlflowClient, "set_terminated", None, on(always))
        case "before the work is sealed as done":
            around(StageWorkdir, "mark_done", on(always), None)
        case "after the work is sealed as done":
            around(StageWorkdir, "mark_done", None, on(always))
        case "half a state":
            around(dpr_core.state, "write", half_state, None)
        case "after a state":
            around(StageWorkdir, "save_state", None, on(always))
        case "results told":
            around(tasks.artifacts.stage_run.StageRun, "results", None, on(always))


if __name__ == "__main__":
    main()
