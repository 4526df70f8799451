"""Sampling throughput of the in-process engine beside `generate` and continuous batching of transformers and beside
vLLM, as Markdown.

    python perf/rollouts.py --sizes tiny small
    python perf/rollouts.py --sizes smollm2 --rows 64 --prompts 128 --beside generate vllm --dtype float32 bfloat16

All draw at temperature 1 from the same random network, for the same prompts of 8 to 40 tokens in the same order, with
as many rows at once, and in turns; only tokens of responses count. How long each response is, from 10 to 120 tokens, is
fixed beforehand and the same for all, which no network with random weights would do by itself: the end token is number
0, and a uniform number of 0 draws it; `generate` is told by a criterion of its own, which is as cheap as the one that
looks for an end token; the others take a limit for each prompt. Only the engine returns log-probs. In bfloat16 ours
casts what a linear layer reads, and theirs is the whole model.

vLLM is asked only where DENSE_PATH_VLLM names an environment that has it (.venv-vllm of `make install-vllm`, say). It
makes random weights of its own, compiles, and runs in a process of its own, whose start is not counted.
"""

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dpr_core.rollouts.engine import Sampling
from perf.side_by_side import (
    DTYPES,
    OURS,
    Program,
    Work,
    arguments_for,
    beside,
    in_turn,
    named,
    one_core,
    print_results,
    suffix,
)
from perf.sizes import (
    PROMPTS,
    RESPONSES,
    SIZES,
    ScriptedLengths,
    configuration,
    network,
    prompt_length,
    response_length,
)

END = 0
ROWS = 32
VLLM = "DENSE_PATH_VLLM"
COMPILED = Path(__file__).parents[1] / "build" / "vllm"
"""Of the networks that vLLM compiles, which takes a minute for each: what it needs not compile again."""


@dataclass(frozen=True)
class RolloutShape:
    """Prompts, and how long the response to each will be."""

    prompts: list[tuple[int, ...]]
    lengths: list[int]


def drawn_up(count: int, vocabulary: int) -> RolloutShape:
    rng = random.Random(0)
    prompts = [tuple(rng.choices(range(1, vocabulary), k=prompt_length(rng))) for _ in range(count)]
    return RolloutShape(prompts, [response_length(rng) for _ in range(count)])


def by_engine(model: PreTrainedModel, work: RolloutShape, rows: int, dtype: str) -> list[int]:
    """The lengths of the responses."""
    engine = ScriptedLengths(model, rows, DTYPES[dtype])
    engine.lengths = work.lengths
    return [c.length for c in engine.generate(work.prompts, Sampling(1.0, RESPONSES[1], END), seed=0)]


class StopAt(StoppingCriteria):
    eos_token_id = END
    """`generate` pads finished rows where a criterion has this."""

    def __init__(self, lengths: Sequence[int], prompt: int) -> None:
        self.widths = torch.tensor(lengths) + prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] >= self.widths


def by_generate(model: PreTrainedModel, work: RolloutShape, rows: int, dtype: str) -> list[int]:
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


def by_continuous_batching(model: PreTrainedModel, work: RolloutShape, rows: int, dtype: str) -> list[int]:
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


@cache
def vllm(size: str, rows: int, dtype: str) -> "subprocess.Popen[str]":
    """The one that answers in this process."""
    folder = COMPILED / size
    configuration(size).save_pretrained(folder)
    program = [f"{os.environ[VLLM]}/bin/python", str(Path(__file__).with_name("vllm_rollouts.py"))]
    command = [*program, str(folder), dtype, str(rows), str(PROMPTS[1] + RESPONSES[1])]
    # It ends when its input does, with this process.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def by_vllm(size: str, work: RolloutShape, rows: int, dtype: str) -> list[int]:
    process = vllm(size, rows, dtype)
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):
        print(json.dumps([work.prompts, work.lengths]), file=process.stdin, flush=True)
    if not (answer := process.stdout.readline()):
        sys.exit(f"vLLM has ended, with status {process.wait()}; its own words stand above")
    return json.loads(answer)


SIDES: dict[str, Callable[[PreTrainedModel, RolloutShape, int, str], list[int]]] = {
    OURS: by_engine,
    "generate": by_generate,
    "continuous": by_continuous_batching,
}
OTHERS = ["generate", "continuous", "vllm"]


@cache
def loaded(size: str, dtype: str) -> PreTrainedModel:
    model = network(size).eval().to(DTYPES[dtype])
    model.generation_config.eos_token_id = None
    return model


def prepared(side: str, size: str, work: RolloutShape, rows: int, dtype: str, turn: int) -> Work:
    """Warmed up with as many rows, but short responses."""
    now = work if turn else RolloutShape(work.prompts[:rows], [min(length, 10) for length in work.lengths[:rows]])
    if side == "vllm":
        if not turn:
            by_vllm(size, RolloutShape(now.prompts[:1], now.lengths[:1]), rows, dtype)
        return partial(by_vllm, size, now, rows, dtype)
    # The engine casts by itself.
    return partial(SIDES[side], loaded(size, "float32" if side == OURS else dtype), now, rows, dtype)


def main() -> None:
    parser = arguments_for(__doc__, ["tiny", "small"], list(SIZES))
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rows", type=int, default=ROWS, help="drawn at once, by all")
    parser.add_argument("--beside", nargs="+", default=["generate", "continuous"], choices=OTHERS)
    arguments = parser.parse_args()
    one_core()
    if "vllm" in arguments.beside and not os.environ.get(VLLM):
        print(f"vLLM is left out: {VLLM} names no environment that has it (make install-vllm)", file=sys.stderr)
        arguments.beside.remove("vllm")
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for size in arguments.sizes:
        work = drawn_up(arguments.prompts, SIZES[size]["vocab_size"])
        programs: dict[str, Program] = {
            named(side, dtype): partial(prepared, side, size, work, arguments.rows, dtype)
            for dtype in arguments.dtype
            for side in (OURS, *arguments.beside)
        }
        timed = in_turn(programs, arguments.repeats, {named("vllm", dtype) for dtype in arguments.dtype})
        at_once = "" if arguments.rows == ROWS else f"_{arguments.rows}"
        also = {"rows": arguments.rows, "prompts": arguments.prompts, "tokens": sum(work.lengths)}
        rows += [row | also for row in timed.rows(size + at_once)]
        for dtype in arguments.dtype:
            for other in arguments.beside:
                others = beside(other, dtype, arguments.dtype)
                ratios[f"rollout_vs_{other}_{size}{at_once}{suffix(dtype)}"] = timed.ratio(
                    *others, ours=named(OURS, dtype)
                )
    print_results({"ratios": ratios, "rows": rows}, arguments)


if __name__ == "__main__":
    main()
