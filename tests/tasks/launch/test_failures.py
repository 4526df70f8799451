"""What is said of ranks that failed, and what rank 0 tells, without any: their files are here before they are read."""

import errno
import json
import logging
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dpr_core.config.execution import LaunchConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.store import Store
from tasks.launch.ranks import _Ranks, first_failure
from tasks.launch.worker import _environment_of_slurm, kind_of
from tasks.run_stage import StageJob, run_stage
from tasks.running.shutdown import Shutdown
from tests.tasks.conftest import NUMBER, Number


class Ended:
    """An agent whose ranks have ended."""

    def poll(self) -> int:
        return 1


def failed(at: float, status: int = 1, kind: str | None = None, text: str = "") -> dict[str, Any]:
    own = {"message": "<NONE>"} if kind is None else {"kind": kind, "text": text, "time": at}
    return {"timestamp": int(at), "exitcode": status, "error_file_data": own}


@pytest.fixture
def ranks(store: Store, tmp_path: Path) -> _Ranks:
    job = StageJob("sft", "sft", SFTConfig(), {}, None)
    (tmp_path / "told").touch()
    return _Ranks(job, LaunchConfig(processes=2), store, None, Shutdown(), tmp_path, Ended())  # type: ignore[arg-type]


def fail(ranks: _Ranks, **failures: dict[str, Any]) -> DensePathError:
    (ranks._folder / "failures.json").write_text(json.dumps({name[1:]: each for name, each in failures.items()}))
    with pytest.raises(DensePathError) as raised:
        ranks.watch()
    return raised.value


@pytest.mark.parametrize("kind", [UsageError, DensePathError])
def test_an_error_for_the_user_is_raised_as_it_is(ranks: _Ranks, kind: type[DensePathError]) -> None:
    error = fail(ranks, r1=failed(5.0, kind=kind.__name__, text="too long"))
    assert (type(error), str(error)) == (kind, "too long")


def test_a_full_disk_is_told_of_as_with_one_process(ranks: _Ranks) -> None:
    kind = kind_of(OSError(errno.ENOSPC, "No space left on device"))
    error = fail(ranks, r1=failed(5.0, kind=kind, text="raw"))
    assert "no space left in " in str(error)
    assert "raw" not in str(error)


def test_any_other_error_names_the_rank_and_shows_its_last_words(ranks: _Ranks) -> None:
    log = ranks._folder / "logs" / "x" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("Traceback\n  in line 3\n\x1b[31mValueError: odd\n")
    error = str(fail(ranks, r1=failed(5.0, kind="ValueError", text="odd"), r0=failed(5.1, kind="RuntimeError")))
    expected = "sft: rank 1 of its 2 processes failed: ValueError: odd; its last words:\n  Traceback\n    in line 3\n"
    assert error.startswith(expected)
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("failures", "first"),
    [
        ({"0": failed(10.2, kind="RuntimeError", text="closed by peer"), "1": failed(11.0, -9)}, 1),
        ({"0": failed(11.9, -9), "1": failed(10.9, kind="RuntimeError")}, 0),
        ({"0": failed(10.2, kind="ValueError"), "1": failed(10.1, -15)}, 0),
        ({"0": failed(10.2, kind="ValueError"), "1": failed(20.9, -9)}, 0),
    ],
    ids=["killed", "rank 0 killed", "terminated by the agent", "killed by the agent as it would not end"],
)
def test_the_rank_that_made_the_others_fail_is_named(failures: dict[str, Any], first: int) -> None:
    assert first_failure(failures).rank == first


def test_ranks_that_never_began_are_told_of_with_the_agent_s_last_words(ranks: _Ranks) -> None:
    (ranks._folder / "agent.log").write_text("no such interface")
    with pytest.raises(DensePathError, match=r"^sft: the 2 processes could not be started; its last words:\n  no such"):
        ranks.watch()


def test_a_run_that_another_host_has_taken_over_is_left_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mlflow.db").rename(tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    store = Store.open()
    ours, theirs = (
        store.begin(
            stage="sft", name="sft", version=1, key=key * 64, config=SFTConfig(), inputs={}, parent=None, description=""
        ).id
        for key in "ab"
    )
    for run, owner in ((ours, store._owner), (theirs, "another")):
        store._client.log_param(run, "dpr.lease.1", f"token 90 {owner} host:/home")
        (tmp_path / "told").write_text(json.dumps({"run": run}) + "\n")
        job = StageJob("sft", "sft", SFTConfig(), {}, None)
        fail(
            _Ranks(job, LaunchConfig(processes=2), store, None, Shutdown(), tmp_path, Ended()),  # type: ignore[arg-type]
            r0=failed(5.0, kind="DensePathError", text="another took it over"),
        )
    assert [store.record(run).status for run in (ours, theirs)] == ["FAILED", "RUNNING"]


def test_a_rank_0_that_its_agent_terminates_as_it_fails_still_ends_its_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, sent = Shutdown.block_signals, list[int]()

    def terminated(self: Shutdown) -> None:
        if not sent:
            sent.append(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        block(self)

    def body(*_: object) -> dict[str, float]:
        raise ValueError("closed by peer")

    monkeypatch.setattr(Shutdown, "block_signals", terminated)
    with pytest.raises(ValueError, match="closed by peer"):
        run_stage(NUMBER, Number(), {}, store=store, body=body)
    [record] = store.records()
    assert (record.status, record.reason, sent) == ("FAILED", "ValueError: closed by peer", [signal.SIGTERM])


def test_what_rank_0_says_is_said_here(ranks: _Ranks, caplog: pytest.LogCaptureFixture) -> None:
    outcome = {"stage": "sft", "name": "sft", "id": "a", "status": "ran", "seconds": 1.0, "metrics": {"loss": 0.25}}
    lines = [{"pid": 1}, {"log": ["some.library", logging.WARNING, "100% odd"]}, {"outcome": outcome}]
    (ranks._folder / "told").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ranks.watch().metrics == {"loss": 0.25}
    assert ("some.library", logging.WARNING, "100% odd") in caplog.record_tuples


class SpecialError(UsageError):
    """As a body may raise."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [(SpecialError("x"), "UsageError"), (DensePathError("x"), "DensePathError"), (KeyError("x"), "KeyError")],
)
def test_an_error_goes_by_the_kind_that_is_raised_again(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


@pytest.mark.parametrize(("nodes", "host"), [("gpu[03-04,07],login", "gpu03"), ("n1,n2", "n1"), ("a-b.c", "a-b.c")])
def test_what_srun_says_is_said_in_torch_s_words(nodes: str, host: str) -> None:
    given = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12"}
    given |= {"SLURM_JOB_NODELIST": nodes, "SLURM_STEP_ID": "2"}
    _environment_of_slurm(given)
    found = [given[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert found == ["3", "4", "1", host, "20014"]
    theirs = {**given, "RANK": "0", "MASTER_ADDR": "there", "SLURM_PROCID": "7"}
    _environment_of_slurm(theirs)
    assert (theirs["RANK"], theirs["MASTER_ADDR"]) == ("0", "there")


def test_settings_of_machines_that_met_by_themselves_are_refused_unless_at_their_defaults() -> None:
    old = {"processes": 2, "machines": 1, "main_address": None, "main_port": 29555, "join_minutes": 10.0}
    assert LaunchConfig.model_validate(old) == LaunchConfig(processes=2)
    with pytest.raises(ValidationError, match="machines no longer meet by `dpr join`; set launch.engine=ray"):
        LaunchConfig.model_validate({**old, "machines": 2})
