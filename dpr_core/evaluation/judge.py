"""LLM judges, raters and their scripted twins, built from settings; their cost estimate and a probe of the endpoint."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dpr_core.config import evaluation as settings
from dpr_core.config.base import Config
from dpr_core.errors import UsageError
from dpr_core.evaluation import canaries
from dpr_core.evaluation.ask import CachedJudge, ChatJudge, RuleJudge
from dpr_core.evaluation.batch.judge import BatchJudge
from dpr_core.evaluation.budget import BudgetReachedError, Cost, cost_of, tokens_in
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.endpoint import THINKING_SPENT, Endpoint, RefusedError, UnavailableError, UnreachableError
from dpr_core.evaluation.fastchat import FastChatTemplate
from dpr_core.evaluation.pairwise import Answer, Comparison, Judgment, Pair, PairwiseJudge, Verdict
from dpr_core.evaluation.prompts import PAIRWISE_DIGEST, RATING_DIGEST, SCHEMA, OwnRatingTemplate, PairwisePrompt
from dpr_core.evaluation.protocols import JudgingProtocol, OfficialPrompt, protocol_of
from dpr_core.evaluation.questions import IsRight, Question
from dpr_core.evaluation.rate import HIGHEST, LOWEST, Rater, Rating, RatingPrompt, RatingTemplate, Turn, turns_of
from dpr_core.evaluation.spending import Spending
from dpr_core.files import expanded
from dpr_core.hashing import hash_file

C = TypeVar("C", bound=settings.ChatCompletionsConfig)

PROBE = [{"role": "user", "content": "Say yes."}]
PROBE_TOKENS = 16
"""Of the reply, whatever the judge may write otherwise."""
PROBE_SECONDS = 30.0
FREE_PROBE_SECONDS = 5.0

CHARACTERS_A_POINT = 20

NAMED = {"models": "model", "system_fingerprints": "system_fingerprint"}
"""What is counted of the replies, and what a reply calls it."""


def build_judge(
    config: settings.JudgeByConfig,
    execution: settings.JudgeExecutionConfig,
    is_right: IsRight,
    cache: Path | None = None,
    protocol: JudgingProtocol | None = None,
) -> PairwiseJudge:
    """The judge that the settings name; UsageError where it cannot work here (no key, no client library).

    With `cache`, a judge that costs anything is never asked the same twice; with `protocol`, it is asked by this.
    """
    match config:
        case settings.VerifiableJudgeConfig():
            return RuleJudge(lambda comparison: _verified(comparison, is_right))
        case settings.ScriptedJudgeConfig(rule=rule):
            return RuleJudge(lambda comparison: Judgment(PAIRWISE_RULES[rule](comparison), f"rule: {rule}"))
    prompt = _prompt(config, protocol)
    name = partial(identity, protocol=protocol)
    judge: PairwiseJudge
    if isinstance(config, settings.OpenAIBatchJudgeConfig):
        judge = BatchJudge(config, execution, prompt, name(config), cache, _ledger(execution, cache))
    else:
        judge = ChatJudge(config, execution, prompt, _ledger(execution, cache))
    if cache is None:
        return judge
    return CachedJudge(judge, VerdictCache(cache), name(config), prompt.judgment, _undated(config, name))


def _prompt(config: settings.ChatJudgeConfig, protocol: JudgingProtocol | None) -> PairwisePrompt:
    most = config.max_answer_characters
    return PairwisePrompt(most) if protocol is None else OfficialPrompt(protocol, most)


def build_rater(config: settings.RateConfig, template: RatingTemplate, cache: Path | None = None) -> Rater:
    """The rater that the settings name; errors and `cache` as in `build_judge`."""
    if isinstance(config.by, settings.ScriptedRaterConfig):
        rule = RATING_RULES[config.by.rule]
        return RuleJudge(lambda turn: _rating_by(rule, turn, template))
    prompt = RatingPrompt(template, config.by.max_answer_characters)
    rater: Rater = ChatJudge(config.by, config.execution, prompt, _ledger(config.execution, cache))
    if cache is None:
        return rater
    known = config if config.prompts_content is not None else rater_with_content_hash(config)

    by = known.by
    assert isinstance(by, settings.OpenAIRaterConfig)

    def name(by: settings.OpenAIRaterConfig) -> str:
        return json.dumps(["rate", by.model_dump(mode="json"), known.prompts_content])

    return CachedJudge(rater, VerdictCache(cache), name(by), prompt.judgment, _undated(by, name))


def _ledger(execution: settings.JudgeExecutionConfig, cache: Path | None) -> Spending:
    """Where money has a limit, not even a power cut may make the ledger forget what was sent."""
    return Spending.beside(cache, durable=execution.budget_dollars is not None)


def rating_template(config: settings.RateConfig) -> RatingTemplate:
    """This project's own instructions, or those of the file that the settings name."""
    if config.prompts is None:
        return OwnRatingTemplate()
    return FastChatTemplate.read_from(expanded(config.prompts), config.prompts_content)


def judging_protocol(config: settings.JudgeConfig) -> JudgingProtocol | None:
    """What `prompts` names, if anything."""
    if config.prompts is None:
        return None
    if not isinstance(config.by, settings.ChatJudgeConfig):
        raise UsageError(
            f"judge.prompts: the {config.by.type} judge reads no prompts; set judge.by.type=openai, or leave them out"
        )
    return protocol_of(config.prompts)


def judging_by(config: settings.JudgeConfig) -> tuple[settings.JudgeConfig, JudgingProtocol | None]:
    """The settings with the hash of the instructions and what belongs to them, and the protocol, if there is one."""
    protocol = judging_protocol(config)
    return config.model_copy(update={"by": judge_with_content_hash(config.by, protocol)}), protocol


def judge_with_content_hash(
    config: settings.JudgeByConfig, protocol: JudgingProtocol | None = None
) -> settings.JudgeByConfig:
    """The judge together with the hash of the instructions that it is given."""
    if not isinstance(config, settings.ChatJudgeConfig):
        return config
    if protocol is None:
        return config.model_copy(update={"template": PAIRWISE_DIGEST, "top_logprobs": None})
    belongs = {"verdicts": "text", "top_logprobs": None, **protocol.settings}
    return config.model_copy(update={"template": protocol.digest, **belongs})


def rater_with_content_hash(config: settings.RateConfig) -> settings.RateConfig:
    """The settings together with the hash of the instructions that the rater is given."""
    if isinstance(config.by, settings.ChatCompletionsConfig):
        config = config.model_copy(update={"by": config.by.model_copy(update={"top_logprobs": None})})
    if config.prompts is not None:
        try:
            content = hash_file(expanded(config.prompts))
        except OSError as error:
            raise UsageError(f"rate.prompts: {config.prompts} cannot be read: {error.strerror}") from None
        return config.model_copy(update={"prompts_content": content})
    if isinstance(config.by, settings.ChatCompletionsConfig):
        return config.model_copy(update={"by": config.by.model_copy(update={"template": RATING_DIGEST})})
    return config


def identity(config: settings.JudgeByConfig, protocol: JudgingProtocol | None = None) -> str:
    """All of a judge that a verdict depends on. How a request is delivered is not: a batch shares what it knows."""
    if isinstance(config, settings.OpenAIBatchJudgeConfig):
        config = settings.OpenAIJudgeConfig.model_validate(config.model_dump(exclude={"type"}))
    return judge_with_content_hash(config, protocol).model_dump_json()


DATED = re.compile(r"-20\d\d-\d\d-\d\d$")


def _undated(by: C, identity: Callable[[C], str]) -> tuple[str, str] | None:
    """The identity of the same judge by the name of its model without a date, and the name with it, if it has one."""
    name = DATED.sub("", by.model)
    return None if name == by.model else (identity(by.model_copy(update={"model": name})), by.model)


def costs_money(by: Config) -> bool:
    """Whether a verdict or a rating has to be paid for."""
    return isinstance(by, settings.ChatCompletionsConfig)


def rater_name(config: settings.RateConfig) -> str:
    """What the rater is called in FastChat's rows."""
    return config.by.model if isinstance(config.by, settings.OpenAIRaterConfig) else config.by.type


def rounds(pairs: Sequence[Pair], protocol: JudgingProtocol | None) -> list[Pair]:
    """What is shown in both orders: each pair, or turn by turn where these prompts ask about turns."""
    return list(pairs) if protocol is None else [part for pair in pairs for part in protocol.rounds(pair)]


def judging_cost(config: settings.JudgeConfig, pairs: Sequence[Pair]) -> Cost:
    """Of both orders of every pair and of the canaries, if none of the verdicts is kept already."""
    config, protocol = judging_by(config)
    if not isinstance(config.by, settings.ChatJudgeConfig):
        return Cost()
    prompt = _prompt(config.by, protocol)
    same, constant = canaries.canary_pairs(pairs, config.execution.canaries)
    played = [*rounds(pairs, protocol), *same, *constant]
    shown = (pair.shown(first) for pair in played for first in (True, False))
    return cost_of((tokens_in(prompt.messages(each)) for each in shown), config.by, config.execution)


def rating_cost(
    config: settings.RateConfig, template: RatingTemplate, answered: Sequence[tuple[Question, tuple[str, ...]]]
) -> Cost:
    """Of every rating of these answers and of the canary, if none of them is kept already."""
    if not isinstance(config.by, settings.ChatCompletionsConfig):
        return Cost()
    prompt = RatingPrompt(template, config.by.max_answer_characters)
    turns = turns_of(answered, config.judgings)
    turns += canaries.canary_turns([question for question, _ in answered], config.execution.canaries)
    return cost_of((tokens_in(prompt.messages(turn)) for turn in turns), config.by, config.execution)


def probe_each(
    judges: Iterable[tuple[Config, settings.JudgeExecutionConfig]],
    cache: Path | None = None,
    *,
    for_nothing: bool = False,
) -> None:
    """One short request to each endpoint before any work, but for those with `check_endpoint` off.

    A wrong key, address or model is known then and not hours later. An endpoint that is overloaded or slow passes.
    With `for_nothing` no completion is asked for, and only the address and the key are checked.
    """
    found = {
        (by.base_url, by.model, by.api_version, execution.api_key_variable): (by, execution)
        for by, execution in judges
        if isinstance(by, settings.ChatCompletionsConfig) and execution.check_endpoint
    }
    for by, execution in found.values():
        asyncio.run(_probe(by, execution, None if for_nothing else cache, for_nothing))


async def _probe(
    config: settings.ChatCompletionsConfig,
    execution: settings.JudgeExecutionConfig,
    cache: Path | None,
    for_nothing: bool,
) -> None:
    seconds = min(FREE_PROBE_SECONDS if for_nothing else PROBE_SECONDS, execution.request_seconds)
    once = execution.model_copy(update={"retries": 0, "request_seconds": seconds})
    endpoint = Endpoint(config.model_copy(update={"max_tokens": PROBE_TOKENS}), once, _ledger(execution, cache))
    demanded = isinstance(config, settings.ChatJudgeConfig) and config.verdicts == "schema"
    try:
        if for_nothing:
            await endpoint.knock()
        else:
            await endpoint.ask(PROBE, SCHEMA if demanded else None)
    except UnreachableError:
        raise
    except (UnavailableError, BudgetReachedError):
        # Verdicts that are all kept cost nothing.
        return
    except RefusedError as error:
        # What thinks before it writes does not come to an end so soon.
        if THINKING_SPENT not in str(error):
            raise
    finally:
        await endpoint.close()


def judged_by(by: Config, replies: Iterable[Mapping[str, str | int]]) -> dict[str, Any]:
    """The judge's settings, with the hash of its instructions, and how many replies each model and version wrote."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in NAMED}
    own = 0
    for told in replies:
        own += "temperature" in told
        for name, field in NAMED.items():
            if field in told:
                counts[name][str(told[field])] += 1
    found = {**by.model_dump(mode="json"), **{name: dict(sorted(count.items())) for name, count in counts.items()}}
    if own:
        found["at_a_temperature_of_its_own"] = own
    return found


def judged_by_warnings(found: Mapping[str, Any]) -> list[str]:
    """What should be known of it: that several models or versions have judged side by side, or not as was set."""
    own = found.get("at_a_temperature_of_its_own")
    said = (
        [f"The model takes no temperature: {own} replies are at its own, not at {found['temperature']}."] if own else []
    )
    return said + [
        f"Several {name.replace('_', ' ')} have judged: "
        f"{', '.join(f'{each} ({count} replies)' for each, count in found[name].items())}."
        for name in NAMED
        if len(found[name]) > 1
    ]


def _size(answer: Answer) -> int:
    return sum(len(turn) for turn in answer.turns)


def _longer(first: Answer, second: Answer) -> Verdict:
    a, b = _size(first), _size(second)
    return Verdict.TIE if a == b else Verdict.FIRST if a > b else Verdict.SECOND


PAIRWISE_RULES: dict[str, Callable[[Comparison], Verdict]] = {
    "longer": lambda shown: _longer(shown.first, shown.second),
    "shorter": lambda shown: _longer(shown.second, shown.first),
    "first": lambda shown: Verdict.FIRST,
    "tie": lambda shown: Verdict.TIE,
    "unreadable": lambda shown: Verdict.UNREADABLE,
}
"""Lengths are counted in characters."""

RATING_RULES: dict[str, Callable[[str], float | None]] = {
    "length": lambda text: min(LOWEST + len(text) // CHARACTERS_A_POINT, HIGHEST),
    "unreadable": lambda text: None,
}


def _verified(comparison: Comparison, is_right: IsRight) -> Judgment:
    """The answer that is right wins; a tie where both are or neither is."""
    right = [is_right(comparison.question, answer.turns[-1]) for answer in (comparison.first, comparison.second)]
    if None in right:
        raise UsageError(
            f"question {comparison.question.id} has no reference, which the verifiable judge needs; "
            "give every question of the benchmark a `reference`, or choose another judge"
        )
    first, second = right
    verdict = Verdict.TIE if first == second else Verdict.FIRST if first else Verdict.SECOND
    words = {True: "right", False: "wrong"}
    return Judgment(verdict, f"first {words[bool(first)]}, second {words[bool(second)]}")


def _rating_by(rule: Callable[[str], float | None], turn: Turn, template: RatingTemplate) -> Rating:
    score = rule(turn.answers[-1])
    return Rating(score, "" if score is None else f"[[{score:g}]]", template.name(turn), template.shown(turn))
