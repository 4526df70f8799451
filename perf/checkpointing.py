"""Overhead of checkpointing: bytes of a state, the seconds to write, hash and read it, and peak memory, as Markdown.

    python perf/checkpointing.py --width 256 --layers 8 --processes 1 2 4

The network has random weights and has taken one step of SFT, so that its optimizer's moments are there; several
processes share it with FSDP. Memory is by how much the process that grows most grows while it saves states, and while
one that has just begun takes them up: its own, and with mapped files, which the system drops when it needs the room.
The last column is the share of a run's time that goes into states when one is kept every so many minutes.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core import distributed
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.training.trainer import Trainer
from tasks.running.stage_workdir import StageWorkdir, format_bytes

ROWS = [TokenSequence(tuple(range(3, 13)), tuple(range(13, 32))) for _ in range(8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="of the network; a head is 32 wide")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5, help="states kept; medians are shown")
    parser.add_argument(
        "--minutes", type=float, default=ExecutionConfig().checkpoint_minutes, help="between two states"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--folder", type=Path, help="where the states are written; their disk is what is measured")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        row = PARTS[arguments.part](arguments)
        if distributed.rank() == 0:
            print(json.dumps(row))
        return
    rows = [measured(count, arguments) for count in arguments.processes]
    print(json.dumps(rows, indent=2) if arguments.json else markdown(rows))


def measured(processes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What so many processes need to keep states, and as many others to go on from the last."""
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        row = {"processes": processes} | launched(processes, "keep", folder) | launched(processes, "go on", folder)
    finally:
        shutil.rmtree(folder)
    return row | {
        "minutes_between": arguments.minutes,
        "share": row["seconds_to_keep"] / (60 * arguments.minutes),
    }


def launched(processes: int, part: str, folder: Path) -> dict[str, Any]:
    """This program again, in so many processes; returns what the first of them says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--folder", str(folder)]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [each.communicate()[0] for each in started]
    if any(each.returncode for each in started):
        raise SystemExit(f"one of {processes} processes failed")
    found: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return found


def keep(arguments: argparse.Namespace) -> dict[str, Any]:
    trainer = network(arguments)
    trainer.step(ROWS, SupervisedFineTuning())
    workdir = StageWorkdir(arguments.folder / "bench")
    if distributed.rank() == 0:
        workdir.open("benchmark")
    size, seconds = 0, []
    with growth() as grown:
        for step in range(1, arguments.repeats + 1):
            distributed.all_gather([0])
            started = time.perf_counter()
            size = workdir.save_state(step, step, trainer.state)
            seconds.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in trainer.module.parameters())
    return {
        "parameters": parameters,
        "bytes": size,
        "seconds_to_keep": statistics.median(seconds),
        **worst(grown, "to_keep"),
    }


def go_on(arguments: argparse.Namespace) -> dict[str, Any]:
    trainer = network(arguments)
    workdir = StageWorkdir(arguments.folder / "bench")
    seconds: list[float] = []
    with growth() as grown:
        for _ in range(arguments.repeats):
            distributed.all_gather([0])
            started = time.perf_counter()
            saved = workdir.latest_state()
            assert saved is not None
            trainer.load_state(saved.read())
            seconds.append(time.perf_counter() - started)
    return {"seconds_to_read": statistics.median(seconds), **worst(grown, "to_read")}


PARTS = {"keep": keep, "go on": go_on}


@contextmanager
def growth() -> Iterator[dict[str, int]]:
    """By how much this process's memory has grown at most, in bytes: its own, and with the files that are mapped."""
    most, before, done = {"own": 0, "mapped": 0}, resident(), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for name, value in resident().items():
                most[name] = max(most[name], value - before[name])

    watching = threading.Thread(target=watch)
    watching.start()
    yield most
    done.set()
    watching.join()


def resident() -> dict[str, int]:
    """As the kernel has it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    own, files = (1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return {"own": own, "mapped": own + files}


def worst(grown: dict[str, int], what: str) -> dict[str, int]:
    """Of all processes."""
    every = distributed.all_gather([dict(grown)])
    return {f"{name}_{what}": max(each[name] for each in every) for name in grown}


def network(arguments: argparse.Namespace) -> Trainer:
    """A trainer of this process's share of a new network."""
    width = arguments.width
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=arguments.layers,
            num_attention_heads=max(1, width // 32),
            num_key_value_heads=max(1, width // 32),
            max_position_embeddings=128,
            tie_word_embeddings=True,
        )
    )
    settings = OptimizerConfig(learning_rate=1e-4, batch_size=len(ROWS))
    processes = distributed.world_size()
    launch = LaunchConfig(processes=processes, strategy="fsdp" if processes > 1 else "ddp")
    return Trainer(Policy(model), settings, total_steps=10, execution=ExecutionConfig(launch=launch))


def markdown(rows: list[dict[str, Any]]) -> str:
    share = f"of the time, every {rows[0]['minutes_between']:g} min"
    columns = ["processes", "parameters", "a state", "seconds to keep it", "memory", "seconds to read it", "memory"]
    lines = [
        [
            f"{row['processes']}",
            f"{row['parameters'] / 1e6:.1f}M",
            format_bytes(row["bytes"]),
            f"{row['seconds_to_keep']:.2f}",
            memory(row, "to_keep"),
            f"{row['seconds_to_read']:.2f}",
            memory(row, "to_read"),
            f"{100 * row['share']:.2g}%",
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [[*columns, share], ["--:"] * 8, *lines])


def memory(row: dict[str, Any], what: str) -> str:
    return f"{format_bytes(row[f'own_{what}'])} ({format_bytes(row[f'mapped_{what}'])})"


if __name__ == "__main__":
    main()
