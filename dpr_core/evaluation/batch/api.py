"""Client of an OpenAI-compatible Batch API: files, batches, and polling until one has ended."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from dpr_core.errors import DensePathError
from dpr_core.evaluation.endpoint import Endpoint, UnavailableError

GONE = "is not known any more"
"""In place of a status, where the endpoint has no batch of this id."""

ENDED = ("completed", "failed", "expired", "cancelled", GONE)

MAY_PASS = ("token_limit_exceeded", "rate_limit_exceeded")
"""Codes of a failed batch that another time may not bring: too many tokens are waiting already."""

WINDOW = "24h"
"""The only one there is."""

T = TypeVar("T")


@dataclass(frozen=True)
class ApiBatch:
    """How a batch stands."""

    status: str
    counts: str
    """How much of it is done, in words."""
    files: tuple[str, ...]
    """Ids of the files with results and with errors, as far as there are any."""
    complaint: str
    """Why it failed as a whole, if it did."""
    may_pass: bool
    """Whether that may be otherwise another time."""
    completed: int = 0
    """Requests that were answered, and are paid for."""


class BatchApi:
    """Every method raises UnavailableError where a retry may help, and another DensePathError where none will."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        is_azure = endpoint.config.api_version is not None
        self.url = "/chat/completions" if is_azure else "/v1/chat/completions"
        """Where each request of a batch is meant for."""

    async def upload(self, lines: Iterable[bytes]) -> str:
        """The id of the file that holds these requests."""
        file = ("requests.jsonl", b"".join(lines), "application/jsonl")
        made = await self._call(lambda client: client.files.create(file=file, purpose="batch"))
        return _id(made)

    async def start(self, file: str) -> str:
        """The id of a new batch of these requests. It is asked for once: two batches would be paid for twice."""
        wanted = {"input_file_id": file, "endpoint": self.url, "completion_window": WINDOW}
        return _id(await self._call(lambda client: client.with_options(max_retries=0).batches.create(**wanted)))

    async def find(self, file: str) -> str | None:
        """The id of the batch that has these requests, if there is one."""

        async def search(client: Any) -> str | None:
            async for batch in client.batches.list(limit=100):
                if batch.input_file_id == file:
                    return str(batch.id)
            return None

        return await self._call(self._if_there(search))

    async def end_of(self, batch: str, tell: Callable[[str], None]) -> ApiBatch:
        """The batch when it has ended, however it did. Until then, `tell` gets how it stands."""
        now = asyncio.get_running_loop().time
        hours = self.endpoint.execution.batch_wait_hours
        end = now() + 3600 * hours
        while True:
            try:
                read = _read(await self._call(self._if_there(lambda client: client.batches.retrieve(batch))))
                if read.status in ENDED:
                    return read
                stands = f"{batch} {read.status}, {read.counts}"
            except UnavailableError as error:
                stands = f"{batch}: no news ({error})"
            tell(stands)
            if now() >= end:
                raise DensePathError(
                    f"no end in {hours:g} hours of waiting: {stands}; run the same command again to wait for the same "
                    "batch, without paying twice, or raise judge.execution.batch_wait_hours"
                )
            await asyncio.sleep(self.endpoint.execution.batch_poll_seconds)

    async def download(self, file: str) -> list[bytes]:
        """The lines of a file; none where it is no longer there."""
        content = await self._call(self._if_there(lambda client: client.files.content(file)))
        return [] if content is None else content.content.split(b"\n")

    async def _call(self, request: Callable[[Any], Awaitable[T]]) -> T:
        failure: DensePathError
        try:
            return await request(self.endpoint.client.with_options(max_retries=self.endpoint.execution.retries))
        except self.endpoint.library.APIError as error:
            failure = self.endpoint.failure(error)
        except ValueError as error:
            failure = self.endpoint.unreadable(error)
        # Raised outside the handler: the client's error, which holds the request and its key, must not be chained.
        raise failure

    def _if_there(self, request: Callable[[Any], Awaitable[T]]) -> Callable[[Any], Awaitable[T | None]]:
        async def ask(client: Any) -> T | None:
            try:
                return await request(client)
            except self.endpoint.library.NotFoundError:
                return None

        return ask


def _id(made: Any) -> str:
    found = getattr(made, "id", None)
    if not isinstance(found, str) or not found:
        raise DensePathError("the endpoint answered, but not as a Batch API does; judge.by.type=openai needs none")
    return found


def _read(found: Any) -> ApiBatch:
    if found is None:
        return ApiBatch(GONE, "", (), "", may_pass=True)
    if not isinstance(getattr(found, "status", None), str):
        raise UnavailableError("the endpoint answered, but not with a batch")
    errors = (found.errors and found.errors.data) or []
    counts = found.request_counts
    return ApiBatch(
        status=found.status,
        counts=f"{counts.completed} of {counts.total} answered" if counts else "nothing answered yet",
        files=tuple(file for file in (found.output_file_id, found.error_file_id) if file),
        complaint="; ".join(dict.fromkeys(str(error.message) for error in errors[:3])),
        may_pass=all(error.code in MAY_PASS for error in errors),
        # Without a count at least one was, so that a lost file of results is not taken for none.
        completed=counts.completed if counts else int(found.status != "failed"),
    )
