import json
import logging
import pickle
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import address, places_of_keys, read_key, redact, redact_logs, shown_value

SECRET = "s3same/open+7f3a9c"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/#/experiments/1/runs/2", "http://host:5000/#/experiments/1/runs/2"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("hf://datasets/me/rows@main/rows.parquet", "hf://datasets/me/rows@main/rows.parquet"),
        ("no address", "no address"),
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?***"),
        ("postgresql://me:se/cr@e?t#@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("https://secret@host/x", "https://***@host/x"),
        ("https://:secret@host/x", "https://***@host/x"),
        ("https://secret-token-1:x-oauth-basic@host/x", "https://***@host/x"),
        ("https://host/x?token=secret#part", "https://host/x?***"),
    ],
)
def test_an_address_is_shown_without_secrets(uri: str, shown: str) -> None:
    assert address(uri) == shown
    assert redact(f"cannot open '{uri}' now") == f"cannot open '{shown}' now"


@pytest.mark.parametrize("form", [SECRET, quote(SECRET), quote(SECRET, safe=""), json.dumps(f"\t{SECRET}")])
def test_what_variables_hold_of_keys_is_in_no_error(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    for variable in ("SOME_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        with monkeypatch.context() as here:
            here.setenv(variable, SECRET)
            assert "s3same" not in redact(f"refused: {form}!")
            assert "s3same" not in repr(UsageError(f"refused: {form}!"))


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize("where", ["http://me:{}@host", "http://{}@host", "http://host/?token={}&x=y"])
def test_what_variables_hold_of_passwords_is_in_no_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, where: str
) -> None:
    monkeypatch.setenv(variable, where.format(quote(SECRET, safe="")))
    for said in (SECRET, quote(SECRET, safe="")):
        assert redact(f"refused: {said}!") == "refused: ***!"
    assert "s3same" not in redact(f"no such host: {where.format(SECRET)}")


def test_the_names_in_a_query_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://host/db?application_name=hidden-value-1&hidden-token-2")
    said = "application_name is not hidden-value-1 or hidden-token-2"
    assert redact(said) == "application_name is not *** or ***"


def test_a_key_is_known_by_the_variable_that_it_was_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE", SECRET)
    assert redact(SECRET) == SECRET
    assert read_key("MY_JUDGE") == SECRET
    assert redact(SECRET) == "<key>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key sk-proj-0123456789abcdefXYZ.", "key <key>"),
        ("hf_abcdefghijklmnop0123456789", "<key>"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer <key>"),
        ("glpat-ab_cdefghi-jklm2nopqr", "<key>"),
    ],
)
def test_keys_that_begin_as_keys_do_are_in_no_error(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert list(places_of_keys({"setting": text})) == ["setting"] * ("Bearer" not in text)


@pytest.mark.parametrize(
    "name",
    [
        "risk-adjusted-returns-of-2026 and sk-learn-like-names",
        "/data/hf_llama3_8b_instruct_sft",
        "org/hf_qwen2.5-7b-instruct",
        "sk-wiki-2023-instructions.jsonl",
        "rk-2024-experiments-run",
    ],
)
def test_names_that_begin_as_keys_do_are_taken_and_shown(name: str) -> None:
    assert redact(name) == name
    assert list(places_of_keys({"setting": name})) == []


@pytest.mark.parametrize("part", ["a", "a.", "sk-", "sk-a", "AKIA", "Basic ", "a://"])
def test_a_long_text_takes_no_long_time(part: str) -> None:
    long = part * (200_000 // len(part))
    began = time.monotonic()
    redact(long)
    list(places_of_keys({"setting": long}))
    assert time.monotonic() - began < 30


def test_short_words_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("any", "none", "EMPTY", "postgres"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        text = f"is there any? none; EMPTY at postgresql://host, {key}"
        assert redact(text) == text


def test_an_error_goes_through_a_pickle_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    error = pickle.loads(pickle.dumps(DensePathError(f"not with {SECRET}")))
    assert str(error) == "not with <key>"


@pytest.fixture
def records_as_before() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("records_as_before")
def test_no_log_holds_a_key_whoever_writes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    redact_logs()
    redact_logs()
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("somebody.else").exception("sent %s to %s", SECRET, "http://me:pw@host")
    logging.getLogger("somebody.else").makeRecord("x", logging.INFO, "file", 1, "%(name)s", ({"other": 1},), None)
    logging.getLogger("somebody.else").warning("%d%%", 5)
    logging.getLogger("somebody.else").warning("%d", SECRET)
    assert "s3same" not in caplog.text
    assert "sent <key> to http://me:***@host" in caplog.text
    assert caplog.records[-2].args == (5,)
    assert caplog.messages[-1] == "'%d' (it does not fit its arguments)"


def test_settings_that_hold_a_key_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    values = {"a": {"b": ["x", f"with {SECRET}"]}, "c": "sk-0123456789abcdefgh", "d": "any", "e": 1, "f": None}
    assert set(places_of_keys(values)) == {"a.b.1", "c"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("fast", "'fast'"),
        ("dense_path_reinforce", "'dense_path_reinforce'"),
        (0.5, "0.5"),
        (None, "None"),
        (SECRET, "a text of 18 characters"),
        ("x" * 41, "a text of 41 characters"),
        ({"key": SECRET}, "a dict"),
    ],
)
def test_a_refused_setting_is_shown_unless_it_may_be_a_key(value: object, shown: str) -> None:
    assert shown_value(value) == shown
