"""The lines of a batch's files, and the record of what is under way, without any endpoint."""

import json
from pathlib import Path

import pytest

from dpr_core.evaluation.batch.ledger import Ledger, Sent
from dpr_core.evaluation.batch.lines import in_files, read_results, request_line


def line(custom_id: str, status: int = 200, body: object = None, **fields: object) -> bytes:
    said = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]} if body is None else body
    return json.dumps(
        {"custom_id": custom_id, "response": {"status_code": status, "body": said}, "error": None, **fields}
    ).encode()


def test_a_request_is_one_line_whatever_its_texts_hold() -> None:
    body = {"messages": [{"role": "user", "content": "a\nb\r\u2028c\u0085d \u00e9"}]}
    written = request_line("id", "/v1/chat/completions", body)
    assert len(written.decode().splitlines()) == 1
    assert written.endswith(b"\n")
    assert json.loads(written) == {"custom_id": "id", "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.mark.parametrize(
    ("sizes", "most_requests", "most_bytes", "expected"),
    [
        ([1, 1, 1], 3, 99, [3]),
        ([1, 1, 1], 2, 99, [2, 1]),
        ([5, 5, 5], 9, 10, [2, 1]),
        ([5, 6, 5], 9, 10, [1, 1, 1]),
        ([50, 1], 9, 10, [1, 1]),
        ([], 9, 10, []),
    ],
)
def test_files_keep_to_both_limits(sizes: list[int], most_requests: int, most_bytes: int, expected: list[int]) -> None:
    lines = [(str(i), b"x" * size) for i, size in enumerate(sizes)]
    files = list(in_files(lines, most_requests, most_bytes))
    assert [len(file) for file in files] == expected
    assert [each for file in files for each in file.items()] == lines


def test_an_answer_counts_more_than_a_complaint_before_or_after_it() -> None:
    complaint = line("a", 500, {"error": {"message": "no", "code": None}})
    for lines in ([complaint, line("a")], [line("a"), complaint]):
        results = read_results(lines, {"a"})
        assert (list(results.completions), results.refusals) == (["a"], {})


@pytest.mark.parametrize(
    ("raw", "status", "code", "said"),
    [
        (line("a", 429, {"error": {"message": "busy", "code": "slow"}}), 429, "slow", "busy"),
        (line("a", 400, {"error": "as a text"}), 400, None, "as a text"),
        (line("a", 500, "<html>"), 500, None, "<html>"),
        (line("a", response=None, error={"code": "batch_expired", "message": "late"}), None, "batch_expired", "late"),
        (line("a", response=None, error={"code": "batch_cancelled"}), None, "batch_cancelled", "batch_cancelled"),
        (line("a", response=None), None, None, "no reason given"),
    ],
)
def test_a_complaint_is_found_wherever_it_stands(raw: bytes, status: int | None, code: str | None, said: str) -> None:
    refusal = read_results([raw], {"a"}).refusals["a"]
    assert (refusal.status_code, refusal.code, str(refusal)) == (status, code, said)


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'{"custom_id": 5}',
        line("a", body={"choices": []}),
        line("a", body="yes"),
        line("a", body={"choices": [{"message": {"content": 5}}]}),
        line("a", body={"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": "many"}}),
    ],
)
def test_a_line_that_cannot_be_read_is_as_good_as_missing(raw: bytes) -> None:
    results = read_results([raw, b"", b"  "], {"a"})
    assert (results.completions, results.refusals, results.broken) == ({}, {}, 1)


def test_the_record_is_shared_and_forgets_only_what_is_named(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "verdicts.sqlite"), Ledger(tmp_path / "verdicts.sqlite")
    first.uploaded("file-1", ["a", "b", "c"])
    assert second.sent(["a", "z"]) == [Sent("file-1", None, frozenset("a"))]
    first.started("file-1", "batch-1")
    assert second.sent(["a", "c"]) == [Sent("file-1", "batch-1", frozenset("ac"))]
    second.uploaded("file-2", ["a"])
    first.forget(Sent("file-1", "batch-1", frozenset("ab")))
    # Somebody else has sent `a` anew: that is not what ended.
    assert second.sent(["a"]) == [Sent("file-2", None, frozenset("a"))]
    assert second.sent(["b"]) == []
    assert second.sent(["c"]) == [Sent("file-1", "batch-1", frozenset("c"))]
