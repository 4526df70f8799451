"""Orchestration overhead: SFT as a bare function, as a stage, and as a Prefect flow of that one stage.

    python perf/orchestration.py --size small --steps 16

All three load the same network and demonstrations, train for as many steps and write the same weights, which is checked
byte by byte. A stage also hashes what goes in and what comes out, keeps metrics in MLflow (SQLite) and publishes; a
flow also tells Prefect's temporary server. Runs of a single step say what a stage costs whatever its length; those of
`--steps` say what share that is. Time is the wall's, since orchestration also waits; that of this process's processor
stands beside it. What a process pays once, imports and starting the server, is apart.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core import hashing
from dpr_core.config.data import FileSourceConfig, SubsampleConfig, TemplateConfig
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.training import SFTConfig
from dpr_core.data import subsample
from dpr_core.data.demonstrations import encode_demonstrations
from dpr_core.data.rows import Demonstration
from dpr_core.data.template import TextRenderer
from dpr_core.models.checkpoints import load_backbone, save
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training.sft_loop import fine_tune, total_steps
from dpr_core.training.trainer import Trainer
from perf.side_by_side import machine, one_core
from perf.sizes import SIZES, network, ragged, word_tokenizer

BARE = "function"
BATCH = 16
TEMPLATE = TemplateConfig(text="{system}{prompt}")
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class OrchestrationCost:
    """Seconds of one program, of each repeat."""

    wall: list[float]
    processor: list[float]


@dataclass(frozen=True)
class StageShape:
    """The demonstrations, the artifact that has them, and what to learn from them."""

    rows: list[Demonstration]
    data: str
    config: SFTConfig


def bare(work: StageShape, folder: Path) -> Path:
    """What a script would do; returns where the weights are."""
    config = work.config
    assert config.backbone is not None
    model, tokenizer = load_backbone(config.backbone)
    sequences = encode_demonstrations(
        tokenizer, TextRenderer(TEMPLATE), work.rows, config.max_prompt_tokens, config.max_response_tokens
    ).sequences
    trainer = Trainer(Policy(model), config, total_steps(len(sequences), config), config.execution)
    fine_tune(trainer, sequences, config, lambda fraction: save(model, tokenizer, folder), InMemoryRecorder())
    return folder


def stage(work: StageShape) -> Path:
    """As `dpr` makes a stage, without Prefect."""
    from tasks.run_job import run_job
    from tasks.run_stage import StageJob

    made = run_job(StageJob("sft", "sft", work.config, {"data": work.data}, None, datetime.now(UTC)))
    return _published(made.id)


def flow(work: StageShape) -> Path:
    """As `dpr` runs a flow of one stage."""
    from flows.pipeline import single_stage
    from flows.requests import StageRequest

    settings = work.config.model_dump(mode="json")
    request = StageRequest(stage="sft", config=settings, inputs={"data": work.data}, force=True)
    document = single_stage(request)
    return _published(document["stages"][0]["id"])


def _published(artifact: str) -> Path:
    return Path(os.environ["DPR_HOME"]) / "artifacts" / artifact / "artifacts" / "output" / "checkpoints" / "1.0"


def prepared(size: str, steps: int, folder: Path, backbone: PretrainedBackboneConfig) -> StageShape:
    """Demonstrations for so many steps, as an artifact of a subsample stage."""
    from tasks.run_job import run_job
    from tasks.run_stage import StageJob

    sequences = ragged(BATCH * steps, size)
    texts = [(" ".join(map(str, s.prompt)), " ".join(map(str, s.response[:-1]))) for s in sequences]
    file = folder / f"demonstrations-{steps}.jsonl"
    rows = ({"id": str(i), "question": prompt, "response": text} for i, (prompt, text) in enumerate(texts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSourceConfig(path=str(file))
    drawn = SubsampleConfig(source=source, size=len(texts), template=TEMPLATE)
    made = run_job(StageJob("subsample", f"{steps} steps", drawn, {}, None))
    listed = subsample.read(_payload(made.id)).demonstrations
    config = SFTConfig(backbone=backbone, batch_size=BATCH, learning_rate=1e-4, checkpoints=(1.0,))
    return StageShape(listed, made.id, config)


def _payload(artifact: str) -> Path:
    return Path(os.environ["DPR_HOME"]) / "artifacts" / artifact / "artifacts" / "output"


def in_turn(programs: Mapping[str, Callable[[], Path]], repeats: int) -> dict[str, OrchestrationCost]:
    """Each program once in every round, of which the first is not counted. All must have made the same weights."""
    costs = {name: OrchestrationCost([], []) for name in programs}
    for turn in range(repeats + 1):
        made = set()
        for name, program in programs.items():
            wall, processor = time.perf_counter(), time.process_time()
            folder = program()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            made.add(hashing.hash_file(folder / WEIGHTS))
            if turn:
                costs[name].wall.append(wall)
                costs[name].processor.append(processor)
        assert len(made) == 1, "the programs do not make the same weights"
    return costs


def rows_of(steps: int, costs: Mapping[str, OrchestrationCost]) -> list[dict[str, Any]]:
    """A line for each program: its medians, and by how much they are above the bare function's. Beside the ratio of the
    medians stands that of the fastest rounds, which a busy machine changes least."""
    own = costs[BARE]
    return [
        {
            "steps": steps,
            "program": name,
            "seconds": statistics.median(cost.wall),
            "processor_seconds": statistics.median(cost.processor),
            "over_bare": statistics.median(cost.wall) / statistics.median(own.wall),
            "over_bare_at_best": min(cost.wall) / min(own.wall),
            "processor_over_bare": statistics.median(cost.processor) / statistics.median(own.processor),
            "seconds_more": above(cost.wall, own.wall),
            "processor_seconds_more": above(cost.processor, own.processor),
            "wall": cost.wall,
            "processor": cost.processor,
        }
        for name, cost in costs.items()
    ]


def above(one: Sequence[float], other: Sequence[float]) -> float:
    """The median over rounds of how much longer one took than the other in the same round."""
    return statistics.median(mine - theirs for mine, theirs in zip(one, other, strict=True))


def markdown(results: Mapping[str, Any]) -> str:
    lines = [
        "| steps | program | seconds | over the function's | at best | more | processor: seconds | over | more |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['steps']} | {row['program']} | {row['seconds']:.2f} | {row['over_bare']:.3f} "
            f"| {row['over_bare_at_best']:.3f} | {row['seconds_more']:.2f} | {row['processor_seconds']:.2f} "
            f"| {row['processor_over_bare']:.3f} | {row['processor_seconds_more']:.2f} |"
        )
    lines.append("")
    lines += [f"{name}: {seconds:.2f} s, once a process" for name, seconds in results["once"].items()]
    lines += [
        f"{name}: at most 3% of a run from {seconds:.0f} s on"
        for name, seconds in results["three_percent_from"].items()
        for name, seconds in results["three_percent_from"].items()
    ]
    return "\n".join(lines)


def measured(size: str, steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Both lengths of run, after what is paid once."""
    once: dict[str, float] = {}
    os.environ["DPR_HOME"] = str(folder / "home")
    started = time.perf_counter()
    from tasks.artifacts.store import Store

    home = Store.open().home
    once["import MLflow, and make its database"] = time.perf_counter() - started
    started = time.perf_counter()
    from flows import embedded

    embedded.prepare(home)
    embedded.start_server()
    import flows.pipeline  # noqa: F401

    once["import Prefect, and start its server"] = time.perf_counter() - started

    save(network(size), word_tokenizer(size), folder / "backbone")
    backbone = PretrainedBackboneConfig(name=str(folder / "backbone"), dtype="float32")
    rows: list[dict[str, Any]] = []
    for length, rounds in ((1, 3 * repeats), (steps, repeats)):
        work = prepared(size, length, folder, backbone)
        programs = {
            BARE: lambda work=work: bare(work, folder / "bare"),
            "stage": lambda work=work: stage(work),
            "flow": lambda work=work: flow(work),
        }
        rows += rows_of(length, in_turn(programs, rounds))
    return {"once": once, **summary(size, rows)}


def summary(size: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ratios are of the longest runs; what a stage costs whatever its length is from the shortest."""
    shortest, longest = min(row["steps"] for row in rows), max(row["steps"] for row in rows)
    fixed = {row["program"]: row["seconds_more"] for row in rows if row["steps"] == shortest and row["program"] != BARE}
    whole = {row["program"]: row for row in rows if row["steps"] == longest and row["program"] != BARE}
    return {
        "ratios": {f"orchestration_{name}_over_bare_{size}": row["over_bare"] for name, row in whole.items()},
        "seconds_a_stage": fixed,
        "three_percent_from": {name: seconds / 0.03 for name, seconds in fixed.items()},
        "rows": list(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=32, help="of the longer runs, of 16 sequences each")
    parser.add_argument("--repeats", type=int, default=2, help="of the longer runs; three times as many of the shorter")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    logging.getLogger("dense_path").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        results = measured(arguments.size, arguments.steps, arguments.repeats, Path(folder)) | {"machine": machine()}
    print(json.dumps(results, indent=2) if arguments.json else markdown(results))


if __name__ == "__main__":
    main()
