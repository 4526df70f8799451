"""Discrete-event simulation of a recipe on work pools: how long the GPU workers idle where one flow run holds a worker
from its beginning to its end, and where every stage is placed on a pool of its own.

    python perf/idle_gpus.py
    python perf/idle_gpus.py --write

Hours of the stages that run networks are the planner's (`dpr plan`), each GPU worker a node of --gpus-each GPUs that
share a stage; a judge's or rater's are --judge-hours, which nothing computes: a batch is waited for. All other stages
take no time. The scheduler is the pipelines' own (tasks/schedule.py) with its clock and its pools replaced: a pool
hands what is ready to its workers in the order in which it came. A flow run of before makes a pipeline's stages one
after another; each backbone has one, and they begin together.

--write keeps the results in perf/results/idle-gpus.json and puts the table into docs/performance.md.
"""

import argparse
import heapq
import itertools
import json
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.config.base import StageConfig, override, parse
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.experiments.points import Study
from dpr_core.planning.hours import UTILISATION, gpu_named
from dpr_core.reporting.tables import Table
from flows import recipes, wiring
from flows.merging import MergedStudies
from flows.planning import PlanTarget, node_hours
from tasks import schedule
from tasks.graph import Node, sources
from tasks.run_stage import Outcome

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results" / "idle-gpus.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- idle_gpus:begin -->", "<!-- idle_gpus:end -->"

RECIPE = "paper-table1"
BACKBONES = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B", "mistralai/Mistral-7B-v0.1", "google/gemma-3-4b-pt")
GPU, CPU = "gpu", "cpu"


@dataclass(frozen=True)
class Stage:
    """A node of a graph, where it is to be done, and how long it takes there."""

    node: Node
    pool: str
    hours: float


@dataclass
class WorkPools(Executor):
    """Work pools with a clock of their own: flow runs start in the order in which they came, as slots become free."""

    slots: dict[str, int]
    stages: Mapping[str, Stage]
    now: float = 0.0
    held: dict[str, float] = field(default_factory=dict)
    """Hours of slots, by pool."""
    last: dict[str, float] = field(default_factory=dict)
    """When the last flow run of each pool ended."""

    def __post_init__(self) -> None:
        self._free = dict(self.slots)
        self._queues: dict[str, deque[tuple[Stage, Future[Outcome], Outcome]]] = {pool: deque() for pool in self.slots}
        self._under_way: list[tuple[float, int, Stage, Future[Outcome], Outcome]] = []
        self._numbers = itertools.count()

    def submit(self, fn: Any, /, *given: Any, **named: Any) -> "Future[Outcome]":
        """What is to be done is only said here; it has its outcome once its hours are over."""
        outcome: Outcome = fn(*given, **named)
        future: Future[Outcome] = Future()
        stage = self.stages[outcome.name]
        self._queues[stage.pool].append((stage, future, outcome))
        self._start()
        return future

    def _start(self) -> None:
        for pool, queue in self._queues.items():
            while queue and self._free[pool]:
                self._free[pool] -= 1
                stage, future, outcome = queue.popleft()
                heapq.heappush(self._under_way, (self.now + stage.hours, next(self._numbers), stage, future, outcome))

    def wait(self, futures: Iterable["Future[Outcome]"], return_when: str) -> SimpleNamespace:
        """In place of `concurrent.futures.wait`: the clock goes on to the next end."""
        self.now, _, stage, future, outcome = heapq.heappop(self._under_way)
        self.held[stage.pool] = self.held.get(stage.pool, 0) + stage.hours
        self.last[stage.pool] = self.now
        self._free[stage.pool] += 1
        self._start()
        future.set_result(outcome)
        return SimpleNamespace(done={future})


def simulated(stages: Sequence[Stage], slots: Mapping[str, int]) -> WorkPools:
    """The pools after the scheduler has run the graph of these stages on them."""
    pools = WorkPools(dict(slots), {stage.node.name: stage for stage in stages})

    def run(node: Node, inputs: Mapping[str, str], *how: object) -> Outcome:
        return Outcome(node.stage, node.name, node.name, "ran", 0.0, {})

    with mock.patch.object(schedule, "wait", pools.wait):
        nodes = [stage.node for stage in stages]
        schedule.execute_all(nodes, run, schedule.Done(), pools, waits=lambda node: True, beside=pools)
    return pools


def as_one(name: str, stages: Iterable[Stage]) -> Stage:
    """A flow run that makes these one after another, and holds a GPU worker for as long."""
    return Stage(Node(name, "pipeline", StageConfig(), {}), GPU, sum(stage.hours for stage in stages))


def critical_path(stages: Sequence[Stage]) -> float:
    """Hours that no number of workers can save."""
    ends: dict[str, float] = {}
    for stage in stages:
        ends[stage.node.name] = stage.hours + max((ends[name] for name in sources(stage.node)), default=0.0)
    return max(ends.values())


def row(how: str, pools: WorkPools, computing: float) -> dict[str, Any]:
    """What came of a simulation."""
    free = pools.last[GPU]
    return {
        "how": how,
        "hours": pools.now,
        "gpu_workers_free_after": free,
        "gpu_hours_held": pools.held[GPU],
        "gpu_hours_computing": computing,
        "held_idle_share": 1 - computing / pools.held[GPU],
        "idle_share": 1 - computing / (pools.slots[GPU] * free),
    }


def compared(
    pipelines: Mapping[str, Sequence[Stage]], merged: Sequence[Stage], workers: int, cpu_slots: int
) -> list[dict[str, Any]]:
    """Before, and after."""
    computing = sum(stage.hours for stage in merged if stage.pool == GPU)
    whole = [as_one(name, stages) for name, stages in pipelines.items()]
    before = sum(stage.hours for stages in pipelines.values() for stage in stages if stage.pool == GPU)
    return [
        row("a worker a pipeline", simulated(whole, {GPU: workers}), before),
        row("stages placed", simulated(merged, {GPU: workers, CPU: cpu_slots}), computing),
    ]


def timed(nodes: Iterable[Node], hours: Mapping[str, float], judge_hours: float) -> list[Stage]:
    """Stages that run networks on the pool of GPUs, the others on that of CPUs; `hours` are of the former, by name."""
    return [
        Stage(node, GPU, hours[node.name])
        if node.name in hours
        else Stage(node, CPU, judge_hours if node.stage in schedule.JUDGES else 0.0)
        for node in nodes
    ]


@dataclass(frozen=True)
class Graphs:
    """A recipe on several backbones, as pipelines of their own and as one graph, with the planner's hours."""

    pipelines: Mapping[str, tuple[list[Node], Mapping[str, float]]]
    merged: tuple[list[Node], Mapping[str, float]]

    @classmethod
    def of(cls, recipe: str, assignments: Sequence[str], backbones: Sequence[str], target: PlanTarget) -> "Graphs":
        values = override(recipes.values(recipe), assignments)
        config = parse(PipelineConfig, values, recipe)
        studies = MergedStudies.of([Study(title=recipe, config=config, over={"backbone.name": list(backbones)})])
        [points] = studies.points
        alone = [(wiring.nodes(point.config), node_hours(point.config, target)) for point in points]
        nodes, hours = studies.graph.nodes, {}
        for node, users in zip(nodes, studies.graph.points_of, strict=True):
            own = node.name.partition(" (")[0]
            if own in alone[users[0]][1]:
                hours[node.name] = alone[users[0]][1][own]
        return cls(dict(zip(backbones, alone, strict=True)), (nodes, hours))

    def rows(self, judge_hours: float, workers: int, cpu_slots: int) -> list[dict[str, Any]]:
        """Before and after, for judges that take so long."""
        pipelines = {name: timed(*graph, judge_hours) for name, graph in self.pipelines.items()}
        merged = timed(*self.merged, judge_hours)
        settings = {"backbones": len(pipelines), "stages": len(merged), "judge_hours": judge_hours}
        least = critical_path(merged)
        return [
            {**settings, **each, "critical_path_hours": least}
            for each in compared(pipelines, merged, workers, cpu_slots)
        ]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """As Markdown."""
    headings = ["stages", "judge, h", "", "hours", "GPU workers free after, h", "idle till then", "held idle"]
    cells = [
        [
            f"{each['stages']} ({each['backbones']} backbone{'s' * (each['backbones'] > 1)})",
            f"{each['judge_hours']:g}",
            each["how"],
            f"{each['hours']:.0f} (at least {each['critical_path_hours']:.0f})",
            f"{each['gpu_workers_free_after']:.0f}",
            f"{100 * each['idle_share']:.1f}%",
            f"{100 * each['held_idle_share']:.1f}%",
        ]
        for each in rows
    ]
    return Table(headings, cells, texts=3).as_markdown()


def section(results: Mapping[str, Any]) -> str:
    """What the page says."""
    given = results["settings"]
    return (
        f"`{given['recipe']}` on {given['workers']} GPU workers of {given['gpus_each']} {given['gpu']} each, at "
        f"{given['utilisation']:.0%} of their peaks, and {given['cpu_workers']} CPU workers that take "
        f"{given['cpu_limit']} flow runs each:\n\n{table(results['rows'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=RECIPE, help=f"a recipe of a hub model ({RECIPE})")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a change of it")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, metavar="NAME", help="one pipeline each")
    parser.add_argument("--gpu", default="h100", help="by its name in `dpr plan` (h100)")
    parser.add_argument("--gpus-each", type=int, default=8, help="GPUs of a worker, which share a stage (8)")
    parser.add_argument("--workers", type=int, default=4, help="GPU workers (4)")
    parser.add_argument("--cpu-workers", type=int, default=2, help="CPU workers (2)")
    parser.add_argument("--cpu-limit", type=int, default=32, help="flow runs at once of a CPU worker (32)")
    parser.add_argument("--judge-hours", type=float, nargs="+", default=[0.1, 1, 24], metavar="HOURS", help="(.1 1 24)")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name} and {PAGE.name}")
    given = parser.parse_args()
    target = PlanTarget(gpu_named(given.gpu), given.gpus_each, UTILISATION)
    shared = [f"launch.processes={given.gpus_each}", *(["launch.strategy=fsdp"] if given.gpus_each > 1 else [])]
    rows = []
    for backbones in (given.backbones[:1], given.backbones):
        graphs = Graphs.of(given.recipe, [*shared, *given.set], backbones, target)
        for judge_hours in given.judge_hours:
            rows += graphs.rows(judge_hours, given.workers, given.cpu_workers * given.cpu_limit)
    settings = {
        "recipe": given.recipe,
        "backbones": list(given.backbones),
        "gpu": target.gpu.name,
        "gpus_each": given.gpus_each,
        "utilisation": UTILISATION,
        "workers": given.workers,
        "cpu_workers": given.cpu_workers,
        "cpu_limit": given.cpu_limit,
    }
    results = {"settings": settings, "rows": rows}
    if given.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(json.dumps(results, indent=2))


def with_section(page: str, results: Mapping[str, Any]) -> str:
    """The page with what these results say between its marks."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"


if __name__ == "__main__":
    main()
