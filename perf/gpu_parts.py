"""Parts of `perf/gpu_check.py`, each for a process of its own: settings on and off, utilisation, one iteration.

A part is a generator: what it yields is added to what is known of it, so that a part that is killed keeps what it had.
Without a GPU everything is done on the CPU at toy size.
"""

import gc
import importlib.metadata
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpr_core.algorithms import policy_gradient
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import tf32_head, token_scores
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy, autocast, computing_in
from dpr_core.models.scoring import score
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.hours import GPUS
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Completion
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.hooks import Iteration
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import rollout_requests
from dpr_core.training.trainer import Trainer
from perf.device_limits import Limits, by_maker, by_measuring, known, rows_of, seconds
from perf.sizes import LARGE, network, word_tokenizer
from perf.utilisation import RATE, TASKS, UtilisationBench, measured

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "accelerate", "pydantic", "tokenizers", "peft", "triton", "flash_attn", "trl")
NANO = Architecture("llama", 512, 32, 2, 4, 2, 16, 48, 4096, False)

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is done: as much as keeps a GPU busy for seconds, or as little as shows that it can be done."""

    device: torch.device
    base: str
    """The network on which settings are tried, and which one process can hold twice."""
    sequences: Mapping[str, int]
    """Of a step, or scored, by network."""
    rows: int
    """Drawn at once."""
    repeats: int
    heads: Mapping[str, tuple[int, int]]
    """Width and vocabulary."""
    tokens: int
    """That a head reads."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def bench(self, size: str, execution: ExecutionConfig, attention: str = "sdpa") -> UtilisationBench:
        count, rows = self.sequences[size], self.rows
        return UtilisationBench(size, self.device, self.dtype, count, rows, execution, attention, 2 * rows)


def scale() -> Scale:
    if torch.cuda.is_available():
        heads = {"smollm2": (576, 49_152), "1b": (2048, 128_256), "8b": (4096, 128_256)}
        sequences = {"smollm2": 128, "1b": 64, "8b": 32}
        return Scale(torch.device("cuda"), "smollm2", sequences, 64, 2, heads, 4096)
    torch.set_num_threads(1)
    LARGE["nano"] = NANO
    return Scale(torch.device("cpu"), "toy", {"toy": 4, "nano": 2}, 4, 1, {"toy": (32, 512)}, 64)


def machine(s: Scale) -> Iterator[Found]:
    """Limits, in the types that the settings choose between."""
    yield {"machine": around(s)}
    plain, rounded = (by_measuring(s.device, s.dtype, tf32_head=each) for each in (False, True))
    gpu = known(torch.cuda.get_device_name()) if s.device.type == "cuda" else None
    makers = by_maker(gpu, s.dtype) if gpu else None
    rows = [*rows_of(plain, makers), {"limit": "teraflops in TensorFloat-32", "measured": rounded.head / 1e12}]
    yield {"rows": rows, "limits": [plain.operations, plain.head, plain.read]}


def around(s: Scale) -> dict[str, Any]:
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "gpu": None,
        **{name: version_of(name) for name in PACKAGES},
    }
    if s.device.type == "cuda":
        properties = torch.cuda.get_device_properties(s.device)
        found |= {
            "gpu": properties.name,
            "gpu_gigabytes": properties.total_memory / 2**30,
            "capability": list(torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
        }
    return found


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tests(s: Scale) -> Iterator[Found]:
    """Those marked `gpu`, by files, since others import what is not here."""
    if find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed; install it, or run the tests elsewhere: make test-gpu")
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfEs",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        *files,
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.strip().splitlines()
    yield {"said": lines[-1] if lines else "", "output": lines[-60:]}
    if done.returncode:
        raise RuntimeError(f"pytest ended with {done.returncode}: {lines[-1] if lines else 'it said nothing'}")


def on_and_off(
    s: Scale,
    name: str,
    off: Callable[[], UtilisationBench],
    on: Callable[[], UtilisationBench],
    works: Sequence[str],
    runs: int = 1,
) -> Iterator[Found]:
    """The same work with and without, in turns of so many runs; what each returned the first time is compared."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for work in works:
        gc.collect()
        torch.cuda.empty_cache()
        tasks = {"off": TASKS[work](off()), "on": TASKS[work](on())}
        first, returned, taken = {}, {}, {side: [] for side in tasks}
        for side, task in tasks.items():
            first[side], returned[side] = timed(task.run, s.device)
        for _ in range(s.repeats):
            for side, task in tasks.items():
                taken[side].append(timed(task.run, s.device, runs)[0])
        usual = {side: statistics.median(each) for side, each in taken.items()}
        for side, task in tasks.items():
            row = {"case": s.base, "work": work, "setting": side, "tokens_per_second": task.least.tokens / usual[side]}
            rows.append({**row, "seconds": taken[side], "first_seconds": first[side] - usual[side]})
            if work == "rollout":
                rows[-1]["log_prob_gap"] = log_prob_gap(off(), returned[side])
        rows[-1] |= difference(returned["off"], returned["on"])
        ratios[f"{name}_{work}_{s.base}"] = usual["off"] / usual["on"]
        yield {"rows": rows, "ratios": ratios}
        del tasks, returned, task


def timed(run: Callable[[], Any], device: torch.device, runs: int = 1) -> tuple[float, Any]:
    """Seconds of a run, and what the last one returned."""
    returned = None
    started = time.perf_counter()
    for _ in range(runs):
        returned = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / runs, returned


def difference(off: Any, on: Any) -> dict[str, float]:
    """Of log-probs, of a step's loss and gradient norm, or of what was drawn."""
    if isinstance(off, dict):
        return {f"{key.partition('/')[2]}_differs": abs(on[key] - off[key]) for key in off if key in LEARNED}
    if isinstance(off, list):
        alike = sum(ours.response == theirs.response for ours, theirs in zip(on, off, strict=True))
        return {"share_drawn_alike": alike / len(off)}
    apart = (on.log_probs - off.log_probs).abs()
    return {"greatest_difference": float(apart.max()), "rms_difference": float(apart.square().mean().sqrt())}


LEARNED = ("train/loss", "train/gradient_norm")


def log_prob_gap(bench: UtilisationBench, drawn: Sequence[Completion]) -> float:
    """The greatest between the log-probs that an engine gave for what it drew and those that scoring gives, as in
    `rollout/engine_log_prob_gap`."""
    policy = bench.policy(bench.network()).freeze()
    scored = score(policy, [TokenSequence(c.prompt, c.response) for c in drawn], None).log_probs
    return max(
        float((row[: c.length].cpu() - torch.tensor(c.log_probs)).abs().max())
        for row, c in zip(scored, drawn, strict=True)
    )


def graphs(s: Scale) -> Iterator[Found]:
    """With as many rows as keep a GPU busy, and with few."""
    few = replace(s, rows=max(1, s.rows // 8))
    plain, replaying = (partial(s.bench, s.base, ExecutionConfig(graphs=each)) for each in (False, True))
    yield from on_and_off(s, "graphs", plain, replaying, ["rollout"])
    plain, replaying = (partial(few.bench, s.base, ExecutionConfig(graphs=each)) for each in (False, True))
    for found in on_and_off(few, "graphs_few_rows", plain, replaying, ["rollout"]):
        yield {"few_rows": found["rows"], "ratios": found["ratios"]}


def head(s: Scale) -> Iterator[Found]:
    """The head alone and in its work, in float32 and in TensorFloat-32; errors against float64."""
    rows: list[dict[str, Any]] = []
    for name, (width, vocabulary) in s.heads.items():
        row = {"head": name, **head_alone(s, width, vocabulary)}
        rows.append(row)
        yield {"heads": rows, "ratios": {f"tf32_head_alone_{name}": row["seconds"] / row["seconds_tf32"]}}
    yield {"reward": reward_errors(s)}
    off, on = (partial(s.bench, s.base, ExecutionConfig(tf32_head=each)) for each in (False, True))
    yield from on_and_off(s, "tf32_head", off, on, ["score", "sft", "rollout"])


def head_alone(s: Scale, width: int, vocabulary: int) -> dict[str, float]:
    """Log-probs and their gradients, from random states."""
    generator = torch.Generator(s.device).manual_seed(0)
    hidden = torch.randn(s.tokens, width, generator=generator, device=s.device, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, device=s.device).mul_(0.02).requires_grad_()
    targets = torch.randint(vocabulary, (s.tokens,), generator=generator, device=s.device)

    def learned(rounded: bool) -> Tensor:
        with autocast(torch.bfloat16, s.device), tf32_head(rounded):
            scores = token_scores(hidden, weight, targets)
        scores.log_probs.sum().backward()  # type: ignore[no-untyped-call]
        return scores.log_probs.detach()

    plain, tf32 = (statistics.median(seconds(partial(learned, each), s.device, 3)) for each in (False, True))
    with torch.no_grad():
        exact = token_scores(hidden.double(), weight.double(), targets, logits_per_chunk=2**24).log_probs
    errors = [rms(learned(each) - exact) for each in (False, True)]
    return {"seconds": plain, "seconds_tf32": tf32, "error": errors[0], "error_tf32": errors[1]}


def reward_errors(s: Scale) -> dict[str, float]:
    """Of log pi_SFT - log pi_ref of two networks that are near each other, over its deviation in float64: of the head
    in float32 and in TensorFloat-32 behind layers in float64, and of everything in each type."""
    bench = s.bench(s.base, ExecutionConfig())
    sequences = bench.sequences[:8]

    def reward(dtype: torch.dtype, arithmetic: str | None, rounded: bool | None = None) -> Tensor:
        parts = []
        for moved in (False, True):
            model = bench.network().eval()
            if moved:
                generator = torch.Generator(s.device).manual_seed(1)
                with torch.no_grad():
                    for weight in model.parameters():
                        weight += 1e-3 * torch.randn(weight.shape, generator=generator, device=s.device)
            policy = Policy(model.double() if arithmetic == "float64" else model, activations=dtype, packing=False)
            with torch.no_grad(), computing_in(None if arithmetic == "float64" else arithmetic, policy):  # type: ignore[arg-type]
                parts.append(torch.cat([log_probs(policy, sequence, rounded) for sequence in sequences]).double())
        return parts[0] - parts[1]

    def log_probs(policy: Policy, sequence: TokenSequence, rounded: bool | None) -> Tensor:
        batch = collate([sequence], policy.packed).to(s.device)
        hidden, weight, _ = policy.response_states(batch)
        if rounded is None:
            with autocast(policy.activations, s.device):
                return token_scores(hidden, weight, batch.targets).log_probs
        with autocast(torch.bfloat16, s.device), tf32_head(rounded):
            return token_scores(hidden.float(), weight.float(), batch.targets).log_probs

    exact = reward(torch.float32, "float64")
    found = {
        "head_float32": reward(torch.float32, "float64", rounded=False),
        "head_tf32": reward(torch.float32, "float64", rounded=True),
        "float32": reward(torch.float32, "float32"),
        "tf32": reward(torch.float32, "tf32"),
        "bfloat16": reward(torch.bfloat16, None),
    }
    deviation = float(exact.std(correction=0))
    return {"deviation": deviation, **{name: rms(each - exact) / deviation for name, each in found.items()}}


def rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def reward_in_tf32(s: Scale) -> Iterator[Found]:
    """Scoring in float32 beside TensorFloat-32 and bfloat16."""
    policy = Policy(s.bench(s.base, ExecutionConfig()).network(), activations=torch.float32).freeze(rounded=False)
    sequences = s.bench(s.base, ExecutionConfig()).sequences
    usual = {}
    for arithmetic in ("float32", "tf32", "bfloat16"):
        with computing_in(arithmetic, policy):  # type: ignore[arg-type]
            usual[arithmetic] = statistics.median(seconds(lambda: score(policy, sequences, None), s.device, s.repeats))
    names = {"tf32": "tf32_reward", "bfloat16": "bfloat16_reward"}
    yield {"ratios": {f"{names[each]}_{s.base}": usual["float32"] / usual[each] for each in names}, "seconds": usual}


def compiling(s: Scale) -> Iterator[Found]:
    off, on = (partial(s.bench, s.base, ExecutionConfig(compile=each)) for each in (False, True))
    yield from on_and_off(s, "compile", off, on, ["sft", "score"])


def adam(s: Scale) -> Iterator[Found]:
    """On steps of few sequences, where the optimizer's own part is large; of many, since it gains a few hundredths."""
    steps, turns = (10, 5) if s.device.type == "cuda" else (2, 1)
    few = replace(s, sequences={**s.sequences, s.base: 2}, repeats=turns)
    off, on = (partial(few.bench, s.base, ExecutionConfig(fused_adam=each)) for each in (False, True))
    yield from on_and_off(few, "fused_adam", off, on, ["sft"], steps)


def flash(s: Scale) -> Iterator[Found]:
    if find_spec("flash_attn") is None:
        raise RuntimeError("flash_attn is not installed, so packed rows are not measured")
    off = partial(s.bench, s.base, ExecutionConfig())
    on = partial(s.bench, s.base, ExecutionConfig(packing=True), "flash_attention_2")
    yield from on_and_off(s, "flash", off, on, ["sft", "score"])


def utilisation(s: Scale, size: str) -> Iterator[Found]:
    """MFU, the share of the bandwidth, memory and seconds against the plan."""
    on_gpu = s.device.type == "cuda"
    gpu = known(torch.cuda.get_device_name()) if on_gpu else None
    makers = by_maker(gpu, s.dtype) if gpu else None
    # A rehearsal needs limits and a GPU to plan for, whatever they are.
    limits = by_measuring(s.device, s.dtype) if on_gpu else Limits(1e11, 1e11, 1e10)
    rows, ratios = [], {}
    for work in TASKS:
        row = measured(
            work, s.bench(size, ExecutionConfig()), limits, makers, s.repeats, gpu if on_gpu else GPUS["h200"]
        )
        rows.append(row)
        if "utilisation" in row:
            ratios[f"utilisation_{work}_{size}"] = row["utilisation"]
            if row["planned_seconds"]:
                ratios[f"planned_over_measured_seconds_{work}_{size}"] = row["planned_seconds"] / statistics.median(
                    row["seconds"]
                )
            if row["peak_bytes"]:
                ratios[f"planned_over_measured_bytes_{work}_{size}"] = row["planned_bytes"] / row["peak_bytes"]
        yield {"rows": rows, "ratios": ratios, "limits": rows_of(limits, makers)}


def iteration(s: Scale) -> Iterator[Found]:
    """Sample, score three times and learn once, in responses of one length, beside TRL's GRPO where it is there."""
    prompts, samples, length = (16, 8, 128) if s.device.type == "cuda" else (2, 2, 4)
    chosen = [sequence.prompt for sequence in s.bench(s.base, ExecutionConfig()).to_draw][:prompts]
    sides = {"dense-path": our_iteration(s, chosen, samples, length)}
    taken = {name: seconds(run, s.device, s.repeats) for name, run in sides.items()}
    tokens = len(chosen) * samples * length
    rows = [
        {"case": s.base, "program": name, "tokens_per_second": tokens / statistics.median(each), "seconds": each}
        for name, each in taken.items()
    ]
    yield {"rows": rows}
    del sides
    if find_spec("trl") is None or find_spec("datasets") is None:
        yield {"trl": "not measured: TRL cannot be imported here"}
        return
    each = seconds(their_iteration(s, chosen, samples, length), s.device, s.repeats)
    tokens_per_second = tokens / statistics.median(each)
    rows.append({"case": s.base, "program": "TRL GRPO", "tokens_per_second": tokens_per_second, "seconds": each})
    ratio = statistics.median(each) / statistics.median(taken["dense-path"])
    yield {"rows": rows, "ratios": {f"rl_vs_trl_grpo_{s.base}": ratio}}


def networks(s: Scale) -> list[PreTrainedModel]:
    """Policy, pi_SFT and pi_ref, no two alike, so that there is a reward, a KL and a gradient."""
    with s.device:
        return [network(s.base, seed) for seed in range(3)]


def our_iteration(s: Scale, prompts: Sequence[tuple[int, ...]], samples: int, length: int) -> Callable[[], object]:
    total = len(prompts) * samples
    config = ReinforceConfig(
        learning_rate=RATE,
        batch_size=total,
        rollout_batch_size=len(prompts),
        samples_per_prompt=samples,
        iterations=1,
        max_response_tokens=length,
    )
    policy, *frozen = (Policy(each, activations=s.dtype) for each in networks(s))
    sft, reference = (each.freeze() for each in frozen)
    trainer = Trainer(policy, config, 100, config.execution)
    loop = ReinforceLoop(
        policy=policy,
        engine=InProcessEngine.of(policy, config.execution),
        reward=TokenReward(sft, reference, "baseline_relative"),
        trainer=trainer,
        config=config,
        end_token=-1,  # that no row draws
        decode=str,
        recorder=InMemoryRecorder(),
    )
    method = policy_gradient(config.algorithm)
    request = next(iter(rollout_requests(prompts, config, -1)))

    def work() -> None:
        rollout = loop.score(loop.sample(request), trust_engine=loop.one_step_on_policy)
        credit = method.credit(rollout.batch, 0.04)
        loop.update(Iteration(1, 1, 0, rollout, credit), [range(len(rollout.sequences))], method, None)

    return work


REWARDED = 32
"""Sequences that TRL's reward function scores at once."""


@torch.inference_mode()
def plain(network: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """(B,) log-probs of whole responses, as a user finds them with transformers alone."""
    batch = collate(sequences).to(network.device)
    mask = torch.arange(batch.input_ids.shape[1]) < torch.tensor([[len(s)] for s in sequences])
    inputs = {"input_ids": batch.input_ids, "attention_mask": mask.long().to(network.device)}
    logits = network(**inputs, use_cache=False).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    return (log_probs.float() * batch.predicts[:, :-1]).sum(dim=1)


def their_iteration(s: Scale, prompts: Sequence[tuple[int, ...]], samples: int, length: int) -> Callable[[], object]:
    """One step each time; trainer and optimizer are made before, as ours are."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, sft, reference = networks(s)
    sft, reference = (each.eval().to(s.dtype) for each in (sft, reference))
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    size = s.base

    def reward(prompts: list[str], completion_ids: list[list[int]], **others: object) -> list[float]:
        pairs = zip(prompts, completion_ids, strict=True)
        sequences = [TokenSequence(tuple(map(int, prompt.split())), tuple(ids)) for prompt, ids in pairs]
        batches = [sequences[start : start + REWARDED] for start in range(0, len(sequences), REWARDED)]
        return torch.cat([plain(sft, batch) - plain(reference, batch) for batch in batches]).tolist()

    folder = tempfile.TemporaryDirectory()
    # The reference is read from where the trained model came from.
    model.save_pretrained(folder.name)
    trained = type(model).from_pretrained(folder.name)
    total = len(prompts) * samples
    config = GRPOConfig(
        output_dir=folder.name,
        per_device_train_batch_size=total,
        num_generations=samples,
        max_completion_length=length,
        max_steps=1,
        learning_rate=RATE,
        beta=0.04,
        bf16=True,
        gradient_checkpointing=False,
        use_cpu=s.device.type == "cpu",
        disable_tqdm=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": " ".join(map(str, prompt))} for prompt in prompts])

    trainer = GRPOTrainer(
        model=trained, reward_funcs=reward, args=config, train_dataset=rows, processing_class=word_tokenizer(size)
    )
    trainer.create_optimizer()

    def work() -> None:
        trainer.train()

    work.folder = folder  # type: ignore[attr-defined]  # lives as long as the work
    return work


def sizes_of(s: Scale) -> dict[str, str]:
    """The networks of three sizes, or what stands for them."""
    return {
        name: name if name in s.sequences else "toy" if name == "smollm2" else "nano"
        for name in ("smollm2", "1b", "8b")
    }


PARTS: dict[str, Callable[[Scale], Iterator[Found]]] = {
    "machine": machine,
    "tests": tests,
    "graphs": graphs,
    "head": head,
    "utilisation-smollm2": lambda s: utilisation(s, sizes_of(s)["smollm2"]),
    "utilisation-8b": lambda s: utilisation(s, sizes_of(s)["8b"]),
    "compile": compiling,
    "utilisation-1b": lambda s: utilisation(s, sizes_of(s)["1b"]),
    "iteration": iteration,
    "adam": adam,
    "reward": reward_in_tf32,
    "flash": flash,
}


class Said(logging.Handler):
    """Warnings of the program, such as that a graph could not be captured."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def results(name: str) -> Iterator[dict[str, Any]]:
    """All that is known of a part so far, each time that there is more of it."""
    said = Said()
    log = logging.getLogger("dense_path")
    log.addHandler(said)
    found: dict[str, Any] = {}
    try:
        for more in PARTS[name](scale()):
            ratios = found.get("ratios", {}) | dict(more.get("ratios", {}))
            found |= {**more, "ratios": ratios, "warnings": said.lines}
            if torch.cuda.is_available():
                found["peak_bytes"] = torch.cuda.max_memory_allocated()
            yield found
    finally:
        log.removeHandler(said)
