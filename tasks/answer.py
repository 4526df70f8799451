"""One policy answers one benchmark."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import AnswerConfig, Extrapolated
from dpr_core.errors import UsageError
from tasks.lineage import Lineage
from tasks.stage import Stage, Workspace

ANSWERS = "answers.jsonl"


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core import benchmarks
    from dpr_core.benchmarks.base import is_right
    from dpr_core.data.encoding import TokenSequence, decode_response, encode_prompt, end_token
    from dpr_core.models.checkpoints import extrapolate
    from dpr_core.models.scoring import sequence_kl
    from dpr_core.rollouts.engine import Sampling
    from dpr_core.rollouts.in_process import InProcessEngine

    settings = cast(AnswerConfig, config)
    lineage = Lineage(work.store)
    source = work.input("policy")
    if isinstance(settings.policy, Extrapolated) and source.stage != "reward":
        raise UsageError(f"an extrapolated policy is made of a reward, but {source.id[:8]} is of stage {source.stage}")
    questions = benchmarks.load(settings.benchmark)
    tokenizer, renderer = lineage.tokenizer(source), lineage.renderer(source)
    prompts = [encode_prompt(tokenizer, renderer.render(q.prompt, q.system)) for q in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) > settings.max_prompt_tokens:
            raise UsageError(
                f"question {question.id} has {len(prompt)} tokens, more than max_prompt_tokens="
                f"{settings.max_prompt_tokens}"
            )
    policy = lineage.load(lineage.policy_folder(source), source, settings.execution)
    policy.check_length(max(map(len, prompts)) + settings.max_response_tokens)
    if isinstance(settings.policy, Extrapolated):
        extrapolate(policy.model, lineage.reference_folder(source), settings.policy.k)
    end = end_token(tokenizer)
    completions = InProcessEngine(policy.model, settings.execution.rollout_rows, policy.activations).generate(
        prompts, Sampling(settings.temperature, settings.max_response_tokens, end), settings.seed, work.advance
    )
    kl = [0.0] * len(completions)
    if source.stage != "sft":
        sequences = [TokenSequence(c.prompt, c.response) for c in completions]
        sft = lineage.load(lineage.sft_folder(source), source, settings.execution)
        kl = sequence_kl(policy, sft, sequences, settings.execution.tokens_per_micro_batch).tolist()
    read_result = benchmarks.result_reader(settings.benchmark)
    rows: list[dict[str, Any]] = []
    for question, completion, divergence in zip(questions, completions, kl, strict=True):
        text = decode_response(tokenizer, completion.response)
        rows.append(
            {
                "question": asdict(question),
                "text": text,
                "right": is_right(question, text, read_result),
                "tokens": completion.length,
                "cut": not completion.ended(end),
                "kl_to_sft": divergence,
            }
        )
    write_rows(work.output / ANSWERS, rows)
    work.table("samples/answers.json", rows[:16])
    return statistics(rows)


def statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the answers; accuracy where every question has a reference."""
    count = len(rows)
    measured = {
        "answer/response_tokens": sum(r["tokens"] for r in rows) / count,
        "answer/cut_share": sum(r["cut"] for r in rows) / count,
        "answer/kl_to_sft": sum(r["kl_to_sft"] for r in rows) / count,
        "answer/prompts": float(count),
    }
    if all(r["right"] is not None for r in rows):
        measured["answer/accuracy"] = sum(r["right"] for r in rows) / count
    return measured


def read_answers(folder: Path) -> list[dict[str, Any]]:
    with (folder / ANSWERS).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def pin(config: AnswerConfig) -> AnswerConfig:
    from dpr_core import benchmarks

    return config.model_copy(update={"benchmark": benchmarks.pinned(config.benchmark)})


def describe(config: StageConfig) -> str:
    settings = cast(AnswerConfig, config)
    control = f", extrapolated by k = {settings.policy.k:g}" if isinstance(settings.policy, Extrapolated) else ""
    return f"Answers to {settings.benchmark.type} at temperature {settings.temperature:g}{control}."


STAGE = Stage(
    name="answer",
    version=1,
    config=AnswerConfig,
    inputs={"policy": ("sft", "reinforce", "reward")},
    body=body,
    describe=describe,
    pin=pin,
)
