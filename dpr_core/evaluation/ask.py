"""The core of LLM-as-a-judge: ask a model about each item, read its reply, and keep in a cache what was read.

An item is whatever is judged: a comparison of two answers, or one answer to be rated. A prompt says how an item is
shown and what its judgment is; everything here is the same for both.
"""

import asyncio
import hashlib
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from dpr_core.config.evaluation import ChatCompletionsConfig, ChatJudgeConfig, JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.endpoint import (
    TOO_LONG,
    Endpoint,
    Messages,
    RefusedError,
    Reply,
    SchemaRefusedError,
    UnavailableError,
)
from dpr_core.evaluation.spending import Spending

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_SECONDS_BETWEEN_ROUNDS = 60.0

SECONDS_BETWEEN_NOTES = 1.0
"""While a judge prepares itself, which in a batch takes hours."""

Details = Mapping[str, str | int]
"""What an endpoint told about its work: model, fingerprint, tokens."""


class AnyJudgment(Protocol):
    """A verdict or a rating, as far as asking and keeping need to know it."""

    @property
    def value(self) -> str | None:
        """What the cache keeps of it; None where the reply could not be read, which is never kept."""
        ...

    @property
    def raw(self) -> str:
        """The judge's own words."""
        ...

    @property
    def details(self) -> Details: ...


Item = TypeVar("Item")
ItemIn = TypeVar("ItemIn", contravariant=True)
Found = TypeVar("Found", bound=AnyJudgment)
FoundOut = TypeVar("FoundOut", bound=AnyJudgment, covariant=True)
Result = TypeVar("Result")


class Judge(Protocol[ItemIn, FoundOut]):
    """Judges one item. Every judge and rater, scripted or not, stands behind this."""

    async def prepare(self, items: Iterable[ItemIn]) -> None:
        """Gets all items before the first is judged. A judge that is cheaper in bulk may do its work here; any other
        need not even read them."""
        ...

    async def judge(self, item: ItemIn) -> FoundOut:
        """UnavailableError: later perhaps; any other DensePathError: never."""
        ...

    def status(self) -> str:
        """What a progress display should say of the work so far, such as what it cost; often nothing."""
        ...

    async def close(self) -> None:
        """Let go of connections. The judge may be used again afterwards."""
        ...


class JudgePrompt(Protocol[ItemIn, FoundOut]):
    """How an item is shown to a model, and what is read of the reply."""

    @property
    def schema(self) -> Mapping[str, Any] | None:
        """Of a reply as JSON, where there is one."""
        ...

    def messages(self, item: ItemIn, as_json: bool = False) -> Messages: ...

    def answers_cut(self, item: ItemIn) -> int:
        """How many of the item's answers are too long to be shown as a whole."""
        ...

    def read(self, reply: str, as_json: bool) -> str | None:
        """The value that the reply states; None where it cannot be read."""
        ...

    def judgment(self, item: ItemIn, value: str | None, raw: str, details: Details) -> FoundOut:
        """The judgment of this value, whether it was read just now or comes from the cache."""
        ...


def judgment_of(prompt: JudgePrompt[Item, Found], item: Item, reply: Reply, as_json: bool) -> Found:
    """What a reply says of an item. One that was cut short is unreadable."""
    details = dict(reply.details)
    if prompt.schema is not None:
        details["verdicts"] = "schema" if as_json else "text"
    if cut := prompt.answers_cut(item):
        details["answers_cut"] = cut
    return prompt.judgment(item, prompt.read(reply.text, as_json) if reply.is_whole else None, reply.text, details)


REFUSED = "refused"
"""Among the details of a judgment that there is none of: why the endpoint refused to be asked."""

EXCERPT = 200
"""Characters of a reply that are shown."""


def refused(prompt: JudgePrompt[Item, Found], item: Item, error: RefusedError) -> Found:
    """The judgment of an item that may not be asked about: an unreadable one."""
    return prompt.judgment(item, None, "", {REFUSED: str(error)})


@dataclass(frozen=True)
class Unreadable:
    """Judgments of which nothing could be read, among all; `what` they are called, verdicts or ratings."""

    what: str
    asked: int
    lost: int
    refused: int
    """How many the endpoint refused to give."""
    why: str
    """The reasons, most telling first, each with how often and an example."""

    @classmethod
    def among(cls, judgments: Iterable[AnyJudgment], what: str) -> Self:
        asked = lost = refused = cut = thought = 0
        refusal: str | int = ""
        example: AnyJudgment | None = None
        for each in judgments:
            asked += 1
            if each.value is not None:
                continue
            lost += 1
            if REFUSED in each.details:
                refused += 1
                refusal = refusal or each.details[REFUSED]
            elif each.details.get("finish_reason") in TOO_LONG:
                cut += 1
                thought += int(each.details.get("reasoning_tokens", 0))
            else:
                example = example or each
        reasons = []
        if refused:
            reasons.append(f"{refused} were refused by the endpoint, such as: {refusal}")
        if cut:
            thinking = f", {thought // cut} of it thinking" if thought else ""
            reasons.append(f"{cut} were cut at the length limit by.max_tokens{thinking}, which may be raised")
        if example is not None:
            reasons.append(f"the judge wrote, for example, {example.raw[:EXCERPT]!r}")
        return cls(what, asked, lost, refused, "; ".join(reasons))

    def check(self, execution: JudgeExecutionConfig, where: str) -> None:
        """DensePathError where they are too many for a result. `where` says where the replies are."""
        if self.asked and self.lost / self.asked > execution.max_unreadable_share:
            raise DensePathError(
                f"{self.lost} of {self.asked} {self.what} could not be read, more than "
                f"execution.max_unreadable_share={execution.max_unreadable_share:g}: {self.why}; {where}"
            )


class RuleJudge(Generic[Item, Found]):
    """Follows a rule and asks nobody: the twin of a real judge, for tests, dry runs and results that can be checked."""

    def __init__(self, rule: Callable[[Item], Found]) -> None:
        self._rule = rule

    async def prepare(self, items: Iterable[Item]) -> None:
        """There is nothing to prepare."""

    async def judge(self, item: Item) -> Found:
        return self._rule(item)

    def status(self) -> str:
        return ""

    async def close(self) -> None:
        """There is nothing to let go of."""


class ChatJudge(Generic[Item, Found]):
    """Asks a model behind chat completions: for JSON of a schema where the endpoint takes one, elsewhere for text."""

    def __init__(
        self,
        config: ChatCompletionsConfig,
        execution: JudgeExecutionConfig,
        prompt: JudgePrompt[Item, Found],
        ledger: Spending | None = None,
    ) -> None:
        verdicts = config.verdicts if isinstance(config, ChatJudgeConfig) else "text"
        self.endpoint = Endpoint(config, execution, ledger)
        self._prompt = prompt
        self._may_change = verdicts == "auto"
        self._as_json = verdicts != "text"
        self._json_was_read = verdicts == "schema"
        self._one_by_one = verdicts == "auto"
        self._turn: asyncio.Lock | None = None

    async def prepare(self, items: Iterable[Item]) -> None:
        """Every item is asked about by itself."""

    async def judge(self, item: Item) -> Found:
        if self._one_by_one:
            # One item finds out whether schemas are followed. Where they are not, many at once would be paid for twice.
            self._turn = self._turn or asyncio.Lock()
            async with self._turn:
                if self._one_by_one:
                    try:
                        return await self._in_either_form(item)
                    except UnavailableError:
                        # An endpoint in trouble is found to be so by all at once.
                        self._one_by_one = False
                        raise
        return await self._in_either_form(item)

    async def _in_either_form(self, item: Item) -> Found:
        judgment, is_prose = await self._judged(item)
        if is_prose and not self._json_was_read:
            # Some endpoints take a schema and then pay no heed to it.
            self._as_json = False
            judgment, _ = await self._judged(item)
        self._json_was_read |= judgment.value is not None and judgment.details.get("verdicts") == "schema"
        self._one_by_one &= self._as_json and not self._json_was_read
        return judgment

    async def _judged(self, item: Item) -> tuple[Found, bool]:
        """The judgment, and whether the endpoint wrote something else in place of the JSON that it was asked for."""
        try:
            reply, as_json = await self._ask(item)
        except RefusedError as error:
            return refused(self._prompt, item, error), False
        judgment = judgment_of(self._prompt, item, reply, as_json)
        return judgment, as_json and reply.is_whole and judgment.value is None

    async def _ask(self, item: Item) -> tuple[Reply, bool]:
        """The reply, and whether it should be JSON."""
        as_json = self._as_json
        try:
            schema = self._prompt.schema if as_json else None
            return await self.endpoint.ask(self._prompt.messages(item, as_json), schema), as_json
        except SchemaRefusedError:
            if not self._may_change:
                raise
            self._as_json = False
            return await self.endpoint.ask(self._prompt.messages(item)), False

    def status(self) -> str:
        return self.endpoint.status()

    async def close(self) -> None:
        # A lock belongs to the event loop in which it was waited for.
        self._turn = None
        await self.endpoint.close()


def key_of(identity: str, item: "DataclassInstance") -> str:
    """A hash of everything that a judgment depends on: who gives it and how, and all that is judged."""
    text = json.dumps([identity, item], sort_keys=True, ensure_ascii=True, default=_fields)
    return hashlib.sha256(text.encode()).hexdigest()


def _fields(part: "DataclassInstance") -> dict[str, Any]:
    return {name: getattr(part, name) for name in _names(type(part))}


@cache
def _names(kind: "type[DataclassInstance]") -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))


class CachedJudge(Generic[Item, Found]):
    """Asks the judge behind it only what nobody has asked it before."""

    def __init__(
        self,
        judge: Judge[Item, Found],
        cache: VerdictCache,
        identity: str,
        restore: Callable[[Item, str | None, str, Details], Found],
        before: tuple[str, str] | None = None,
    ) -> None:
        """`before` is what this judge was called while its model had no date, and the dated name of the model: what was
        judged under the former name counts where the reply itself names the latter."""
        self._judge = judge
        self._cache = cache
        self._identity = identity
        self._restore = restore
        self._before = before
        self._unknown: set[str] = set()
        self._asking: dict[str, asyncio.Event] = {}
        self._reused = 0

    async def prepare(self, items: Iterable[Item]) -> None:
        """Only what is not known has to be prepared."""
        await self._judge.prepare(self._not_known(items))

    def _not_known(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            key = self._key(item)
            if self._known(key, item) is None:
                self._unknown.add(key)
                yield item

    async def judge(self, item: Item) -> Found:
        key = self._key(item)
        # The same asked twice at once, such as both orders of an answer against itself, is paid for once.
        while (under_way := self._asking.get(key)) is not None:
            await under_way.wait()
        known = self._known(key, item)
        if known is not None:
            # What was asked of the judge just now, and written down when it came, is no reuse.
            self._reused += key not in self._unknown
            return self._cache.restored(key, known, partial(self._restore, item))
        answered = self._asking[key] = asyncio.Event()
        try:
            judgment = await self._judge.judge(item)
            self._cache.put(key, judgment.value, judgment.raw, judgment.details)
            return judgment
        finally:
            del self._asking[key]
            answered.set()

    def status(self) -> str:
        reused = f"{self._reused} from the cache" if self._reused else ""
        return ", ".join(part for part in (self._judge.status(), reused) if part)

    async def close(self) -> None:
        await self._judge.close()

    def _key(self, item: Any) -> str:
        return key_of(self._identity, item)

    def _known(self, key: str, item: Any) -> tuple[str, str, dict[str, str | int]] | None:
        if (known := self._cache.get(key)) is not None:
            return known
        asked = [item]
        if item.question.category:
            # As a question of Arena-Hard was asked about before it had a category.
            asked.append(replace(item, question=replace(item.question, category="")))
            if (known := self._cache.get(self._key(asked[1]))) is not None:
                return known
        if self._before is None:
            return None
        identity, model = self._before
        older = (self._cache.get(key_of(identity, each)) for each in asked)
        return next((known for known in older if known is not None and known[2].get("model") == model), None)


async def judge_all(
    judge: Judge[Item, Found],
    items: Sequence[Item],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int, str], None],
    keep: Callable[[int, Found], None],
    ask_again: bool = True,
) -> None:
    """Hand a judgment of each item over to `keep`, with its place among them; `execution.concurrency` at once.

    `on_progress` gets how many are done, of how many, and what the judge says of its work. Without `ask_again` what
    cannot be read is asked for once.
    """
    try:
        await _meanwhile(judge.prepare(items), lambda: on_progress(0, len(items), judge.status()))
        await ask_all(
            items,
            judge.judge,
            execution,
            lambda done, total: on_progress(done, total, judge.status()),
            keep,
            is_final=lambda judgment: judgment.value is not None or not ask_again or REFUSED in judgment.details,
        )
    finally:
        await judge.close()


async def ask_all(
    items: Sequence[Item],
    ask: Callable[[Item], Awaitable[Result]],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int], None],
    keep: Callable[[int, Result], None],
    is_final: Callable[[Result], bool] = lambda result: True,
) -> None:
    """A work queue with bounded concurrency and retries with exponential back-off.

    `keep` gets each result as it comes, with the place of its item; `on_progress`, how many are done, of how many. What
    is unavailable is asked for again after everything else, up to `execution.rounds` times, and so is what is not
    final, up to `execution.unreadable_retries` times. Any other failure stops the rest, once those that are under way,
    and paid for, are done.
    """
    done = 0
    new, waiting = iter(range(len(items))), deque[int]()
    failures: Counter[int] = Counter()
    unreadable: Counter[int] = Counter()
    fatal: list[DensePathError] = []

    def places() -> Iterator[int]:
        while not fatal:
            if (i := next(new, None)) is None:
                if not waiting:
                    return
                i = waiting.popleft()
            yield i

    async def work() -> None:
        nonlocal done
        for i in places():
            try:
                result = await ask(items[i])
                if not is_final(result) and unreadable[i] < execution.unreadable_retries and not fatal:
                    unreadable[i] += 1
                    waiting.append(i)
                    continue
                keep(i, result)
            except DensePathError as error:
                failures[i] += 1
                if not isinstance(error, UnavailableError) or failures[i] > execution.rounds:
                    fatal.append(error)
                    return
                if not fatal:
                    await asyncio.sleep(min(2.0 ** failures[i], MOST_SECONDS_BETWEEN_ROUNDS))
                    waiting.append(i)
                continue
            done += 1
            on_progress(done, len(items))

    workers = [asyncio.create_task(work()) for _ in range(min(execution.concurrency, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if fatal:
        raise fatal[0]


async def _meanwhile(work: Coroutine[Any, Any, None], note: Callable[[], None]) -> None:
    """Do the work, and note now and then how far it is."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=SECONDS_BETWEEN_NOTES))[0]:
            note()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    task.result()
