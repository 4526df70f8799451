"""One policy answers one benchmark."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import AnswerConfig, AsTrained, BestOfN, Contrastive, Extrapolated
from dpr_core.errors import UsageError
from tasks.lineage import TRAINED, Lineage
from tasks.policies import answering
from tasks.stage import Stage, Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from dpr_core.models.dense_reward import ScoredTokens

ANSWERS = "answers.jsonl"
PROFILE = "profile.json"


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core import benchmarks
    from dpr_core.benchmarks.base import is_right
    from dpr_core.data.encoding import TokenSequence, decode_response, encode_prompt, end_token
    from dpr_core.rollouts.engine import Sampling

    settings = cast(AnswerConfig, config)
    lineage = Lineage(work.store)
    source = work.input("policy")
    questions = benchmarks.load(settings.benchmark)
    tokenizer, renderer = lineage.tokenizer(source), lineage.renderer(source)
    prompts = [encode_prompt(tokenizer, renderer.render(q.prompt, q.system)) for q in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) > settings.max_prompt_tokens:
            raise UsageError(
                f"question {question.id} has {len(prompt)} tokens, more than max_prompt_tokens="
                f"{settings.max_prompt_tokens}"
            )
    asked = answering(settings, lineage, source)
    asked.sft.check_length(max(map(len, prompts)) + settings.max_response_tokens)
    end = end_token(tokenizer)
    sampling = Sampling(settings.temperature, settings.max_response_tokens, end)
    completions = asked.draw(prompts, sampling, work.advance)
    sequences = [TokenSequence(c.prompt, c.response) for c in completions]
    state_kl = asked.kl_to_sft(sequences)
    kl = [None] * len(completions) if state_kl is None else state_kl.sum(dim=1).tolist()
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
    if asked.reward is not None:
        write_profile(work, profile(state_kl, asked.reward(sequences)))
    return statistics(rows) | bound(settings)


def profile(kl: "Tensor | None", scored: "ScoredTokens") -> list[dict[str, Any]]:
    """At each response position: how many answers reach it, and their mean exact KL to SFT and mean token reward."""
    from dpr_core.masking import mean_by_position

    rewards = mean_by_position(scored.rewards, scored.mask)
    kls = [None] * len(rewards) if kl is None else mean_by_position(kl, scored.mask)
    return [
        {"position": t, "answers": count, "kl_to_sft": kls[t], "reward": rewards[t]}
        for t, count in enumerate(scored.mask.sum(dim=0).tolist())
    ]


def write_profile(work: Workspace, positions: list[dict[str, Any]]) -> None:
    from dpr_core.reporting import plots

    (work.output / PROFILE).write_text(json.dumps(positions, indent=1) + "\n", encoding="utf-8")
    shown = {
        name: [(float(p["position"]), float(p[name])) for p in positions]
        for name in ("kl_to_sft", "reward", "answers")
        if positions[0][name] is not None
    }
    plots.lines(work.scratch / "profile.png", "Along the answers", "position in the response", shown)
    work.run.file(work.scratch / "profile.png", "plots")


def bound(settings: AnswerConfig) -> dict[str, float]:
    """What is known of best-of-n's KL to SFT without measuring it."""
    from dpr_core.rollouts.best_of_n import kl_bound

    return {"answer/kl_bound": kl_bound(settings.policy.n)} if isinstance(settings.policy, BestOfN) else {}


def statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the answers; the KL where the policy has one, accuracy where every question has a reference."""
    count = len(rows)
    measured = {
        "answer/response_tokens": sum(r["tokens"] for r in rows) / count,
        "answer/cut_share": sum(r["cut"] for r in rows) / count,
        "answer/prompts": float(count),
    }
    if all(r["kl_to_sft"] is not None for r in rows):
        measured["answer/kl_to_sft"] = sum(r["kl_to_sft"] for r in rows) / count
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
    match settings.policy:
        case AsTrained():
            control = ""
        case Extrapolated(k=k):
            control = f", extrapolated by k = {k:g}"
        case Contrastive(k=k):
            control = f", contrastive with k = {k:g}"
        case BestOfN(n=n, by=by):
            control = f", best of {n} by {by}"
    return f"Answers to {settings.benchmark.type} at temperature {settings.temperature:g}{control}."


STAGE = Stage(
    name="answer",
    version=2,
    config=AnswerConfig,
    inputs={"policy": ("sft", "reward", *TRAINED)},
    body=body,
    describe=describe,
    pin=pin,
)
