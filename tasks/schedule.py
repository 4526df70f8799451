"""A parallel scheduler of a graph: nodes run as soon as their inputs exist; a failure stops only what depends on it."""

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field

from tasks.graph import Node, in_order, resolved, sources
from tasks.run_stage import Outcome

MOST_BESIDE = 64
"""Nodes that wait for others at once; each holds a thread, and asks a server now and then."""

JUDGES = ("judge", "rate")
FOR_OTHERS = 16
"""Of these, for what is no judge: a batch may take a day, and no GPU of a pool is to wait for that."""


@dataclass(frozen=True)
class Failure:
    """Why a node was not made: the node that was the cause, and its error."""

    node: str
    error: Exception


@dataclass(frozen=True)
class Done:
    """The outcomes and failures of nodes, by their names."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


class Here(Executor):
    """Runs what it is given at once, in the caller's own thread."""

    def submit(self, fn: Callable[..., Outcome], /, *args: object, **kwargs: object) -> "Future[Outcome]":  # type: ignore[override]
        future: Future[Outcome] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


Run = Callable[[Node, dict[str, str], bool], Outcome]
"""Does a node with its inputs; the last argument says whether others are done meanwhile, though only one computes."""


def execute_all(
    nodes: Sequence[Node],
    run: Run,
    before: Done,
    executor: Executor,
    jobs: int = 1,
    *,
    waits: Callable[[Node], bool] = lambda node: False,
    beside: Executor | None = None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Done:
    """Run what is not done before, each node as soon as its inputs are there, else in their order: up to `jobs` at once
    in `executor`, and in `beside` those that do not compute here but wait. One with which nothing else can be done
    counts as computing."""
    done = Done(dict(before.outcomes), dict(before.failures))
    waiting = [node for node in in_order(nodes) if node.name not in done.outcomes and node.name not in done.failures]
    running: dict[Future[Outcome], tuple[Node, bool]] = {}

    def start(node: Node, aside: bool) -> None:
        waiting.remove(node)
        # A copy of the context, so that Prefect knows in other threads, too, which flow this belongs to.
        context = contextvars.copy_context()
        place = beside if aside and beside is not None else executor
        future = place.submit(context.run, run, node, resolved(node, done.outcomes), aside)
        running[future] = (node, aside)

    def started(aside: bool) -> int:
        return sum(each == aside for _, each in running.values())

    while waiting or running:
        for node in list(waiting):
            if broken := next((name for name in sources(node) if name in done.failures), None):
                waiting.remove(node)
                done.failures[node.name] = done.failures[broken]
        ready = [node for node in waiting if all(name in done.outcomes for name in sources(node))]
        alone = len(ready) == 1 and not running
        apart = [node for node in ready if beside is not None and not alone and waits(node)]
        for node in apart:
            if started(True) < MOST_BESIDE - (FOR_OTHERS if node.stage in JUDGES else 0):
                start(node, True)
        for node in ready:
            if node not in apart and started(False) < jobs:
                start(node, False)
        for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
            node, _ = running.pop(future)
            error = future.exception()
            if error is None:
                done.outcomes[node.name] = future.result()
            elif isinstance(error, Exception):
                done.failures[node.name] = Failure(node.name, error)
                on_failure(done.failures[node.name])
            else:
                raise error
    return done
