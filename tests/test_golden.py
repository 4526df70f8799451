"""The golden record would show a difference."""

from typing import Any

import pytest

from tests.golden import differences, document_of, keys_of_recipes, masked


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": [1, 2.0]}, {"a": [1, 2.0 + 1e-12]}, []),
        ({"a": [1, 2.0]}, {"a": [1, 2.0 + 1e-6]}, ["a > 1: 2.0 -> 2.000001"]),
        ({"a": 1}, {"b": 1}, ["a: is gone (was 1)", "b: is new (1)"]),
        ({"a": None}, {"a": 0.0}, ["a: null -> 0.0"]),
        ({"a": 1}, {"a": True}, ["a: 1 -> true"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a: [1] -> [1, 2]"]),
        ({"help": "one\ntwo\n"}, {"help": "one\n2\n"}, ["help:\n      - two\n      + 2"]),
    ],
)
def test_every_difference_is_named_with_its_place(before: Any, now: Any, expected: list[str]) -> None:
    assert list(differences(before, now)) == expected


def test_what_differs_from_run_to_run_is_masked() -> None:
    run, other = "3f" * 16, "a0" * 16
    document = {"id": run, "seconds": 1.5, "loss": 1.5, "inputs": [other], "why": f"{run[:8]} of 2026-11-29 04:33 UTC"}
    assert masked(document, {run: "<sft>", run[:8]: "<sft>"}) == {
        "id": "<sft>", "seconds": "<number>", "loss": 1.5, "inputs": ["<id>"], "why": "<sft> of <time>",
    }  # fmt: skip
    assert masked("5" * 64, {}) == "5" * 64


def test_what_is_printed_is_a_document_lines_of_them_or_text() -> None:
    assert document_of('{"a":\n1}') == {"a": 1}
    assert document_of('{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    assert document_of("help  \nme") == "help\nme"


def test_every_stage_of_every_recipe_has_a_key() -> None:
    keys = keys_of_recipes(None)
    assert {"backbone", "sft", "reward", "reinforce", "report"} <= keys["demo"].keys()
    assert all(len(stage["key"]) == 64 for stages in keys.values() for stage in stages.values())
