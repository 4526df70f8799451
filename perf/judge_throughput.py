"""Throughput of the LLM judge against a local server, beside the bare client making the same requests.

    python perf/judge_throughput.py --requests 2000 --concurrency 1 16 64
    python perf/judge_throughput.py --games 10000 50000 100000 --characters 300

Prints one JSON document. The server is `tests/loopback.py` in a process of its own and answers at once, so what is
measured is the client's side and not a model's. `ours` is all that a run does: cache, template, budget, client,
verdict. `bare` sends the same bodies, made before, with `chat.completions.create` of the openai client and
asyncio.gather; `post`, with the client's `post`, which ours uses and which does not look through what it is given. They
take turns, `--repeats` times; all are medians, and `ratio` of ours to each, in each turn. `busy` is the share of one
core that a process used: near 1, it is what limits. `client_milliseconds` is processor time a request, which other work
on the machine disturbs least, and `processor_ratio` is the other's of all turns over ours.

`--games` measures instead so many games of which all verdicts are kept (`kept`), or which a rule judges (`rule`): how
long they take, and all that a stage makes of them, and how much the memory of a process grows meanwhile, which holds
their questions and answers before. `bytes_a_game` is the slope from the fewest to the most.

--write keeps the results in perf/results/judge-throughput.json and puts their tables into docs/performance.md.
"""

import argparse
import asyncio
import importlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.config import evaluation as settings
from dpr_core.evaluation.ask import Unreadable, key_of
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.endpoint import COMPLETIONS, Endpoint
from dpr_core.evaluation.judge import build_judge, identity, judged_by
from dpr_core.evaluation.pairwise import Answer, Pair, answers_cut, judge_pairs, summarise
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question
from tasks.stages.answer import write_rows

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "tests" / "loopback.py"
RESULTS = ROOT / "perf" / "results" / "judge-throughput.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- judge_throughput:begin -->", "<!-- judge_throughput:end -->"

KINDS = {"kept": "verdicts that are kept", "rule": "a rule"}
"""Judges that ask nobody."""

Side = Callable[
    [Sequence[Pair], settings.OpenAIJudgeConfig, settings.JudgeExecutionConfig, Path], Callable[[], Awaitable[int]]
]

KEY = "DENSE_PATH_BENCHMARK_KEY"
BUSY = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="requests of a measurement")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64], help="requests under way at once")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of which the median is shown")
    parser.add_argument("--characters", type=int, default=1500, help="length of an answer")
    parser.add_argument("--games", type=int, nargs="+", help="games for whose verdicts nobody is asked")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name} and {PAGE.name}")
    arguments = parser.parse_args()
    os.environ.setdefault(KEY, "any")
    found: dict[str, Any] = {"characters": arguments.characters}
    if arguments.games:
        found |= {kind: in_memory(kind, arguments.games, arguments.characters) for kind in KINDS}
    else:
        pairs = pairs_of(arguments.requests // 2, arguments.characters)
        rows = [compare(pairs, concurrency, arguments.repeats) for concurrency in arguments.concurrency]
        found |= {"requests": arguments.requests, "repeats": arguments.repeats, "rows": rows}
    print(json.dumps(found, indent=2))
    if arguments.write:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results["memory" if arguments.games else "throughput"] = found
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if len(results) == 2:
            PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_section(page: str, results: Mapping[str, Any]) -> str:
    """The page with what these results say between its marks."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"


def section(results: Mapping[str, Any]) -> str:
    """Two tables."""
    throughput, memory = results["throughput"], results["memory"]
    lines = [
        f"{throughput['requests']:,} requests about answers of {throughput['characters']:,} characters, medians of "
        f"{throughput['repeats']} turns:",
        "",
        "| at once | requests/s | to `create` | to `post` | processor, ms | speed to `create` | to `post` |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in throughput["rows"]:
        ours, others = row["ours"], [row["bare"], row["post"]]
        told = [f"{ours['per_second']:.0f}", *(f"{each['ratio']:.2f}" for each in others)]
        told += [f"{ours['client_milliseconds']:.2f}", *(f"{each['processor_ratio']:.2f}" for each in others)]
        lines.append(f"| {row['concurrency']} | {' | '.join(told)} |")
    lines += [
        "",
        f"Games of which nobody has to be asked, about answers of {memory['characters']:,} characters:",
        "",
        "| judged by | games | processor, s | with results, s | memory before, MB | more, MB | bytes a game |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, called in KINDS.items():
        for row in memory[kind]["rows"]:
            told = [f"{row['games']:,}"]
            told += [f"{row[name]:.1f}" for name in ("processor_seconds", "processor_seconds_with_results")]
            told += [f"{row[name]:.0f}" for name in ("megabytes_before", "megabytes_more")]
            slope = f"{memory[kind]['bytes_a_game']:.0f}" if row is memory[kind]["rows"][-1] else ""
            lines.append(f"| {called} | {' | '.join(told)} | {slope} |")
    return "\n".join(lines)


def in_memory(kind: str, counts: Sequence[int], characters: int) -> dict[str, Any]:
    """Each count in a process of its own, whose peak is that of nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        rows = [processes.submit(without_asking, kind, count, characters).result() for count in sorted(counts)]
    first, last = rows[0], rows[-1]
    more = 2**20 * (last["megabytes_more"] - first["megabytes_more"])
    return {"rows": rows, "bytes_a_game": round(more / max(1, last["games"] - first["games"]), 1)}


def without_asking(kind: str, count: int, characters: int) -> dict[str, float]:
    """Judge so many games, write them, and make of them all that a stage does."""
    pairs = pairs_of(count // 2, characters)
    chat, execution = _settings("http://127.0.0.1:9/v1", 64)
    told = {"model": "judge", "finish_reason": "stop", "prompt_tokens": 100, "completion_tokens": 20}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by: settings.JudgeByConfig = settings.ScriptedJudgeConfig(rule="longer")
        if kind == "kept":
            by, cache = chat, VerdictCache(folder / "verdicts.sqlite")
            for pair in pairs:
                for first in (True, False):
                    cache.put(key_of(identity(by), pair.shown(first)), "first", "x" * 500, told)
            cache.close()
        judge = build_judge(by, execution, lambda question, text: None, folder / "verdicts.sqlite")
        before, started, used = peak_megabytes(), time.perf_counter(), time.process_time()
        games = asyncio.run(judge_pairs(judge, pairs, execution, lambda done, total, note: None, folder=folder))
        judged = time.perf_counter() - started, time.process_time() - used
        write_rows(folder / "games.jsonl", (game.as_dict() for game in games))
        summarise(games, settings.JudgeConfig().bootstrap_samples, 0, (pair.question for pair in pairs))
        Unreadable.among(games, "verdicts")
        judged_by(by, (game.details for game in games))
        answers_cut(games)
    return {
        "games": len(games),
        "seconds": judged[0],
        "processor_seconds": judged[1],
        "processor_seconds_with_results": time.process_time() - used,
        "megabytes_before": before,
        "megabytes_more": peak_megabytes() - before,
    }


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pairs_of(count: int, characters: int) -> list[Pair]:
    """Answers of one length, all different."""
    texts = [[f"{side} {i} ".ljust(characters, "x") for side in "ab"] for i in range(count)]
    return [Pair(Question(str(i), (f"Question {i}?",)), *map(Answer.of, both)) for i, both in enumerate(texts)]


def compare(pairs: Sequence[Pair], concurrency: int, repeats: int) -> dict[str, Any]:
    """Ours and the client alone in turn; medians of the rates and of their ratios."""
    sides_in_turn: list[tuple[str, Side]] = [("ours", ours), ("bare", bare), ("post", post)]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name, _ in sides_in_turn}
    for _ in range(repeats):
        sides_in_turn.reverse()
        for name, judged in sides_in_turn:
            with server() as url, tempfile.TemporaryDirectory() as folder:
                work = judged(pairs, *_settings(url, concurrency), Path(folder) / "verdicts.sqlite")
                measured[name].append(timed(url, work, 2 * len(pairs)))
    sides = {name: {key: median(each[key] for each in rows) for key in rows[0]} for name, rows in measured.items()}
    for name in ("bare", "post"):
        turns = zip(measured["ours"], measured[name], strict=True)
        sides[name]["ratio"] = median(a["per_second"] / b["per_second"] for a, b in turns)
        sides[name]["processor_ratio"] = round(total(measured[name]) / total(measured["ours"]), 3)
    return {"concurrency": concurrency, **sides, "limit": limit(sides["ours"])}


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
    return _alone(pairs, config, execution, lambda client, body: client.chat.completions.create(**body))


def post(
    pairs: Sequence[Pair], config: settings.OpenAIJudgeConfig, execution: settings.JudgeExecutionConfig, cache: Path
) -> Callable[[], Awaitable[int]]:
    """The same by the client's own shorter way."""
    kind = importlib.import_module("openai").types.chat.ChatCompletion
    return _alone(pairs, config, execution, lambda client, body: client.post(COMPLETIONS, body=body, cast_to=kind))


def _alone(
    pairs: Sequence[Pair],
    config: settings.OpenAIJudgeConfig,
    execution: settings.JudgeExecutionConfig,
    send: Callable[[Any, dict[str, Any]], Awaitable[Any]],
) -> Callable[[], Awaitable[int]]:
    endpoint = Endpoint(config, execution)
    prompt = PairwisePrompt(config.max_answer_characters)
    shown = (pair.shown(first) for pair in pairs for first in (True, False))
    bodies = [endpoint.body(prompt.messages(each, as_json=True), prompt.schema) for each in shown]

    async def work() -> int:
        turn = asyncio.Semaphore(execution.concurrency)

        async def one(body: dict[str, Any]) -> bool:
            async with turn:
                return bool((await send(endpoint.client, body)).choices)

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
