"""Interleaved timing: programs that do the same work take turns, so that other load on the machine hits all alike.

Each has a process of its own (of Linux, whose accounts of processes are read), so that its peak of memory is its own.
"""

import argparse
import ctypes
import gc
import json
import logging
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

R = TypeVar("R")

OURS = "dense-path"
OTHERS = ("transformers", "trl")
SELF = Path("/proc/self")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Work = Callable[[], Sequence[int]]
"""What is measured. It says how many tokens each response had."""
Program = Callable[[int], Work]
"""Makes ready for a turn. Turn 0 warms up and may be smaller."""


@dataclass(frozen=True)
class Turn:
    """What one turn of one program took."""

    seconds: float
    """Of the processor: on one thread the wall's, less what other programs took."""
    lengths: Sequence[int]
    peak: int
    """Bytes of memory at the peak."""
    above: int
    """The same, above what the process held when it was ready."""


@dataclass(frozen=True)
class Timed:
    """The counted turns of each program."""

    turns: Mapping[str, Sequence[Turn]]

    def seconds(self, name: str) -> list[float]:
        """A token, in each turn."""
        return [turn.seconds / sum(turn.lengths) for turn in self.turns[name]]

    def ratio(self, *others: str, ours: str = OURS) -> float:
        """How many times as many tokens a second ours does as the fastest of the others, by medians."""
        fastest = self.fastest(*others)
        return statistics.median(self.seconds(fastest)) / statistics.median(self.seconds(ours))

    def fastest(self, *names: str) -> str:
        return min(names, key=lambda name: statistics.median(self.seconds(name)))

    def above(self, name: str) -> int:
        """Bytes above what was ready, at the highest peak."""
        return max(turn.above for turn in self.turns[name])

    def rows(self, case: str) -> list[dict[str, Any]]:
        """A line of a table for each program. Beside the ratio of the medians, to ours in the same type, stands that of
        the fastest turns, which a busy machine changes least."""
        rows = []
        for name in self.turns:
            ours, seconds = named(OURS, dtype_of(name)), self.seconds(name)
            rows.append(
                {
                    "case": case,
                    "program": name,
                    "tokens_per_second": 1 / statistics.median(seconds),
                    "ours_over_it": self.ratio(name, ours=ours),
                    "ours_over_it_at_best": min(seconds) / min(self.seconds(ours)),
                    "peak_megabytes": max(turn.peak for turn in self.turns[name]) / 1e6,
                    "megabytes_above_ready": self.above(name) / 1e6,
                    "seconds_per_token": seconds,
                }
            )
        return rows


def named(program: str, dtype: str = "float32") -> str:
    """Of the program, in a type: float32 goes without saying."""
    return program if dtype == "float32" else f"{program} {dtype}"


def dtype_of(name: str) -> str:
    return next((dtype for dtype in DTYPES if name == named(name.rpartition(" ")[0], dtype)), "float32")


def suffix(dtype: str) -> str:
    """Of the name of a ratio."""
    return "" if dtype == "float32" else f"_{dtype}"


def beside(other: str, dtype: str, dtypes: Sequence[str]) -> set[str]:
    """What a ratio is to: in float32 the same of the other, beside bfloat16 whichever of its types is the faster."""
    return {named(other, each) for each in ([dtype] if dtype == "float32" else dtypes)}


def in_turn(programs: Mapping[str, Program], repeats: int, by_children: Collection[str] = ()) -> Timed:
    """Each program makes ready and gives back its work, which alone is measured. The first turn is not counted. Of
    programs whose work is done by processes that they start, the memory is that of those."""
    turns: dict[str, list[Turn]] = {name: [] for name in programs}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_process()) for name in programs}
        for turn in range(repeats + 1):
            for name, program in programs.items():
                print(f"  turn {turn} of {repeats}: {name} ...", end=" ", file=sys.stderr, flush=True)
                with saying_who_ended(name):
                    found = processes[name].submit(taken, program, turn, name in by_children).result()
                print(f"{sum(found.lengths) / found.seconds:.0f} tokens a second", file=sys.stderr)
                if turn:
                    turns[name].append(found)
            check_equal_lengths({name: each[-1].lengths for name, each in turns.items() if each})
    return Timed(turns)


def alone(function: Callable[..., R], *arguments: Any) -> R:
    """What a function returns, from a process that takes its memory along."""
    with _process() as process, saying_who_ended(function.__name__):
        return process.submit(function, *arguments).result()


@contextmanager
def saying_who_ended(name: str) -> Iterator[None]:
    """Where a process ends in the middle of its work, say whose it was."""
    try:
        yield
    except BrokenProcessPool as error:
        sys.exit(
            f"the process of {name} was ended from outside ({error}). The usual reason is that memory ran out: stop "
            "other programs, or ask for fewer sequences, fewer rows or a smaller size"
        )


def _process() -> ProcessPoolExecutor:
    """It starts from the imports of the script, and from nothing that the script has done."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("forkserver"), begin)


def begin() -> None:
    """In a process of a benchmark: one thread, and an end with the script."""
    one_core()
    # Else it would wait for ever, and keep its memory, were the script killed.
    threading.Thread(target=_end_with_the_script, daemon=True).start()


def _end_with_the_script() -> None:
    script = multiprocessing.parent_process()
    assert script
    script.join()
    os._exit(1)


def taken(program: Program, turn: int, by_children: bool = False) -> Turn:
    """What a turn takes: time of this process and of those that it has started, memory of whichever do the work. Memory
    is given back before and after."""
    work = program(turn)
    _release()
    workers = list(family())[1:] if by_children else [SELF]
    for process in workers:
        (process / "clear_refs").write_text("5")  # forgets the peak so far
    before, started = memory("VmRSS", workers), processor_seconds()
    lengths = work()
    seconds, peak = processor_seconds() - started, memory("VmHWM", workers)
    del work
    _release()
    return Turn(seconds, lengths, peak, peak - before)


def _release() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def family() -> Iterator[Path]:
    """This process and those that it has started, in Linux's account."""
    found = [SELF]
    for process in found:
        yield process
        for thread in (process / "task").iterdir():
            found += [Path("/proc") / child for child in (thread / "children").read_text().split()]


def processor_seconds() -> float:
    """Of the family, with those that have ended."""
    own, *_ = each = [_ticks(process) for process in family()]
    # Linux's account is coarse; of this process itself there is a finer one.
    return time.process_time() + (sum(map(sum, each)) - sum(own[:2])) / os.sysconf("SC_CLK_TCK")


def _ticks(process: Path) -> list[int]:
    """For its user and for the system, and both of its children that have ended."""
    return [int(field) for field in (process / "stat").read_text().rpartition(")")[2].split()[11:15]]


def memory(what: str, processes: Sequence[Path]) -> int:
    """Bytes: VmRSS is what there is now, VmHWM the most there has been."""
    lines = [line for each in processes for line in (each / "status").read_text().splitlines()]
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def check_equal_lengths(lengths: Mapping[str, Sequence[int]]) -> None:
    """Fail where programs did not do the same work."""
    (first, expected), *others = lengths.items() if lengths else [("", ())]
    for name, theirs in others:
        assert sorted(theirs) == sorted(expected), (
            f"{name} did {len(theirs)} responses of {sum(theirs)} tokens and {first} {len(expected)} of "
            f"{sum(expected)}, or of other lengths, which is not the same work"
        )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    account = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", account.read_text() if account.exists() else "")
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "model": names[0].strip() if names else platform.processor(),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "processor": platform.machine(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in OTHERS if find_spec(name)},
    }


def _commit() -> str | None:
    """Of this checkout, with a plus where it has been changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.stdout.strip() or None


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table that people read."""
    lines = ["| case | program | tokens/s | ours over it | at best | peak, MB |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {row['case']} | {row['program']} | {row['tokens_per_second']:,.0f} "
        f"| {row['ours_over_it']:.2f} | {row['ours_over_it_at_best']:.2f} | {row['peak_megabytes']:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def one_core() -> None:
    """One thread, and no other program's log between the figures."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)
    for name in ("trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def arguments_for(description: str | None, sizes: Sequence[str], known: Sequence[str]) -> argparse.ArgumentParser:
    """What all benchmarks beside others are asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=sizes, choices=known)
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["float32"],
        choices=list(DTYPES),
        help="of activations; beside bfloat16 stands the faster of the other's types that are asked for",
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="turns of each program; medians are shown, which one turn has none of"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    return parser


def print_results(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """What a benchmark prints in the end."""
    if arguments.json:
        print(json.dumps({**results, "machine": machine(), "settings": vars(arguments)}, indent=2))
        return
    print(markdown(results["rows"]))
    print("\n" + "\n".join(f"{name}: {ratio:.2f}" for name, ratio in results["ratios"].items()))
