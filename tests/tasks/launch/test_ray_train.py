"""What a stage on Ray is refused, and what goes along to its nodes: Ray itself is met in tests/services."""

import io
import json
import logging
from pathlib import Path

import pytest

from dpr_core.config.execution import LaunchConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.launch import ray_train
from tasks.launch.agent import failure
from tasks.launch.ranks import first_failure
from tasks.registry import stage_named
from tasks.run_stage import check_launch
from tasks.running import ray_cluster

RAY = SFTConfig.model_validate({"execution": {"launch": {"processes": 2, "engine": "ray"}}})


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "sft: launch.engine=ray needs RAY_ADDRESS to name a Ray cluster"),
        ("ray://10.0.0.1:10001", "is that of a client, and Ray Train has to be started inside the cluster"),
    ],
)
def test_a_cluster_that_is_not_named_is_asked_for(monkeypatch: pytest.MonkeyPatch, where: str, words: str) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    monkeypatch.setenv("RAY_ADDRESS", where)
    with pytest.raises(UsageError, match=words):
        check_launch(stage_named("sft"), RAY)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_launch(stage_named("sft"), RAY)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"sft: launch.engine=ray needs Ray: pip install 'dense-path\[cluster\]'"):
        check_launch(stage_named("sft"), RAY)


def test_settings_go_along_and_keys_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in ray_train.os.environ if name.startswith(ray_train.PASSED_ON)]:
        monkeypatch.delenv(name)
    along = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "DPR_STATES": "s3://bucket/states", "HF_HUB_OFFLINE": "1"}
    here = {
        "DPR_HOME": str(tmp_path),
        "DPR_TOLD": "x",
        "HF_TOKEN": "hf_abc",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "MLFLOW_S3_ENDPOINT_URL": "http://user:secret@s3:9000",
        "AWS_ACCESS_KEY_ID": "AKIA",
    }
    for name, value in (along | here).items():
        monkeypatch.setenv(name, value)
    assert ray_train.passed_on() == along


def test_the_rank_that_was_killed_comes_before_those_that_missed_it() -> None:
    """Clocks of machines differ, and so their times do not count."""
    missed = failure("RuntimeError", "connection closed by peer")
    hung = failure("DensePathError", "rank 2 has waited 60 minutes")
    assert first_failure({"0": missed, "2": hung, "1": failure(None, "", -9)}).rank == 1
    assert first_failure({"0": missed, "2": hung}).rank == 2
    lost = failure("ActorDiedError", "The node died", -9)
    assert first_failure({"0": missed, "1": lost, "2": hung})[1:] == (1, -9, "ActorDiedError", "The node died")


def test_ranks_are_waited_for_in_words_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would wait for ever."""
    monkeypatch.setattr(ray_train, "room", lambda: (1, "GPU"))
    told = io.StringIO()
    launch = LaunchConfig(processes=2, engine="ray", fewest=2, timeout_minutes=2)
    waiting = ray_train.Waiting("sft", launch, told)
    for seconds in (0, 61, 90, 0, 61):
        waiting.has_lasted(seconds)
    said = [json.loads(line)["log"] for line in told.getvalue().splitlines()]
    words = "sft: no rank has run for 61 s; the Ray cluster has 1 GPUs, and launch.fewest is 2"
    assert said == [["dense_path", logging.WARNING, f"{words}: waiting"]] * 2
    with pytest.raises(DensePathError, match="sft: no rank has run for 121 s; .*, the same command goes on"):
        waiting.has_lasted(121)
