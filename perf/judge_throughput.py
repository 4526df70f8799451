"""Throughput of the LLM judge against a local server, beside the bare client making the same requests.

    python perf/judge_throughput.py --requests 2000 --concurrency 1 16 64
    python perf/judge_throughput.py --resumed 100000 --characters 300

Prints one JSON document. The server is `tests/loopback.py` in a process of its own and answers at once, so what is
measured is the client's side and not a model's. `ours` is all that a run does: cache, template, budget, client,
verdict. `bare` sends the same bodies, made before, with the openai client and asyncio.gather. Both take turns,
`--repeats` times; all are medians, and `ratio` of ours to bare, in each turn. `busy` is the share of one core that a
process used: near 1, it is what limits. `client_milliseconds` is processor time a request, which other work on the
machine disturbs least, and `processor_ratio` is the bare client's of all turns over ours. `--resumed` measures
instead how long so many games take of which all verdicts are kept, and how much memory each of them is.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.config import evaluation as settings
from dpr_core.evaluation.ask import key_of
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.endpoint import Endpoint
from dpr_core.evaluation.judge import build_judge, identity
from dpr_core.evaluation.pairwise import Answer, Pair, judge_pairs
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question

SERVER = Path(__file__).parents[1] / "tests" / "loopback.py"

KEY = "DENSE_PATH_BENCHMARK_KEY"
BUSY = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="requests of a measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64], help="requests under way at once")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of which the median is shown")
    parser.add_argument("--characters", type=int, default=1500, help="length of an answer")
    parser.add_argument("--resumed", type=int, help="games whose verdicts are all kept")
    arguments = parser.parse_args()
    os.environ.setdefault(KEY, "any")
    if arguments.resumed:
        print(json.dumps(resumed(pairs_of(arguments.resumed // 2, arguments.characters)), indent=2))
        return
    rows = [
        compare(pairs_of(arguments.requests // 2, arguments.characters), concurrency, arguments.repeats)
        for concurrency in arguments.concurrency
    ]
    print(json.dumps({"requests": arguments.requests, "characters": arguments.characters, "rows": rows}, indent=2))


def resumed(pairs: Sequence[Pair]) -> dict[str, float]:
    """Seconds, processor seconds and kilobytes a game of judging that finds every verdict in the cache."""
    config, execution = _settings("http://127.0.0.1:9/v1", 64)
    told = {"model": "judge", "finish_reason": "stop", "prompt_tokens": 100, "completion_tokens": 20}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdicts.sqlite"
        kept = VerdictCache(path)
        for pair in pairs:
            for first in (True, False):
                kept.put(key_of(identity(config), pair.shown(first)), "first", "x" * 500, told)
        judge = build_judge(config, execution, lambda question, text: None, path)
        before, started, used = peak_kilobytes(), time.perf_counter(), time.process_time()
        games = asyncio.run(judge_pairs(judge, pairs, execution, lambda done, total, note: None))
        seconds, processor = time.perf_counter() - started, time.process_time() - used
    each = (peak_kilobytes() - before) / len(games)
    return {"games": len(games), "seconds": seconds, "processor_seconds": processor, "kilobytes_a_game": each}


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def pairs_of(count: int, characters: int) -> list[Pair]:
    """Answers of one length, all different."""
    texts = [[f"{side} {i} ".ljust(characters, "x") for side in "ab"] for i in range(count)]
    return [Pair(Question(str(i), (f"Question {i}?",)), *map(Answer.of, both)) for i, both in enumerate(texts)]


def compare(pairs: Sequence[Pair], concurrency: int, repeats: int) -> dict[str, Any]:
    """Ours and the bare client in turn; medians of the rates and of their ratio."""
    measured: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    sides_in_turn = [("ours", ours), ("bare", bare)]
    for _ in range(repeats):
        sides_in_turn.reverse()
        for name, judged in sides_in_turn:
            with server() as url, tempfile.TemporaryDirectory() as folder:
                work = judged(pairs, *_settings(url, concurrency), Path(folder) / "verdicts.sqlite")
                measured[name].append(timed(url, work, 2 * len(pairs)))
    turns = list(zip(measured["ours"], measured["bare"], strict=True))
    ratios = {
        "ratio": median(a["per_second"] / b["per_second"] for a, b in turns),
        "processor_ratio": round(total(measured["bare"]) / total(measured["ours"]), 3),
    }
    sides = {name: {key: median(each[key] for each in rows) for key in rows[0]} for name, rows in measured.items()}
    return {"concurrency": concurrency, **sides, **ratios, "limit": limit(sides["ours"])}


def median(values: Any) -> float:
    return round(statistics.median(values), 3)


def total(rows: Sequence[dict[str, float]]) -> float:
    """Processor time of all turns."""
    return sum(row["client_milliseconds"] for row in rows)


def limit(side: dict[str, float]) -> str:
    """What more speed would have to come from."""
    if max(side["client_busy"], side["server_busy"]) < BUSY:
        return "waiting"
    return "client" if side["client_busy"] >= side["server_busy"] else "server"


def timed(url: str, work: Callable[[], Awaitable[int]], expected: int) -> dict[str, float]:
    """How fast the work went, and how busy both sides were meanwhile."""
    of_server, of_client, started = server_seconds(url), time.process_time(), time.perf_counter()
    done = asyncio.run(_await(work))
    seconds = time.perf_counter() - started
    if done != expected:
        raise RuntimeError(f"{done} of {expected} verdicts came back")
    used = time.process_time() - of_client
    return {
        "per_second": expected / seconds,
        "client_milliseconds": 1000 * used / expected,
        "client_busy": used / seconds,
        "server_busy": (server_seconds(url) - of_server) / seconds,
    }


async def _await(work: Callable[[], Awaitable[int]]) -> int:
    return await work()


def ours(
    pairs: Sequence[Pair], config: settings.OpenAIJudgeConfig, execution: settings.JudgeExecutionConfig, cache: Path
) -> Callable[[], Awaitable[int]]:
    """As a run judges, with a cache that is empty."""
    judge = build_judge(config, execution, lambda question, text: None, cache)

    async def work() -> int:
        games = await judge_pairs(judge, pairs, execution, lambda done, total, note: None)
        return sum(game.score is not None for game in games)

    return work


def bare(
    pairs: Sequence[Pair], config: settings.OpenAIJudgeConfig, execution: settings.JudgeExecutionConfig, cache: Path
) -> Callable[[], Awaitable[int]]:
    """The client alone; what it is given is made before the clock runs."""
    endpoint = Endpoint(config, execution)
    prompt = PairwisePrompt(config.max_answer_characters)
    shown = (pair.shown(first) for pair in pairs for first in (True, False))
    bodies = [endpoint.body(prompt.messages(each, as_json=True), prompt.schema) for each in shown]

    async def work() -> int:
        turn = asyncio.Semaphore(execution.concurrency)

        async def one(body: dict[str, Any]) -> bool:
            async with turn:
                return bool((await endpoint.client.chat.completions.create(**body)).choices)

        found = await asyncio.gather(*map(one, bodies))
        await endpoint.close()
        return sum(found)

    return work


def _settings(url: str, concurrency: int) -> tuple[settings.OpenAIJudgeConfig, settings.JudgeExecutionConfig]:
    config = settings.OpenAIJudgeConfig(model="judge", base_url=url)
    return config, settings.JudgeExecutionConfig(concurrency=concurrency, api_key_variable=KEY)


@contextmanager
def server() -> Iterator[str]:
    """The address of a server that answers by the hash of what it is shown."""
    command = [sys.executable, str(SERVER), "--judge", "hash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def server_seconds(url: str) -> float:
    """Processor time that the server has used."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/cpu") as reply:
        return float(json.load(reply)["seconds"])


if __name__ == "__main__":
    main()
