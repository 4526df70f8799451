"""Request and result files of the Batch API: JSONL, matched by `custom_id` and never by their place."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from dpr_core.evaluation.prices import Usage

MOST_BYTES = 200_000_000
"""Of one file, by OpenAI's limits."""


class BatchMessage(BaseModel):
    content: str | None = None
    refusal: str | None = None


class BatchChoice(BaseModel):
    message: BatchMessage
    finish_reason: str | None = None
    logprobs: Any = None


class BatchUsage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class BatchReply(BaseModel):
    """What is read of a chat completion."""

    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[BatchChoice] = Field(min_length=1)
    usage: BatchUsage | None = None


class Response(BaseModel):
    status_code: int
    body: Any = None


class ResultLine(BaseModel):
    """A result as it stands in an output or an error file."""

    custom_id: str
    response: Response | None = None
    error: Any = None


class RequestRefusedError(Exception):
    """One request of a batch that was not answered. Without a status it was never tried."""

    def __init__(self, said: str, status: int | None, code: str | None) -> None:
        super().__init__(said)
        self.status_code = status
        self.code = code


@dataclass
class Results:
    """What came of the requests of a batch. What is neither here nor there did not come at all."""

    completions: dict[str, BatchReply] = field(default_factory=dict)
    refusals: dict[str, RequestRefusedError] = field(default_factory=dict)
    unknown: int = 0
    """Lines with an id that nobody asked about."""
    repeated: int = 0
    """Completions of a request that has one already; the first counts."""
    broken: int = 0
    """Lines that cannot be read."""
    used: list[Usage | None] = field(default_factory=list)
    """Of every line with a reply, whoever asked for it; None where it does not say."""


def request_line(custom_id: str, url: str, body: Mapping[str, Any]) -> bytes:
    """A request with its line end. ASCII alone, so that no reader takes a character of a text for a line end."""
    request = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(request).encode("ascii") + b"\n"


def in_files(
    lines: Iterable[tuple[str, bytes]], most_requests: int, most_bytes: int = MOST_BYTES
) -> Iterator[dict[str, bytes]]:
    """The lines by `custom_id`, in as many files as the limits ask for."""
    file: dict[str, bytes] = {}
    size = 0
    for custom_id, line in lines:
        if file and (len(file) == most_requests or size + len(line) > most_bytes):
            yield file
            file, size = {}, 0
        file[custom_id] = line
        size += len(line)
    if file:
        yield file


def read_results(lines: Iterable[bytes], asked: Collection[str]) -> Results:
    """The output and the error file of a batch, in any order."""
    results = Results()
    for raw in filter(bytes.strip, lines):
        try:
            line = ResultLine.model_validate_json(raw)
            if line.response is not None and line.response.status_code == 200:
                body = line.response.body
                results.used.append(Usage.told(body.get("usage")) if isinstance(body, dict) else None)
            if line.custom_id not in asked:
                results.unknown += 1
            elif line.custom_id in results.completions:
                results.repeated += 1
            elif line.response is not None and line.response.status_code == 200:
                results.completions[line.custom_id] = BatchReply.model_validate(line.response.body)
            else:
                results.refusals[line.custom_id] = _refusal(line)
        except ValidationError:
            results.broken += 1
    for custom_id in results.completions:
        results.refusals.pop(custom_id, None)
    return results


def _refusal(line: ResultLine) -> RequestRefusedError:
    """What is said of the error stands beside the response, or in its body as the endpoint would have sent it."""
    body = line.response.body if line.response else None
    said = line.error or (body.get("error") if isinstance(body, dict) else None) or body
    code = said.get("code") if isinstance(said, dict) else None
    words = said.get("message") if isinstance(said, dict) else said
    return RequestRefusedError(
        str(words or code or "no reason given"),
        line.response.status_code if line.response else None,
        str(code) if code else None,
    )
