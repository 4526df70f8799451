import logging
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pytest
from huggingface_hub import errors

from dpr_core import hub
from dpr_core.errors import DensePathError, UsageError

NAME, FIELD = "org/model", "backbone.name"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`answers(error)`: what the hub says of every file; None: it is there."""

    def say(error: Exception | None, cached: str | None = None) -> None:
        def metadata(url: str, timeout: float) -> None:
            assert timeout == hub.SECONDS
            if error is not None:
                raise error

        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **options: cached)

    return say


def of_hub(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    request = httpx2.Request("HEAD", "https://huggingface.co/org/model")
    return kind("no", response=httpx2.Response(status, request=request))


def test_what_can_be_read_is_passed(answers: Any) -> None:
    answers(None)
    hub.check("model", NAME, None, FIELD, "config.json")
    answers(of_hub(errors.RemoteEntryNotFoundError, 404))
    hub.check("dataset", NAME, None, FIELD)


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        (errors.GatedRepoError, 403, "the model org/model is gated, and this account has no access: ask for it on its"),
        (errors.RepositoryNotFoundError, 401, "the hub has no model org/model at revision 1a2b that can be read"),
        (errors.RevisionNotFoundError, 404, r"check its name and revision, .*--set backbone\.name="),
        (errors.RemoteEntryNotFoundError, 404, "the model org/model of the hub has no config.json at revision 1a2b"),
    ],
)
def test_a_refusal_says_what_to_do(answers: Any, kind: Any, status: int, words: str) -> None:
    answers(of_hub(kind, status))
    with pytest.raises(UsageError, match=words):
        hub.check("model", NAME, "1a2b", FIELD, "config.json")


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("timed out"),
        of_hub(errors.HfHubHTTPError, 503),
    ],
)
def test_without_the_hub_a_copy_will_do(answers: Any, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    answers(error)
    with pytest.raises(DensePathError, match=r"cannot be reached for the model org/model .*--set backbone\.name="):
        hub.check("model", NAME, None, FIELD, "config.json")
    answers(error, cached="/somewhere/config.json")
    with caplog.at_level(logging.WARNING, "dense_path"):
        hub.check("model", NAME, None, FIELD, "config.json")
    assert "the copy of org/model on this machine is used" in caplog.text


def test_a_copy_that_was_asked_for_is_taken_without_a_word(answers: Any, caplog: pytest.LogCaptureFixture) -> None:
    answers(errors.OfflineModeIsEnabled("offline mode is enabled"), cached="/somewhere/config.json")
    hub.check("model", NAME, None, FIELD, "config.json")
    assert caplog.text == ""
    answers(errors.OfflineModeIsEnabled("offline mode is enabled"))
    with pytest.raises(DensePathError, match="offline mode is enabled"):
        hub.check("model", NAME, None, FIELD, "config.json")


def test_of_a_dataset_the_copy_that_was_loaded_before_will_do(
    answers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    answers(errors.OfflineModeIsEnabled("offline mode is enabled"))
    with pytest.raises(DensePathError, match=r"for the dataset me/MyRows .*--set subsample\.source\.name="):
        hub.check("dataset", "me/MyRows", None, "subsample.source.name")
    (tmp_path / "me___my_rows" / "default" / "0.0.0" / "1a2b").mkdir(parents=True)
    hub.check("dataset", "me/MyRows", None, "subsample.source.name")
    with pytest.raises(DensePathError, match="cannot be reached"):
        hub.check("dataset", "me/MyRows", "3c4d", "subsample.source.name")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(answers: Any, name: str) -> None:
    answers(AssertionError("asked"))
    with pytest.raises(UsageError, match="there is no folder"):
        hub.check("model", name, None, FIELD, "config.json")


def test_a_name_that_no_repository_can_have(answers: Any) -> None:
    answers(None)
    with pytest.raises(UsageError, match="the hub has no model"):
        hub.check("model", "a/b/c", None, FIELD, "config.json")
