"""One policy answers one benchmark."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import (
    AnswerConfig,
    AsTrainedConfig,
    BestOfNConfig,
    ContrastiveConfig,
    ExtrapolatedConfig,
    KeptConfig,
    LabBenchmarkConfig,
    SFTPolicyConfig,
)
from dpr_core.config.gold import LikelihoodConfig
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import TRAINED, Lineage
from tasks.stages.matching import Trials, with_strength
from tasks.stages.policies import answering, conversations, log_probs, reaches

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from dpr_core.config.evaluation import Benchmark
    from dpr_core.evaluation.gold.measures import Estimate
    from dpr_core.evaluation.questions import Question
    from dpr_core.models.dense_reward import ScoredTokens
    from dpr_core.rollouts.engine import Completion

logger = logging.getLogger("dense_path")

MATCH = "match"
"""The role of the answers that these are to be like."""

ANSWERS = "answers.jsonl"
PROFILE = "profile.json"

OFFICIAL = "official"
"""The folder of the answers in a public benchmark's own layout."""


def body(config: StageConfig, work: Work) -> dict[str, float]:
    from dpr_core.data.encoding import TokenSequence, end_token
    from dpr_core.evaluation import benchmarks
    from dpr_core.evaluation.gold.measures import answers_cut, cut_warning

    settings = cast(AnswerConfig, config)
    lineage = Lineage(work.store)
    source = work.input("policy")
    tokenizer, renderer = lineage.tokenizer(source), lineage.renderer(source)
    questions = benchmarks.load(settings.benchmark)
    if isinstance(settings.benchmark, LikelihoodConfig):
        if settings.matched or isinstance(settings.policy, SFTPolicyConfig):
            raise UsageError(
                "a likelihood is that of a network at temperature 1, for which nothing is drawn or matched"
            )
        return likelihoods(settings, lineage, source, questions, work)
    found: dict[str, float] = {}
    recorder: Work | Trials = work
    if settings.matched != (MATCH in work.inputs):
        raise UsageError("`match` of a policy and the input match, the answers to be like, go together: give both")
    if settings.matched:
        theirs = read_answers(work.input(MATCH).path)
        settings, found, recorder = with_strength(settings, lineage, source, questions, theirs, work)
    spoken = conversations(settings, tokenizer, renderer, questions)
    responder = answering(settings, lineage, source)
    answers = responder.ask(spoken, end_token(tokenizer), recorder)
    sequences = [TokenSequence(c.prompt, c.response) for turns in answers for c in turns]
    temperatures = [each.temperature for each in spoken]
    scored, state_kl, entropies = responder.measure(
        sequences, entropy_temperature(temperatures), partial(recorder.part, "scoring")
    )
    rows = _rows(settings, questions, answers, tokenizer, None if state_kl is None else state_kl.sum(dim=1).tolist())
    write_rows(work.output / ANSWERS, rows)
    _write_official(settings, source.stage, rows, work.output)
    work.table("samples/answers.json", rows[:16])
    if scored is not None:
        write_profile(work, profile(state_kl, scored))
    measured = gold_metrics(settings, rows)
    if (warning := cut_warning(answers_cut(rows), len(rows))) is not None:
        logger.warning("%s: %s", settings.benchmark.type, warning)
    overlap = trained_on(settings, questions, lineage.trained_prompts(source))
    measured |= entropy(settings, answers, temperatures, entropies) | kept_reached(settings, source) | found
    return statistics(rows) | measured | bound(settings) | overlap


def likelihoods(
    settings: AnswerConfig, lineage: Lineage, source: Artifact, questions: "list[Question]", work: Work
) -> dict[str, float]:
    """In place of answers: how likely the demonstrated responses are, encoded and cut as SFT's rows are."""
    from dpr_core.data.demonstrations import encode_demonstrations
    from dpr_core.data.encoding import end_token
    from dpr_core.data.rows import Demonstration
    from dpr_core.evaluation.gold.likelihood import of_response

    tokenizer, renderer = lineage.tokenizer(source), lineage.renderer(source)
    demonstrated = [Demonstration(each.id, each.system, each.prompt, each.references[0]) for each in questions]
    encoded = encode_demonstrations(
        tokenizer, renderer, demonstrated, settings.max_prompt_tokens, settings.max_response_tokens
    )
    if not encoded.sequences:
        raise UsageError(
            f"all {len(questions)} prompts of the likelihood benchmark are longer than "
            f"answer.max_prompt_tokens={settings.max_prompt_tokens}; raise it"
        )
    if encoded.prompts_too_long or encoded.responses_cut:
        logger.warning(
            "likelihood: %d of the %d prompts are longer than answer.max_prompt_tokens=%d and left out, and %d "
            "responses are cut at answer.max_response_tokens=%d",
            encoded.prompts_too_long,
            len(questions),
            settings.max_prompt_tokens,
            encoded.responses_cut,
            settings.max_response_tokens,
        )
    scores = log_probs(settings, lineage, source, encoded.sequences, work).double().sum(dim=1).tolist()
    end = end_token(tokenizer)
    rows = [
        {
            "question": asdict(questions[i]),
            "turns": [],
            "right": None,
            "tokens": len(sequence.response),
            "cut": sequence.response[-1] != end,
            "kl_to_sft": None,
            "gold": of_response(score, len(sequence.response)),
        }
        for i, sequence, score in zip(encoded.kept, encoded.sequences, scores, strict=True)
    ]
    write_rows(work.output / ANSWERS, rows)
    overlap = trained_on(settings, questions, lineage.trained_prompts(source))
    left_out = {"gold/left_out": float(encoded.prompts_too_long)}
    return gold_metrics(settings, rows) | left_out | overlap | kept_reached(settings, source)


def _rows(
    settings: AnswerConfig,
    questions: "list[Question]",
    answers: "list[list[Completion]]",
    tokenizer: "PreTrainedTokenizerBase",
    kl: list[float] | None,
) -> list[dict[str, Any]]:
    """A row for each question: what was asked, the text of every turn's answer, and sums over the turns."""
    from dpr_core.data.encoding import decode_response, end_token
    from dpr_core.evaluation import benchmarks

    end = end_token(tokenizer)
    is_right, gold = benchmarks.checker(settings.benchmark), benchmarks.gold(settings.benchmark)
    left = iter(kl) if kl is not None else None
    rows = []
    for question, completions in zip(questions, answers, strict=True):
        turns = [decode_response(tokenizer, completion.response) for completion in completions]
        rows.append(
            {
                "question": asdict(question),
                "turns": turns,
                "right": is_right(question, turns[-1]),
                "tokens": sum(completion.length for completion in completions),
                "cut": any(not completion.ended(end) for completion in completions),
                "kl_to_sft": None if left is None else sum(next(left) for _ in completions),
                **({"gold": dict(gold.of_answer(question, turns[-1]))} if gold and gold.of_answer else {}),
            }
        )
    return rows


def gold_estimates(benchmark: "Benchmark", rows: list[dict[str, Any]]) -> "dict[str, Estimate]":
    """The gold measures of the answers to a benchmark that has some, the primary one first."""
    from dpr_core.evaluation import benchmarks
    from dpr_core.evaluation.gold.measures import Estimate, pooled

    gold, measured = benchmarks.gold(benchmark), [row for row in rows if row.get("gold")]
    if gold is None or not measured:
        return {}
    found = pooled(gold, [row["gold"] for row in measured])
    if gold.of_answers is not None:
        texts = [(question, turns[-1]) for question, turns in answered(measured)]
        found |= {name: Estimate(value, None, None) for name, value in gold.of_answers(texts).items()}
    return found


def gold_metrics(settings: AnswerConfig, rows: list[dict[str, Any]]) -> dict[str, float]:
    """They as metrics, and of how many answers that were cut they were taken."""
    from dpr_core.evaluation.gold.measures import answers_cut

    found = gold_estimates(settings.benchmark, rows)
    metrics = {f"gold/{name}": estimate.value for name, estimate in found.items()}
    return metrics | ({"gold/cut": float(answers_cut(rows))} if found else {})


def _write_official(settings: AnswerConfig, stage: str, rows: list[dict[str, Any]], folder: Path) -> None:
    """The answers to a public benchmark once more, as its own tools read them."""
    from dpr_core.evaluation import benchmarks

    official = benchmarks.official_file(settings.benchmark, model_name(settings, stage), answered(rows))
    if official is not None:
        name, text = official
        (folder / OFFICIAL).mkdir()
        (folder / OFFICIAL / name).write_text(text, encoding="utf-8")


def model_name(settings: AnswerConfig, stage: str) -> str:
    """What a policy is called in the benchmarks' own files."""
    return f"dense-path-{stage if isinstance(settings.policy, AsTrainedConfig) else settings.policy.type}"


def profile(kl: "Tensor | None", scored: "ScoredTokens") -> list[dict[str, Any]]:
    """At each response position: how many answers reach it, and their mean exact KL to SFT and mean token reward."""
    from dpr_core.masking import mean_by_position

    rewards = mean_by_position(scored.rewards, scored.mask)
    kls = [None] * len(rewards) if kl is None else mean_by_position(kl, scored.mask)
    return [
        {"position": t, "answers": count, "kl_to_sft": kls[t], "reward": rewards[t]}
        for t, count in enumerate(scored.mask.sum(dim=0).tolist())
    ]


def write_profile(work: Work, positions: list[dict[str, Any]]) -> None:
    from dpr_core.reporting import plots

    (work.output / PROFILE).write_text(json.dumps(positions, indent=1) + "\n", encoding="utf-8")
    shown = {
        name: [(float(p["position"]), float(p[name])) for p in positions]
        for name in ("kl_to_sft", "reward", "answers")
        if positions[0][name] is not None
    }
    plots.lines(work.scratch / "profile.png", "Along the answers", "position in the response", shown)
    work.file(work.scratch / "profile.png", "plots")


def trained_on(settings: AnswerConfig, questions: "Sequence[Question]", prompts: frozenset[str]) -> dict[str, float]:
    """How many questions are prompts that the policy was trained on, where there are any; a warning, unless that is
    what was asked for."""
    from dpr_core.text import same_words

    found = sum(same_words(question.turns[0]) in prompts for question in questions)
    if found and not asks_training_prompts(settings.benchmark):
        logger.warning(
            "answer: %d of the %d questions of %s are prompts that this policy was trained on",
            found,
            len(questions),
            settings.benchmark.type,
        )
    return {"answer/trained_on": float(found)} if found else {}


def asks_training_prompts(benchmark: "Benchmark") -> bool:
    """Whether that is what the benchmark is for."""
    return isinstance(benchmark, LabBenchmarkConfig) and benchmark.split == "train"


def kept_reached(settings: AnswerConfig, run: Artifact) -> dict[str, float]:
    """Of a policy that was to be kept at a KL, whether its run came so far; else it is the last one."""
    policy = settings.policy
    return {"answer/kept_reached": float(reaches(run, policy.kl))} if isinstance(policy, KeptConfig) else {}


def entropy_temperature(temperatures: Sequence[float]) -> float | None:
    """The temperature at which one pass can measure the entropies of all answers: that which drew them, or 1 of greedy
    ones; None where they were drawn at several."""
    first, *others = set(temperatures)
    return None if others else first or 1.0


def entropy(
    settings: AnswerConfig,
    answers: "Sequence[Sequence[Completion]]",
    temperatures: Sequence[float],
    exact: "Tensor | None",
) -> dict[str, float]:
    """Nats a token of the distribution that drew, which is 0 for greedy answers, and there that at temperature 1; exact
    in each state, or the mean of -log pi over the tokens. A choice among samples has none."""
    if isinstance(settings.policy, BestOfNConfig):
        return {}
    pairs = [(c, t) for turns, t in zip(answers, temperatures, strict=True) for c in turns]
    tokens = sum(completion.length for completion, _ in pairs)
    drawn = sum(-sum(completion.log_probs) for completion, t in pairs if t > 0) / tokens
    if exact is None or entropy_temperature(temperatures) is None:
        return {"answers/entropy": drawn}
    mean = float(exact.double().sum()) / tokens
    return {"answers/entropy": mean} if temperatures[0] > 0 else {"answers/entropy": 0.0, "answers/entropy_at_1": mean}


def bound(settings: AnswerConfig) -> dict[str, float]:
    """What is known of best-of-n's KL to SFT without measuring it."""
    from dpr_core.rollouts.best_of_n import kl_bound

    return {"answer/kl_bound": kl_bound(settings.policy.n)} if isinstance(settings.policy, BestOfNConfig) else {}


def statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the answers; the KL where the policy has one, accuracy where every question has a reference."""
    from dpr_core.evaluation.gold import degeneration
    from dpr_core.evaluation.gold.measures import shares

    count = len(rows)
    measured = {
        "answer/response_tokens": sum(r["tokens"] for r in rows) / count,
        "answer/cut_share": sum(r["cut"] for r in rows) / count,
        "answer/empty_share": sum(not all(map(str.strip, r["turns"])) for r in rows) / count,
        "answer/prompts": float(count),
    }
    if all(r["kl_to_sft"] is not None for r in rows):
        measured["answer/kl_to_sft"] = sum(r["kl_to_sft"] for r in rows) / count
    if all(r["right"] is not None for r in rows):
        measured["answer/accuracy"] = sum(r["right"] for r in rows) / count
    texts = [degeneration.of_answer(r["turns"]) for r in rows if r["turns"]]
    return measured | {f"answer/{name}": share for name, share in shares(degeneration.MEASURES, texts).items()}


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The rows of an artifact; those of version 2 hold the text of their only turn."""
    with (folder / ANSWERS).open(encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [row if "turns" in row else {**row, "turns": [row["text"]]} for row in rows]


def answered(rows: list[dict[str, Any]]) -> "list[tuple[Question, tuple[str, ...]]]":
    """The questions of rows, each with the text of the answer to every turn."""
    from dpr_core.evaluation.questions import Question

    return [(Question.of(row["question"]), tuple(row["turns"])) for row in rows]


def same_questions(ours: "Iterable[Question]", theirs: "Iterable[Question]") -> bool:
    """Whatever their categories: Arena-Hard's questions had none in earlier answers."""
    first, second = ([replace(question, category="") for question in side] for side in (ours, theirs))
    return first == second


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def pin(config: AnswerConfig) -> AnswerConfig:
    from dpr_core.evaluation import benchmarks

    return config.model_copy(update={"benchmark": benchmarks.with_content_hash(config.benchmark)})


def missing(config: AnswerConfig) -> str | None:
    from dpr_core.evaluation import benchmarks

    return benchmarks.missing(config.benchmark)


def preflight(configs: Sequence[AnswerConfig], planning: bool = False) -> None:
    """Questions that cannot be had are better known before the training than after."""
    from dpr_core.evaluation import benchmarks

    for benchmark in {config.benchmark for config in configs}:
        benchmarks.check_source(benchmark)
        if not planning:
            benchmarks.load(benchmarks.with_content_hash(benchmark))


def describe(config: StageConfig) -> str:
    settings = cast(AnswerConfig, config)
    match settings.policy:
        case AsTrainedConfig():
            control = ""
        case KeptConfig(kl=kl):
            control = f", as the policy first reached a KL of {kl:g}"
        case SFTPolicyConfig(match=str()):
            control = ", and of SFT at the entropy of others"
        case ExtrapolatedConfig(match=str()):
            control = ", extrapolated to the KL of others"
        case SFTPolicyConfig():
            control = ""
        case ExtrapolatedConfig(k=k):
            control = f", extrapolated by k = {k:g}"
        case ContrastiveConfig(k=k):
            control = f", contrastive with k = {k:g}"
        case BestOfNConfig(n=n, by=by):
            control = f", best of {n} by {by}"
    return f"Answers to {settings.benchmark.type} at temperature {settings.drawn_at:g}{control}."


STAGE = Stage(
    name="answer",
    version=3,
    config=AnswerConfig,
    inputs={"policy": ("sft", "reward", *TRAINED), MATCH: ("answer",)},
    optional=frozenset({MATCH}),
    body=body,
    shared=True,
    describe=describe,
    pin=pin,
    missing=missing,
    preflight=preflight,
)
