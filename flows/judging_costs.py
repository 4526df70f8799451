"""Estimated costs of the paid judging in a plan. Runs, fetches and requests nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import AnswerConfig, Benchmark, ChatCompletionsConfig, JudgeConfig, RateConfig
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.budget import CHARACTERS_PER_TOKEN, Cost, reply_tokens
from dpr_core.evaluation.judge import judging_cost, rater_with_content_hash, rating_cost, rating_template
from dpr_core.evaluation.pairwise import Answer, Pair
from dpr_core.evaluation.prices import price_warnings, prices
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.spending import SPENDING, Spending, Spent
from tasks.artifacts.store import Store
from tasks.graph import OTHER, Node, Planned
from tasks.stages.answer import answered, read_answers

LIKELY_SHARE = 0.5
"""The assumed length of an answer that does not exist yet, as a share of its limit."""

QUESTION_TOKENS = 120
"""Assumed for a question that is not on this machine; those of MT-Bench and Arena-Hard have about as many."""

Answered = Sequence[tuple[Question, tuple[str, ...]]]


@dataclass(frozen=True)
class CostLine:
    """All judging of one kind on one benchmark."""

    stage: str
    benchmark: str
    judgments: int
    """Artifacts to be made."""
    prompts: int
    cost: Cost


@dataclass(frozen=True)
class BudgetLeft:
    """A budget that stages to be run have, and what the ledger has left of it."""

    account: str
    dollars: float
    left: float

    def may_be_short(self, cost: Cost) -> bool:
        return cost.dollars_at_most is not None and cost.dollars_at_most > self.left


@dataclass(frozen=True)
class Costs:
    """Costs of paid judges, by benchmark."""

    lines: tuple[CostLine, ...]
    reused: int
    """Judgments that exist already, and cost nothing."""
    assumed: tuple[str, ...]
    budgets: tuple[BudgetLeft, ...] = ()

    @property
    def total(self) -> Cost:
        return sum((line.cost for line in self.lines), Cost())

    def as_dict(self) -> dict[str, Any]:
        lines = [{**asdict(line), "cost": line.cost.as_dict()} for line in self.lines]
        total = self.total.as_dict()
        return {
            "by_benchmark": lines,
            "total": total,
            "reused": self.reused,
            "assumed": list(self.assumed),
            "budgets": [asdict(budget) for budget in self.budgets],
        }


class _Answers(NamedTuple):
    """The answers of an artifact, or of one to be made."""

    artifact: str | None
    settings: AnswerConfig


def judging_costs(nodes: Sequence[Node], planned: Sequence[Planned], store: Store | None) -> Costs:
    """Of every judge and rate stage that is to run. Answers that exist are read from the store."""
    by_name = {node.name: node for node in nodes}
    step = {each.name: each for each in planned}
    paid = [
        node for node in nodes if node.stage in _COSTS and isinstance(cast(Any, node.config).by, ChatCompletionsConfig)
    ]
    to_run = [node for node in paid if step[node.name].status == "run"]
    lines: dict[tuple[str, str], CostLine] = {}
    judged: list[_Answers] = []
    canaries: set[tuple[Any, ...]] = set()

    def answers(source: str) -> _Answers:
        name = source.removeprefix(OTHER)
        if name in by_name:
            settings = cast(AnswerConfig, by_name[name].config)
            return _Answers(step[name].id, settings) if step[name].id else _Answers(None, _of_length(settings))
        assert store is not None
        return _Answers(source, AnswerConfig.model_validate(store.record(source).config))

    @cache
    def read(artifact: str) -> Answered:
        assert store is not None
        return answered(read_answers(store.fetch(artifact).path))

    @cache
    def cost(stage: str, config: StageConfig, *sides: tuple[str, _Answers]) -> tuple[Cost, int]:
        likely, longest = (_sides(dict(sides), read, share) for share in (LIKELY_SHARE, 1.0))
        bound = _COSTS[stage](config, longest)
        return _COSTS[stage](config, likely).at_most(bound), len(next(iter(likely.values())))

    for node in to_run:
        sides = {role: answers(source) for role, source in node.inputs.items()}
        benchmark = next(iter(sides.values())).settings.benchmark
        canary = (node.stage, cast(Any, node.config).by, node.inputs.get("baseline", benchmark))
        config = _without_canaries(node.config) if canary in canaries else node.config
        canaries.add(canary)
        found, prompts = cost(node.stage, config, *sides.items())
        key = (node.stage, _label(benchmark))
        line = lines.get(key, CostLine(*key, 0, prompts, Cost()))
        lines[key] = replace(line, judgments=line.judgments + 1, cost=line.cost + found)
        judged += sides.values()
    budgets = () if store is None else _budgets(to_run, store.home)
    return Costs(tuple(lines.values()), len(paid) - len(to_run), _assumed(to_run, judged), budgets)


def spent_in(home: Path) -> list[Spent]:
    """What the home's ledger says; nothing where there is none yet."""
    file = home / SPENDING
    return Spending(file).by_model() if file.is_file() else []


def _budgets(nodes: Sequence[Node], home: Path) -> tuple[BudgetLeft, ...]:
    executions = [cast(Any, node.config).execution for node in nodes]
    caps = {(each.budget_account, each.budget_dollars) for each in executions if each.budget_dollars is not None}
    if not caps:
        return ()
    spent: dict[str, float] = {}
    for each in spent_in(home):
        spent[each.account] = spent.get(each.account, 0.0) + each.dollars + each.set_aside
    return tuple(BudgetLeft(name, cap, round(cap - spent.get(name, 0.0), 2)) for name, cap in sorted(caps))


def _judge(config: JudgeConfig, sides: Mapping[str, Answered]) -> Cost:
    both = zip(sides["candidate"], sides["baseline"], strict=True)
    return judging_cost(
        config, [Pair(question, Answer(ours), Answer(theirs)) for (question, ours), (_, theirs) in both]
    )


def _rate(config: RateConfig, sides: Mapping[str, Answered]) -> Cost:
    return rating_cost(config, rating_template(rater_with_content_hash(config)), sides["answers"])


_COSTS: dict[str, Callable[[Any, Mapping[str, Answered]], Cost]] = {"judge": _judge, "rate": _rate}


def _sides(sides: Mapping[str, _Answers], read: Callable[[str], Answered], share: float) -> dict[str, Answered]:
    """The answers of every side; those that do not exist yet have this share of their limit."""
    known = {role: read(side.artifact) for role, side in sides.items() if side.artifact is not None}
    if known:
        questions = [question for question, _ in next(iter(known.values()))]
    else:
        questions = _questions(next(iter(sides.values())).settings, share)
    return {
        role: known.get(role) or [(question, _imagined(question, side.settings, share)) for question in questions]
        for role, side in sides.items()
    }


def _questions(settings: AnswerConfig, share: float) -> list[Question]:
    if benchmarks.missing(settings.benchmark) is None:
        return benchmarks.load(benchmarks.with_content_hash(settings.benchmark))
    tokens = settings.max_prompt_tokens if share == 1.0 else min(QUESTION_TOKENS, settings.max_prompt_tokens)
    known = benchmarks.placeholder_questions(settings.benchmark)
    return [replace(each, turns=(_text(tokens / len(each.turns)),) * len(each.turns)) for each in known]


def _imagined(question: Question, settings: AnswerConfig, share: float) -> tuple[str, ...]:
    return (_text(share * settings.max_response_tokens),) * len(question.turns)


def _of_length(settings: AnswerConfig) -> AnswerConfig:
    """What the cost of answers that are yet to be drawn depends on, whatever policy draws them."""
    kept = ("benchmark", "max_prompt_tokens", "max_response_tokens")
    return AnswerConfig(**{name: getattr(settings, name) for name in kept})


def _text(tokens: float) -> str:
    return "x" * int(tokens * CHARACTERS_PER_TOKEN)


def _without_canaries(config: StageConfig) -> StageConfig:
    """For judging that finds the canaries' verdicts in the cache."""
    execution = cast(Any, config).execution
    return config.model_copy(update={"execution": execution.model_copy(update={"canaries": 0})})


def _label(benchmark: Benchmark) -> str:
    path = getattr(benchmark, "path", None) if benchmark.type == "file" else None
    return path or benchmark.type


def _assumed(nodes: Sequence[Node], judged: Sequence[_Answers]) -> tuple[str, ...]:
    """The assumptions behind the numbers, in sentences."""
    if not nodes:
        return ()
    imagined = [side.settings for side in judged if side.artifact is None]
    absent = sorted({_label(each.benchmark) for each in imagined if benchmarks.missing(each.benchmark)})
    longest = sorted({each.max_response_tokens for each in imagined})
    replies = sorted({reply_tokens(cast(Any, node.config).by) for node in nodes})
    sentences = [
        f"Prices {' or '.join(sorted({prices(cast(Any, node.config).execution) for node in nodes}))}, at "
        f"{CHARACTERS_PER_TOKEN:g} characters a token; a reply has about {' or '.join(map(str, replies))} tokens, at "
        "most max_tokens.",
        "Verdicts that are kept already would cost nothing; replies that cannot be read are asked for again, and paid.",
    ]
    sentences += price_warnings((cast(Any, node.config).by, cast(Any, node.config).execution) for node in nodes)
    if longest:
        sentences.append(
            f"Answers that are not there yet have at most {' or '.join(map(str, longest))} tokens a turn, and about "
            f"{LIKELY_SHARE:.0%} of that."
        )
    if absent:
        sentences.append(
            f"The questions of {', '.join(absent)} are not on this machine: their official number is counted, each of "
            f"at most max_prompt_tokens and about {QUESTION_TOKENS} tokens."
        )
    return tuple(sentences)
