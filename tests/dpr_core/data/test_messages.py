"""Rows with whole conversations: what becomes of them, and of those that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.base import parse
from dpr_core.config.data import (
    ChatTemplateConfig,
    ColumnsConfig,
    FileSourceConfig,
    HubSourceConfig,
    SubsampleConfig,
    TemplateConfig,
)
from dpr_core.config.gold import GoldColumnsConfig
from dpr_core.data.demonstrations import encode_demonstrations
from dpr_core.data.encoding import decode_response
from dpr_core.data.rows import BadRow, Demonstration
from dpr_core.data.sources import open_source
from dpr_core.data.subsample import read, subsample, write
from dpr_core.data.template import TextRenderer
from dpr_core.errors import UsageError
from dpr_core.lab.backbone import build_tokenizer

COLUMNS = ColumnsConfig(messages="messages")
TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "u2"},
    {"role": "assistant", "content": "a2"},
]
LEARNED = Demonstration("row-1", "s", "u2", "a2", history=(("u1", "a1"),))


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path, columns: ColumnsConfig = COLUMNS) -> list[Demonstration | BadRow]:
    return [row for _, row in open_source(FileSourceConfig(path=str(path), columns=columns), seed=0).rows()]


def said(*turns: str) -> dict[str, Any]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return {"messages": [{"role": roles[turn[0]], "content": turn} for turn in turns]}


def test_the_last_answer_is_the_response_and_all_before_it_the_history(tmp_path: Path) -> None:
    pair = {"question": "q", "response": "r"}
    found = rows_of(file_of(tmp_path, {"messages": TALK}, pair, said("u1", "a1", "u2"), said("u", "a")))
    assert found == [
        LEARNED,
        Demonstration("row-2", "", "q", "r"),
        Demonstration("row-3", "", "u1", "a1"),
        Demonstration("row-4", "", "u", "a"),
    ]


def test_for_prompts_alone_it_is_the_last_turn_of_the_user(tmp_path: Path) -> None:
    columns = ColumnsConfig(messages="messages", response=None)
    found = rows_of(file_of(tmp_path, said("u1", "a1", "u2"), {"messages": TALK}, said("u"), said("s")), columns)
    assert [row.prompt for row in found if isinstance(row, Demonstration)] == ["u2", "u2", "u"]
    assert [row.history for row in found if isinstance(row, Demonstration)] == [(("u1", "a1"),)] * 2 + [()]
    assert isinstance(found[-1], BadRow)
    assert found[-1].reason == "messages has no turn of the user"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("u, a", "messages is not a list"),
        ([], "messages has no turn of the assistant"),
        ([{"role": "user", "content": "u"}], "messages has no turn of the assistant"),
        (["u", "a"], "messages: a message is not an object of role and content"),
        (said("u", "a", "a")["messages"], "messages: user and assistant do not take turns"),
        (said("a", "u", "a")["messages"], "messages: user and assistant do not take turns"),
        (said("u", "s", "a")["messages"], "messages: user and assistant do not take turns"),
        (said("u", "t", "a")["messages"], "messages: a role other than system, user and assistant"),
        ([{"role": "user", "content": " "}, TALK[2]], "messages: empty content in a message"),
        ([{"role": "user"}, TALK[2]], "messages: no content in a message"),
        ([{"role": "user", "content": ["u"]}, TALK[2]], "messages: content is not text in a message"),
    ],
)
def test_what_is_no_conversation_is_a_bad_row_with_its_place(tmp_path: Path, messages: Any, reason: str) -> None:
    config = FileSourceConfig(path=str(file_of(tmp_path, {"messages": messages})), columns=COLUMNS)
    [(where, row)] = open_source(config, seed=0).rows()
    assert where.endswith("rows.jsonl:1")
    assert isinstance(row, BadRow)
    assert row.reason == reason


def test_parquet_and_a_dataset_folder_hold_the_same_conversations(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{"messages": TALK, "other": 1}]), tmp_path / "train.parquet")
    assert rows_of(tmp_path / "train.parquet") == [LEARNED]
    hub = open_source(HubSourceConfig(name=str(tmp_path), columns=COLUMNS), seed=0)
    assert [row for _, row in hub.rows()] == [LEARNED]


def test_a_column_of_messages_that_is_not_named_is_found_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"subsample\.source\.columns\.messages=messages"):
        rows_of(file_of(tmp_path, {"messages": TALK}), ColumnsConfig())


def test_a_sample_keeps_histories_and_its_template(tmp_path: Path) -> None:
    source = FileSourceConfig(path=str(file_of(tmp_path, {"messages": TALK}, said("u", "a"))), columns=COLUMNS)
    sample = subsample(SubsampleConfig(source=source, template=ChatTemplateConfig(system="S")))
    write(sample, tmp_path / "sample")
    assert read(tmp_path / "sample") == sample
    assert LEARNED in sample.demonstrations
    lines = (tmp_path / "sample" / "demonstrations.jsonl").read_text().splitlines()
    assert sorted("history" in json.loads(line) for line in lines) == [False, True]
    assert sample.overlap(sample) == 1


def test_settings_without_a_chat_are_those_of_before(tmp_path: Path) -> None:
    assert set(SubsampleConfig().identity()["template"]) == {"text", "system", "default_system"}
    assert "messages" not in SubsampleConfig().identity()["source"]["columns"]
    chat = parse(SubsampleConfig, {"template": {"type": "chat"}}, "x")
    assert chat.identity()["template"] == {"type": "chat", "system": ""}
    assert parse(SubsampleConfig, chat.model_dump(mode="json"), "x") == chat
    with pytest.raises(UsageError, match=r"template\.type: unknown type .*'text', 'chat'"):
        parse(SubsampleConfig, {"template": {"type": "jinja"}}, "x")
    with pytest.raises(UsageError, match="messages"):
        parse(GoldColumnsConfig, {"messages": "messages"}, "x")


def test_under_a_text_every_turn_is_learned_behind_those_before_it() -> None:
    tokenizer = build_tokenizer("llama")
    renderer = TextRenderer(TemplateConfig(text="{system}U: {prompt}\nA: ", system="{system}\n"))
    first, second = encode_demonstrations(tokenizer, renderer, [LEARNED], 100, 100).sequences
    assert tokenizer.decode(first.prompt[1:]) == "s\nU: u1\nA: "
    assert tokenizer.decode(second.prompt[1:]) == "s\nU: u1\nA: a1<|end_of_text|>\n\nU: u2\nA: "
    assert second.prompt[: len(first)] == (*first.prompt, *first.response)
    assert [decode_response(tokenizer, turn.response) for turn in (first, second)] == ["a1", "a2"]
