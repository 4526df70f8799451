"""An LLM judge behind OpenAI's Batch API: all requests are sent at once, and the replies come within a day."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic

from dpr_core.config.evaluation import JudgeExecutionConfig, OpenAIBatchJudgeConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.ask import Found, Item, JudgePrompt, judgment_of, key_of, refused
from dpr_core.evaluation.batch.api import GONE, ApiBatch, BatchApi
from dpr_core.evaluation.batch.ledger import Ledger, Sent
from dpr_core.evaluation.batch.lines import (
    BatchReply,
    RequestRefusedError,
    Results,
    in_files,
    read_results,
    request_line,
)
from dpr_core.evaluation.budget import most_tokens_in
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.endpoint import (
    Endpoint,
    Messages,
    RefusedError,
    SchemaRefusedError,
    UnavailableError,
    read_before_refused,
)
from dpr_core.evaluation.prices import Usage
from dpr_core.evaluation.spending import Spending


class BatchJudge(Generic[Item, Found]):
    """`prepare` sends, waits and keeps; `judge` says what was kept.

    With `cache`, every verdict is written down when it comes, and so are the batches that are under way: whoever asks
    for the same later, in this process or another, waits for the same batch. Items are known by their `custom_id`,
    which is the key of the judgment in the cache.
    """

    def __init__(
        self,
        config: OpenAIBatchJudgeConfig,
        execution: JudgeExecutionConfig,
        prompt: JudgePrompt[Item, Found],
        identity: str,
        cache: Path | None = None,
        ledger: Spending | None = None,
    ) -> None:
        self.endpoint = Endpoint(config, execution, ledger)
        self._prompt = prompt
        self._api = BatchApi(self.endpoint)
        self._as_json = config.verdicts != "text"
        self._identity = identity
        self._verdicts = None if cache is None else VerdictCache(cache)
        self._ledger = Ledger(cache)
        self._kept: dict[str, Found] = {}
        self._failed: dict[str, DensePathError] = {}
        self._last_words = "nothing came back"
        self._waiting_for: dict[str, str] = {}
        self._ignored: Counter[str] = Counter()

    async def prepare(self, items: Iterable[Item]) -> None:
        """Wait for what is under way already, send the rest, and again what was not answered."""
        if not (asked := {self._key(item): item for item in items}):
            return
        await self._collect(asked)
        rounds = self.endpoint.execution.rounds
        for again in range(rounds + 1):
            if not (missing := self._missing(asked)):
                return
            if again:
                await asyncio.sleep(self.endpoint.execution.batch_poll_seconds)
            await self._send(missing)
            await self._collect(missing)
        if missing := self._missing(asked):
            failure = UnavailableError(
                f"{len(missing)} of {len(asked)} requests were sent in {rounds + 1} batches and never answered: "
                f"{self._last_words}; run the same command again: verdicts that came are kept"
            )
            self._failed |= dict.fromkeys(missing, failure)

    async def judge(self, item: Item) -> Found:
        key = self._key(item)
        if key in self._kept:
            return self._kept[key]
        failure = self._failed.get(key) or UnavailableError("this comparison was in no batch")
        if isinstance(failure, RefusedError):
            return refused(self._prompt, item, failure)
        raise failure

    def status(self) -> str:
        ignored = [f"{count} {kind}" for kind, count in self._ignored.items() if count]
        noted = [f"result lines ignored: {' and '.join(ignored)}"] if ignored else []
        return ", ".join(filter(None, [*self._waiting_for.values(), self.endpoint.status(), *noted]))

    async def close(self) -> None:
        await self.endpoint.close()

    def _missing(self, asked: Mapping[str, Item]) -> Mapping[str, Item]:
        return {key: item for key, item in asked.items() if key not in self._kept and key not in self._failed}

    async def _send(self, missing: Mapping[str, Item]) -> None:
        """Make batches of what is under way nowhere, if the most that all of them can cost is within the budget."""
        async with self._ledger.sending():
            under_way = {key for sent in self._ledger.sent(missing) for key in sent.requests}
            new = {
                key: item for key, item in missing.items() if key not in under_way and not self._came_since(key, item)
            }
            if not new:
                return
            meter = self.endpoint.meter
            meter.check_room(*self._most_tokens(new.values()), f"a batch of {len(new)} requests")
            for lines in in_files(self._lines(new), self.endpoint.execution.batch_requests):
                file = await self._api.upload(lines.values())
                self._ledger.uploaded(file, lines)
                what = f"a batch of {len(lines)} requests"
                await meter.charge(*self._most_tokens(new[key] for key in lines), what, len(lines), file)
                self._ledger.started(file, await self._start(file))

    def _most_tokens(self, items: Iterable[Item]) -> tuple[int, int]:
        """To be read and written."""
        read = [most_tokens_in(self._messages(item), self._schema) for item in items]
        return sum(read), len(read) * self.endpoint.config.max_tokens

    def _came_since(self, key: str, item: Item) -> bool:
        """Whether another process has got, and written down, the verdict since the caller asked for it."""
        known = self._verdicts and self._verdicts.get(key)
        if self._verdicts and known:
            self._kept[key] = self._verdicts.restored(key, known, partial(self._prompt.judgment, item))
        return known is not None

    async def _start(self, file: str) -> str:
        """A batch of the file. Where no answer came, the batch may be there all the same, and is looked for first."""
        failures = 0
        while True:
            try:
                return (await self._api.find(file) if failures else None) or await self._api.start(file)
            except UnavailableError:
                failures += 1
                if failures > self.endpoint.execution.rounds:
                    raise
                await asyncio.sleep(min(2.0**failures, self.endpoint.execution.batch_poll_seconds))

    async def _collect(self, asked: Mapping[str, Item]) -> None:
        """Wait for every batch that holds any of this, and keep what comes; only then complain of those that failed."""
        async with self._ledger.sending():
            for sent in self._ledger.sent(asked):
                if sent.batch is None:
                    await self._adopt(sent)
            under_way = self._ledger.sent(asked)
        ended = await asyncio.gather(*(self._follow(sent, asked) for sent in under_way), return_exceptions=True)
        for failure in ended:
            if failure is not None:
                raise failure

    async def _adopt(self, sent: Sent) -> None:
        """A process ended between the upload and the batch, or between the batch and its note of it."""
        batch = await self._api.find(sent.file)
        if batch is None:
            self._ledger.forget(sent)
            self.endpoint.meter.withdraw(await self._charge_of(sent))
        else:
            self._ledger.started(sent.file, batch)

    async def _follow(self, sent: Sent, asked: Mapping[str, Item]) -> None:
        assert sent.batch is not None
        try:
            batch = await self._api.end_of(sent.batch, lambda stands: self._waiting_for.update({sent.file: stands}))
        finally:
            self._waiting_for.pop(sent.file, None)
        self._last_words = f"{sent.batch} {batch.status}"
        lines = [line for file in batch.files for line in await self._api.download(file)]
        results = read_results(lines, sent.requests)
        # Before its verdicts are kept: nobody would ask for the batch again, and the most would stay on the bill.
        read = [asked[key] for key, refusal in results.refusals.items() if read_before_refused(refusal)]
        self._settle(await self._charge_of(sent), batch, results, Usage(*self._most_tokens(read)))
        self._keep(results, asked)
        self._ledger.forget(sent)
        if batch.status == "failed":
            failure = self.endpoint.failure(RequestRefusedError(f"{sent.batch} failed: {batch.complaint}", 400, None))
            if not batch.may_pass and not results.completions:
                raise failure
            self._last_words = str(failure)

    async def _charge_of(self, sent: Sent) -> int:
        """Whoever sent it has charged it, except where that was an earlier version."""
        return await self.endpoint.meter.charge(0, 0, requests=0, batch=sent.file)

    def _settle(self, charge: int, batch: ApiBatch, results: Results, refused: Usage) -> None:
        """What all requests of a batch have used, and the most of those that were read and refused; where it is not
        told of each answered one, the most of all stays."""
        told = [used for used in results.used if used is not None]
        is_known = batch.status != GONE and len(told) == len(results.used) >= batch.completed and not results.broken
        used = sum(told, refused) if is_known else None
        self.endpoint.meter.answer(charge, used, len(results.used))
        self.endpoint.meter.flush()

    def _keep(self, results: Results, asked: Mapping[str, Item]) -> None:
        for key, completion in results.completions.items():
            try:
                judgment = self._judgment(completion, asked[key])
            except DensePathError as error:
                # A version that may not judge, or one that repeats the key.
                self._failed[key] = error
                continue
            self._kept[key] = judgment
            if self._verdicts is not None:
                self._verdicts.put(key, judgment.value, judgment.raw, judgment.details)
        for key, refusal in results.refusals.items():
            self._last_words = str(refusal)
            if refusal.status_code is None:
                continue
            failure = self.endpoint.failure(refusal, self._as_json)
            self._last_words = str(failure)
            if isinstance(failure, SchemaRefusedError):
                failure = DensePathError(f"{failure}; set judge.by.verdicts=text")
            if not isinstance(failure, UnavailableError):
                self._failed[key] = failure
        self._ignored.update(unknown=results.unknown, repeated=results.repeated, broken=results.broken)

    def _judgment(self, completion: BatchReply, item: Item) -> Found:
        return judgment_of(self._prompt, item, self.endpoint.reply(completion), self._as_json)

    def _messages(self, item: Item) -> Messages:
        return self._prompt.messages(item, self._as_json)

    def _lines(self, asked: Mapping[str, Item]) -> Iterator[tuple[str, bytes]]:
        for key, item in asked.items():
            yield key, request_line(key, self._api.url, self.endpoint.body(self._messages(item), self._schema))

    @property
    def _schema(self) -> Mapping[str, Any] | None:
        return self._prompt.schema if self._as_json else None

    def _key(self, item: Any) -> str:
        return key_of(self._identity, item)
