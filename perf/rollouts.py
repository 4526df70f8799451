"""Sampling throughput of the in-process engine beside `generate` and continuous batching of transformers, as Markdown.

    OMP_NUM_THREADS=1 python perf/rollouts.py --sizes tiny small

All draw at temperature 1 from the same random network, for the same prompts of 8 to 40 tokens in the same order, with
as many rows at once, and in turns; only tokens of responses count. How long each response is, from 10 to 120 tokens, is
fixed beforehand and the same for all, which no network with random weights would do by itself: the end token is number
0, and a uniform number of 0 draws it; `generate` is told by a criterion of its own, which is as cheap as the one that
looks for an end token; continuous batching takes a limit for each prompt. Only the engine returns log-probs. A machine
with other work to do makes seconds longer; the ratio of CPU time suffers less, and is the one among other benchmarks'.
"""

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.rollouts.engine import Sampling
from perf.side_by_side import machine
from perf.sizes import PROMPTS, RESPONSES, SIZES, ScriptedLengths, network, prompt_length, response_length

END = 0
OTHERS = {"generate": "`generate`", "continuous": "continuous batching"}


@dataclass(frozen=True)
class RolloutShape:
    """Prompts, and how long the response to each will be."""

    prompts: list[tuple[int, ...]]
    lengths: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["tiny", "small"])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rows", type=int, default=32, help="drawn at once, by all")
    parser.add_argument("--repeats", type=int, default=3, help="of each side, in turns; medians are shown")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(name, arguments.prompts, arguments.rows, arguments.repeats) for name in arguments.sizes]
    ratios = {f"rollout_vs_{other}_{row['size']}": row["cpu_ratio"][other] for row in rows for other in OTHERS}
    results = {"ratios": ratios, "machine": machine(), "rows": rows}
    print(json.dumps(results, indent=2) if arguments.json else markdown(rows))


def drawn_up(count: int, vocabulary: int) -> RolloutShape:
    rng = random.Random(0)
    prompts = [tuple(rng.choices(range(1, vocabulary), k=prompt_length(rng))) for _ in range(count)]
    return RolloutShape(prompts, [response_length(rng) for _ in range(count)])


def by_engine(model: PreTrainedModel, work: RolloutShape, rows: int) -> list[int]:
    """The lengths of the responses."""
    engine = ScriptedLengths(model, rows)
    engine.lengths = work.lengths
    return [c.length for c in engine.generate(work.prompts, Sampling(1.0, RESPONSES[1], END), seed=0)]


class StopAt(StoppingCriteria):
    eos_token_id = END
    """`generate` pads finished rows where a criterion has this."""

    def __init__(self, lengths: Sequence[int], prompt: int) -> None:
        self.widths = torch.tensor(lengths) + prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] >= self.widths


def by_generate(model: PreTrainedModel, work: RolloutShape, rows: int) -> list[int]:
    found: list[int] = []
    for start in range(0, len(work.prompts), rows):
        prompts, lengths = work.prompts[start : start + rows], work.lengths[start : start + rows]
        width = max(map(len, prompts))
        ids = torch.tensor([[END] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=RESPONSES[1],
            stopping_criteria=StoppingCriteriaList([StopAt(lengths, width)]),
        )
        assert output.shape[1] == width + max(lengths)
        found += lengths
    return found


def by_continuous_batching(model: PreTrainedModel, work: RolloutShape, rows: int) -> list[int]:
    page = 32
    settings = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=rows * -(-(PROMPTS[1] + RESPONSES[1]) // page),
        max_batch_tokens=512,
        max_requests_per_batch=rows,
        allow_block_sharing=False,
    )
    sampling = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=RESPONSES[1], eos_token_id=-1, pad_token_id=END)
    found: dict[str, int] = {}
    own: Any = copy.deepcopy(model)  # its attention is changed for good
    with own.continuous_batching_context_manager(
        sampling, continuous_batching_config=settings, timeout=5, warmup=False
    ) as manager:
        names = [
            manager.add_request(list(prompt), max_new_tokens=length)
            for prompt, length in zip(work.prompts, work.lengths, strict=True)
        ]
        while len(found) < len(names):
            result = manager.get_result(timeout=1)
            assert result is not None or manager.is_running()
            if result is not None and result.is_finished():
                found[result.request_id] = len(result.generated_tokens)
    return [found[name] for name in names]


def measured(name: str, prompts: int, rows: int, repeats: int) -> dict[str, Any]:
    model, work = network(name).eval(), drawn_up(prompts, SIZES[name]["vocab_size"])
    model.generation_config.eos_token_id = None
    warm = RolloutShape(work.prompts[:rows], work.lengths[:rows])
    sides: dict[str, Callable[[PreTrainedModel, RolloutShape, int], list[int]]] = {
        "engine": by_engine,
        "generate": by_generate,
        "continuous": by_continuous_batching,
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for draw in sides.values():
        draw(model, warm, rows)
    for _ in range(repeats):
        for side, draw in sides.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            lengths = draw(model, work, rows)
            seconds[side].append(time.perf_counter() - started)
            cpu[side].append(time.process_time() - cpu_started)
            assert lengths == work.lengths, side
    medians = {side: statistics.median(each) for side, each in seconds.items()}
    cpu_medians = {side: statistics.median(each) for side, each in cpu.items()}
    tokens = sum(work.lengths)
    return {
        "size": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompts": prompts,
        "rows": rows,
        "tokens": tokens,
        "tokens_per_second": {side: tokens / each for side, each in medians.items()},
        "ratio": {other: medians[other] / medians["engine"] for other in OTHERS},
        "cpu_ratio": {other: cpu_medians[other] / cpu_medians["engine"] for other in OTHERS},
        "ratios": {
            other: [theirs / ours for ours, theirs in zip(seconds["engine"], seconds[other], strict=True)]
            for other in OTHERS
        },
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| network | parameters | rows | engine, tokens/s | next to | tokens/s | ratio | of single repeats "
        "| of CPU time |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        speed = row["tokens_per_second"]
        for other, name in OTHERS.items():
            single = row["ratios"][other]
            lines.append(
                f"| {row['size']} | {row['parameters'] / 1e6:.1f}M | {row['rows']} | {speed['engine']:,.0f} | {name} "
                f"| {speed[other]:,.0f} | {row['ratio'][other]:.2f} | {min(single):.2f} to {max(single):.2f} "
                f"| {row['cpu_ratio'][other]:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
