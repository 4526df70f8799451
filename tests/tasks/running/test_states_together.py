"""Several processes save a state together and find it again, each on a machine of its own: of their homes, none but the
shared place is seen by all."""

import json
import logging
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tasks.running.places
import tasks.running.states
from dpr_core import distributed
from dpr_core.errors import DensePathError
from dpr_core.models.sharding import shard_like
from dpr_core.state import SavedTensor
from perf.checkpointing import growth
from tasks.running.stage_workdir import StageWorkdir
from tests import ranks

pytestmark = [pytest.mark.slow, pytest.mark.integration]

KEY, RUN = "a" * 64, "1" * 32
WHOLE = torch.arange(35.0).reshape(7, 5)


def workdir(folder: Path) -> StageWorkdir:
    """In this process's own home, or in one for all where states are not shared."""
    distributed.state()
    shared = folder / "shared"
    own = f"home-{distributed.rank()}" if shared.exists() else "home"
    if shared.exists():
        os.environ["DPR_STATES"] = shared.as_uri()
    found = StageWorkdir(folder / own / "work" / KEY, RUN)
    if distributed.rank() == 0:
        found.open(RUN)
    distributed.all_gather([0])
    return found


def sharded(whole: Tensor = WHOLE) -> Tensor:
    """The whole of it by one process, else this one's rows: of 7 rows, the last of 4 has one; of a single row, none."""
    if distributed.world_size() == 1:
        return whole.clone()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(whole, init_device_mesh("cpu", (distributed.world_size(),)), [Shard(0)])


def state(step: int) -> dict[str, Any]:
    plain = {"step": step, "all": torch.ones(3), "bytes": torch.zeros(0)}
    return plain | {"sharded": sharded() + step, "one row": sharded(WHOLE[:1])}


def save(folder: Path) -> None:
    here = workdir(folder)
    for step in (1, 2):
        if distributed.rank() == 0:
            (here.output / f"{step}").write_text(f"at {step}")
        assert here.save_state(step, 10 * step, lambda step=step: state(step)) > 0  # type: ignore[misc]


def go_on(folder: Path) -> None:
    """And keep what comes next."""
    here = workdir(folder)
    saved = here.latest_state()
    assert saved is not None
    found, step = saved.read(), saved.step
    assert (saved.last_step, found["step"]) == (10 * step, step)
    like: Any = sharded()
    mine: Any = shard_like(found["sharded"], like)
    expected = like + step
    assert type(mine) is type(like)
    if isinstance(mine, torch.distributed.tensor.DTensor):
        mine, expected = mine.to_local(), expected.to_local()
    assert torch.equal(mine, expected)
    assert torch.equal(found["all"], torch.ones(3))
    row = found["one row"]
    assert torch.equal(row.like(WHOLE[:1]) if isinstance(row, SavedTensor) else row, WHOLE[:1])
    if distributed.rank() == 0:
        assert sorted(path.name for path in here.output.iterdir()) == ["1", "2"]
    here.save_state(step + 1, 10 * (step + 1), state(step + 1))


@pytest.mark.parametrize("shared", [False, True])
def test_any_number_goes_on_from_what_any_number_has_left(
    tmp_path: Path, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared:
        (tmp_path / "shared").mkdir()
    monkeypatch.setenv("DPR_STATES", "")
    ranks.run(2, save, tmp_path)
    states = (tmp_path / "shared" / KEY / RUN / "0") if shared else tmp_path / "home" / "work" / KEY / "states"
    two = sorted(path.name for path in (states / "000000002").iterdir())
    assert two == ["SEAL.json", "state.json", "tensors-0.safetensors", "tensors-1.safetensors"]
    for count in (1, 4, 2):
        if count == 1:
            go_on(tmp_path)
        else:
            ranks.run(count, go_on, tmp_path)
    seal = json.loads((states / "000000005" / "SEAL.json").read_text())
    assert (seal["key"], seal["run"], seal["last_step"]) == (KEY, RUN, 50)


BIG = (4096, 4096)
BYTES = 4 * 4096 * 4096


def save_big(folder: Path) -> None:
    here = workdir(folder)
    whole = torch.arange(float(BIG[0])).repeat_interleave(BIG[1]).reshape(BIG)
    here.save_state(1, 1, {"weights": sharded(whole)})


def read_big(folder: Path) -> None:
    """Of its own, a process gets no more memory than its share; and no more of the files than that is mapped."""
    here, count = workdir(folder), distributed.world_size()
    like: Any = sharded(torch.zeros(BIG))
    saved = here.latest_state()
    assert saved is not None
    with growth() as grown:
        mine: Any = shard_like(saved.read()["weights"], like)
    rows = BIG[0] // count
    assert mine.to_local()[:, 0].tolist() == list(range(distributed.rank() * rows, (distributed.rank() + 1) * rows))
    room = 25_000_000  # for what is imported
    assert grown["own"] < BYTES / count + room, grown
    assert grown["mapped"] < 2 * BYTES / count + room, grown


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 4), (4, 4)])
def test_nobody_holds_more_than_its_share(
    tmp_path: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_STATES", "")
    if before == 1:
        save_big(tmp_path)
    else:
        ranks.run(before, save_big, tmp_path)
    ranks.run(after, read_big, tmp_path)


def full_for_one(folder: Path) -> None:
    here = workdir(folder)
    assert here.save_state(1, 1, state(1)) > 0
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dense_path").addHandler(handler)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if distributed.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
    assert here.save_state(2, 2, state(2)) == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert len(logged) == (distributed.rank() == 0)
    assert all("the disk is full: no state could be kept at step 2" in each for each in logged)
    saved = here.latest_state()
    assert saved is not None
    assert saved.step == 1


def test_a_disk_that_is_full_for_one_is_full_for_all_and_ends_nothing(tmp_path: Path) -> None:
    ranks.run(2, full_for_one, tmp_path)


def wrong_for_one(folder: Path) -> None:
    here = workdir(folder)
    if distributed.rank() == 1:
        tasks.running.states.States._keep = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises((ZeroDivisionError, DensePathError), match="division by zero"):
        here.save_state(1, 1, state(1))
    assert here.latest_state() is None


def test_what_goes_wrong_in_one_is_an_error_in_all(tmp_path: Path) -> None:
    ranks.run(2, wrong_for_one, tmp_path)


def wrong_before_the_plan(folder: Path) -> None:
    here = workdir(folder)
    wrong = {"strange": object()} if distributed.rank() == 1 else {}
    with pytest.raises((TypeError, DensePathError), match="a object cannot be kept"):
        here.save_state(1, 1, state(1) | wrong)
    assert here.save_state(1, 1, state(1)) > 0


def test_what_one_cannot_keep_is_an_error_in_all_and_nobody_waits(tmp_path: Path) -> None:
    ranks.run(2, wrong_before_the_plan, tmp_path)


def damaged_on_its_way(folder: Path) -> None:
    """What one machine gets of a place that others read well."""
    here = workdir(folder)
    os.environ["DPR_STATES"] = f"local://{folder / 'shared'}"
    here = StageWorkdir(here.folder, RUN)
    here.states.place._fs.auto_mkdir = True  # type: ignore[attr-defined]
    for step in (1, 2):
        assert here.save_state(step, step, state(step)) > 0
    if distributed.rank() == 1:
        get = tasks.running.places.Bucket.path

        def torn(self: Any, name: str, downloads: Path) -> Path:
            path = get(self, name, downloads)
            if "000000002/tensors" in name:
                path.write_bytes(path.read_bytes()[:-1])
            return path

        tasks.running.places.Bucket.path = torn  # type: ignore[method-assign]
    saved = here.latest_state()
    assert saved is not None
    assert saved.step == 1


def test_what_arrives_damaged_on_one_machine_takes_all_back(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    ranks.run(2, damaged_on_its_way, tmp_path)


def damaged_for_one(folder: Path) -> None:
    here = workdir(folder)
    for step in (1, 2):
        here.save_state(step, step, state(step))
    if distributed.rank() == 0:
        path = folder / "home" / "work" / KEY / "states" / "000000002" / "tensors-1.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    distributed.all_gather([0])
    saved = here.latest_state()
    assert saved is not None
    assert saved.step == 1


def test_a_damaged_share_takes_all_back_to_the_state_before(tmp_path: Path) -> None:
    ranks.run(2, damaged_for_one, tmp_path)
