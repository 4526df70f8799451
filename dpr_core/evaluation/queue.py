"""Many requests to one judge: so many at once, later again what may pass, and stop at what will not."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.judge import Unavailable

MOST_SECONDS_BETWEEN_ROUNDS = 60.0

Asked = TypeVar("Asked")
Said = TypeVar("Said")


async def ask_all(
    asked: Sequence[Asked],
    ask: Callable[[Asked], Awaitable[Said]],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int], None],
    is_readable: Callable[[Said], bool] = lambda said: True,
) -> list[Said]:
    """What is said to each, in the order in which it stands; at most `execution.concurrency` are asked at once.

    `on_progress` gets how many are done, of how many. What nobody is there for is put at the end of the queue, up to
    `execution.rounds` times, and so is what was said unreadably, up to `execution.unreadable_retries` times. Any other
    failure stops the rest, once those that are under way, and paid for, are done.
    """
    said: dict[int, Said] = {}
    waiting = deque(range(len(asked)))
    failures: Counter[int] = Counter()
    unreadable: Counter[int] = Counter()
    fatal: list[DensePathError] = []

    async def work() -> None:
        while waiting:
            i = waiting.popleft()
            try:
                answer = await ask(asked[i])
            except DensePathError as error:
                failures[i] += 1
                if not isinstance(error, Unavailable) or failures[i] > execution.rounds:
                    waiting.clear()
                    fatal.append(error)
                    return
                if not fatal:
                    await asyncio.sleep(min(2.0 ** failures[i], MOST_SECONDS_BETWEEN_ROUNDS))
                    waiting.append(i)
                continue
            if not is_readable(answer) and unreadable[i] < execution.unreadable_retries and not fatal:
                unreadable[i] += 1
                waiting.append(i)
                continue
            said[i] = answer
            on_progress(len(said), len(asked))

    workers = [asyncio.create_task(work()) for _ in range(min(execution.concurrency, len(asked)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if fatal:
        raise fatal[0]
    return [said[i] for i in range(len(asked))]
