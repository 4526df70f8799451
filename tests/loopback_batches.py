"""Files and batches on the loopback server. What comes of a batch is up to the test."""

import email
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.loopback import Call, Loopback, Reply, refused

Request = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a batch ends."""

    output: list[str]
    errors: list[str]
    status: str = "completed"
    complaints: tuple[tuple[str, str], ...] = ()
    """Codes and messages of what is wrong with the batch as a whole."""


def result(request: Request, reply: Reply) -> str:
    """The line of a request that was answered, or refused by itself."""
    response = {"status_code": reply.status, "request_id": "req_1", "body": reply.body}
    return json.dumps({"id": "line_1", "custom_id": request["custom_id"], "response": response, "error": None})


def unanswered(request: Request, code: str = "batch_expired") -> str:
    """The line of a request that was not tried."""
    error = {"code": code, "message": "There was no time left."}
    return json.dumps({"id": "line_1", "custom_id": request["custom_id"], "response": None, "error": error})


class Batches:
    """Ends the batches in turn as `outcomes` say, and those after them with an answer to everything."""

    def __init__(self, server: Loopback) -> None:
        self.server = server
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.outcomes: list[Callable[[list[Request]], Outcome]] = []
        self.looks = 0
        self.looks_before_the_end = 0
        server.route("POST", "/v1/files", self.upload)
        server.route("GET", "/v1/files/[^/]+/content", self.content)
        server.route("POST", "/v1/batches", self.create)
        server.route("GET", "/v1/batches", self.list_all)
        server.route("GET", "/v1/batches/[^/]+", self.look)

    def requests(self, number: int) -> list[Request]:
        """The requests of a batch, the first of which has the number 0."""
        return self._lines([*self.batches.values()][number]["input_file_id"])

    def answered(self, request: Request) -> str:
        """The line of a request that is answered like a request by itself."""
        body = json.dumps(request["body"]).encode()
        return result(request, self.server.answer(Call("POST", request["url"], "", {}, body)))

    def everything(self, requests: list[Request]) -> Outcome:
        """All answers, the last first: nobody may rely on their order."""
        return Outcome([self.answered(request) for request in reversed(requests)], [])

    def upload(self, call: Call) -> Reply:
        message = email.message_from_bytes(
            b"Content-Type: " + call.headers["content-type"].encode() + b"\n\n" + call.data
        )
        parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
        assert parts["purpose"].get_payload(decode=True).strip() == b"batch"
        return Reply(self._file(parts["file"].get_payload(decode=True)))

    def content(self, call: Call) -> Reply:
        file = call.path.split("/")[-2]
        if file not in self.files:
            return refused(404, f"No such File object: {file}")
        return Reply(self.files[file].decode(), headers={"Content-Type": "application/octet-stream"})

    def create(self, call: Call) -> Reply:
        file = call.json["input_file_id"]
        batch = {
            "id": f"batch_{len(self.batches) + 1}",
            "object": "batch",
            "created_at": 1,
            "status": "validating",
            **{name: call.json[name] for name in ("input_file_id", "endpoint", "completion_window")},
            "request_counts": {"total": len(self._lines(file)), "completed": 0, "failed": 0},
        }
        self.batches[batch["id"]] = batch
        return Reply(dict(batch))

    def list_all(self, call: Call) -> Reply:
        return Reply({"object": "list", "data": [*self.batches.values()][::-1], "has_more": False})

    def look(self, call: Call) -> Reply:
        self.looks += 1
        batch = self.batches.get(call.path.split("/")[-1])
        if batch is None:
            return refused(404, "No such batch")
        if self.looks > self.looks_before_the_end and batch["status"] == "validating":
            self._end(batch)
        return Reply(batch)

    def _end(self, batch: dict[str, Any]) -> None:
        end = self.outcomes.pop(0) if self.outcomes else self.everything
        outcome = end(self._lines(batch["input_file_id"]))
        batch["status"] = outcome.status
        for name, lines in (("output_file_id", outcome.output), ("error_file_id", outcome.errors)):
            if lines:
                batch[name] = self._file("".join(f"{line}\n" for line in lines).encode())["id"]
        if outcome.complaints:
            data = [{"code": code, "message": said, "line": None, "param": None} for code, said in outcome.complaints]
            batch["errors"] = {"object": "list", "data": data}

    def _file(self, data: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files) + 1}"
        self.files[name] = data
        about = {"object": "file", "created_at": 1, "purpose": "batch", "status": "processed"}
        return {"id": name, "bytes": len(data), "filename": "requests.jsonl", **about}

    def _lines(self, file: str) -> list[Request]:
        return [json.loads(line) for line in self.files[file].splitlines()]
