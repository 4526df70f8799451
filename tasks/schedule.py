"""A parallel scheduler of a graph: nodes run as soon as their inputs exist; a failure stops only what depends on it."""

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field

from tasks.graph import Node, in_order, resolved, sources
from tasks.run_stage import Outcome


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


def execute_all(
    nodes: Sequence[Node],
    run: Callable[[Node, dict[str, str]], Outcome],
    before: Done,
    executor: Executor,
    jobs: int = 1,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Done:
    """Run what is not done before, up to `jobs` at once, each as soon as its inputs are there; else in their order."""
    done = Done(dict(before.outcomes), dict(before.failures))
    waiting = [node for node in in_order(nodes) if node.name not in done.outcomes and node.name not in done.failures]
    running: dict[Future[Outcome], Node] = {}
    while waiting or running:
        held_back = []
        for node in waiting:
            needed = sources(node)
            if broken := next((name for name in needed if name in done.failures), None):
                done.failures[node.name] = done.failures[broken]
            elif len(running) < jobs and all(name in done.outcomes for name in needed):
                # A copy of the context, so that Prefect knows in other threads, too, which flow this belongs to.
                context = contextvars.copy_context()
                running[executor.submit(context.run, run, node, resolved(node, done.outcomes))] = node
            else:
                held_back.append(node)
        waiting = held_back
        for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
            node = running.pop(future)
            error = future.exception()
            if error is None:
                done.outcomes[node.name] = future.result()
            elif isinstance(error, Exception):
                done.failures[node.name] = Failure(node.name, error)
                on_failure(done.failures[node.name])
            else:
                raise error
    return done
