"""Soak test: random use, faults and damage, with invariants after every operation; what happens is decided by a seed.

python -m tests.soak --minutes 5 --seed 3
python -m tests.soak --seed 3 --first 17 --operations 4    # what a failure says reproduces it
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.soak.operations import KINDS  # noqa: E402
from tests.soak.world import Calm, InvariantError, World  # noqa: E402

WORLD = 16
"""Operations after which a new world begins; every third world has two hosts."""


@dataclass
class Figures:
    """What came of it."""

    seed: int
    operations: Counter[str] = field(default_factory=Counter)
    seconds_by_kind: Counter[str] = field(default_factory=Counter)
    failures_by_invariant: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    worlds: int = 0
    commands: int = 0
    artifacts_checked: int = 0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the operations")
    parser.add_argument("--minutes", type=float, default=10.0, help="no operation begins after these")
    parser.add_argument("--operations", type=int, help="how many at most")
    parser.add_argument("--first", type=int, default=1, help="number of the first operation")
    parser.add_argument("--only", action="append", choices=sorted(KINDS), help="only this kind, and what it needs")
    parser.add_argument("--report", type=Path, metavar="FILE", help="figures and failures, written after each of them")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the homes of failures are left")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dpr-soak-") as folder, prefect() as address:
        figures = soak(Path(folder), address, arguments)
    print(summary(figures))
    raise SystemExit(1 if figures.failures else 0)


@contextmanager
def prefect() -> Iterator[str]:
    """One temporary Prefect server for all commands but those whose own one is killed."""
    os.environ["PREFECT_LOGGING_LEVEL"] = os.environ["PREFECT_SERVER_LOGGING_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    with tempfile.TemporaryDirectory(prefix="dpr-soak-prefect-") as folder:
        os.environ["PREFECT_HOME"] = folder
        from prefect.settings import PREFECT_API_URL
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=200):
            yield str(PREFECT_API_URL.value())


def soak(folder: Path, address: str, arguments: argparse.Namespace) -> Figures:
    """Operations one after the other; a failure ends its world, and the next one begins afresh."""
    begun = time.monotonic()
    figures = Figures(arguments.seed)
    digests: dict[str, str] = {}
    calm = Calm(World.make(folder / "calm", 1, address, None, digests))
    calm.expected(())
    world, number, world_began = None, arguments.first - 1, arguments.first
    names = arguments.only or list(KINDS)
    try:
        while time.monotonic() - begun < 60 * arguments.minutes:
            number += 1
            if arguments.operations and number >= arguments.first + arguments.operations:
                break
            rng = random.Random(f"{arguments.seed}/{number}")
            if world is None or number - world_began >= WORLD:
                retire(world, figures)
                figures.worlds, world_began = figures.worlds + 1, number
                hosts = 2 if rng.random() < 1 / 3 else 1
                world = World.make(folder / f"world-{number}", hosts, address, calm, digests)
            name = rng.choices(names, [KINDS[each][0] for each in names])[0]
            started, told = time.monotonic(), ""
            try:
                told = KINDS[name][1](world, rng, calm)
                older = world.folder / "older.db"
                if not older.exists() and world.database.exists() and not world.damaged:
                    shutil.copy(world.database, older)
                world.check()
                figures.artifacts_checked += len(world.finished())
                if number - world_began == WORLD - 1 and (found := list(world.secrets())):
                    raise InvariantError("no secret is kept", "none", found)
            except Exception as problem:
                failed(figures, problem, name, number, world_began, arguments)
                told = f"FAILED: {str(problem)[:300]}"
                if arguments.keep:
                    shutil.copytree(
                        world.folder, arguments.keep / f"{arguments.seed}-{number}", symlinks=True, dirs_exist_ok=True
                    )
                retire(world, figures)
                world = None
            seconds = time.monotonic() - started
            figures.operations[name] += 1
            figures.seconds_by_kind[name] += round(seconds)
            figures.seconds = time.monotonic() - begun
            print(f"{figures.seconds:6.0f} s  {number:4}  {name:18} {seconds:5.1f} s  {told}", file=sys.stderr)
            write(figures, arguments.report)
        retire(world, figures)
    except BaseException:
        retire(world, figures)
        raise
    figures.seconds = time.monotonic() - begun
    write(figures, arguments.report)
    return figures


def retire(world: World | None, figures: Figures) -> None:
    if world is not None:
        figures.commands += world.commands
        world.close()
        shutil.rmtree(world.folder, ignore_errors=True)


def failed(
    figures: Figures, problem: Exception, name: str, number: int, began: int, arguments: argparse.Namespace
) -> None:
    """A small record of it."""
    if isinstance(problem, InvariantError):
        invariant, expected, seen, output = problem.invariant, problem.expected, problem.seen, problem.output
    else:
        invariant, expected, seen = "the soak test itself", "no error", repr(problem)
        output = "".join(traceback.format_exception(problem)[-6:])
    only = "".join(f" --only '{each}'" for each in arguments.only or [])
    again = f"--seed {arguments.seed} --first {began} --operations {number - began + 1}{only}"
    figures.failures_by_invariant[invariant] += 1
    figures.failures.append(
        {
            "seed": arguments.seed,
            "operation": number,
            "kind": name,
            "invariant": invariant,
            "expected": expected,
            "seen": seen,
            "again": again,
            "output": output.splitlines()[-31:],
        }
    )


def write(figures: Figures, report: Path | None) -> None:
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(vars(figures), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(figures: Figures) -> str:
    lines = [f"{'operation':20}{'times':>6}{'seconds':>9}"]
    lines += [f"{name:20}{n:6}{figures.seconds_by_kind[name]:9.0f}" for name, n in figures.operations.most_common()]
    lines += [
        "",
        f"seed {figures.seed}: {sum(figures.operations.values())} operations in {figures.worlds} worlds, "
        f"{figures.commands} commands, {figures.artifacts_checked} checks of an artifact, "
        f"{len(figures.failures)} failures, {figures.seconds:.0f} s",
    ]
    lines += [f"{n:4}  {invariant}" for invariant, n in figures.failures_by_invariant.most_common()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
