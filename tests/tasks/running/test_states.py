"""States where machines share them: found from another home, damaged, hostile, out of reach."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.errors import DensePathError, UsageError
from tasks.running.places import Bucket, Folder, UnreachableStatesError, shared_place
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.states import SEAL

KEY, RUN, OTHER_RUN = "a" * 64, "1" * 32, "2" * 32
OF_RUN = f"{KEY}/{RUN}/0"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder | Bucket]:
    (tmp_path / "shared").mkdir()
    uri = (tmp_path / "shared").as_uri() if request.param == "file" else f"memory://{tmp_path.name}/states"
    monkeypatch.setenv("DPR_STATES", uri)
    found = shared_place()
    assert found is not None
    yield found
    found.remove("")


def test_a_folder_that_is_not_mounted_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_STATES", (tmp_path / "mount" / "states").as_uri())
    with pytest.raises(UnreachableStatesError, match="there is no folder .*/mount/states; make or mount it"):
        StageWorkdir(tmp_path / "work" / KEY).check()
    assert not (tmp_path / "mount").exists()


@pytest.fixture
def home(tmp_path: Path) -> Callable[[str], StageWorkdir]:
    """The folder of the stage in a home of that name."""
    return lambda name: StageWorkdir(tmp_path / name / "work" / KEY)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((3,), float(step))}


def put(workdir: StageWorkdir, name: str, text: str) -> None:
    (workdir.output / name).parent.mkdir(parents=True, exist_ok=True)
    (workdir.output / name).write_text(text)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def newest(workdir: StageWorkdir) -> dict[str, Any] | None:
    left = workdir.latest_state()
    return None if left is None else left.read()


@pytest.fixture
def begun(place: Folder | Bucket, home: Callable[[str], StageWorkdir]) -> StageWorkdir:
    """In one home, two states and what came after them."""
    workdir = home("one")
    workdir.check()
    workdir.open(RUN)
    put(workdir, "half/model", "at half")
    assert workdir.save_state(1, 10, state(1)) > 0
    put(workdir, "three-quarters/model", "later")
    assert workdir.save_state(2, 20, state(2)) > 0
    put(workdir, "whole/model", "after the state")
    return workdir


def test_another_home_goes_on(begun: StageWorkdir, home: Callable[[str], StageWorkdir]) -> None:
    shutil.rmtree(begun.folder)
    other = home("two")
    assert other.runs_left() == [RUN]
    other.open(RUN)
    left = other.latest_state()
    assert left is not None
    assert (left.step, left.last_step) == (2, 20)
    assert left.read()["weights"].tolist() == [2.0, 2.0, 2.0]
    assert files(other.output) == ["half/model", "three-quarters/model"]
    assert (other.output / "half/model").read_text() == "at half"
    assert other.save_state(3, 30, state(3)) > 0
    # And the first one after it, whose output is from before.
    begun.open(RUN)
    assert (newest(begun) or {})["step"] == 3
    assert files(begun.output) == ["half/model", "three-quarters/model"]


def test_two_states_are_kept_and_each_file_of_the_output_once(begun: StageWorkdir, place: Folder | Bucket) -> None:
    kept = [name for name in place.files() if name.startswith(f"{OF_RUN}/output/")]
    assert len(kept) == 2
    shutil.rmtree(begun.output / "half")
    begun.save_state(3, 3, state(3))
    begun.save_state(4, 4, state(4))
    names = [name.removeprefix(f"{OF_RUN}/") for name in place.files()]
    assert {name.partition("/")[0] for name in names} == {"000000003", "000000004", "output"}
    assert len([name for name in names if name.startswith("output/")]) == 2, "the half's is no longer needed"


def test_another_run_begins_with_nothing(begun: StageWorkdir, place: Folder | Bucket) -> None:
    """And leaves alone what another store may go on with."""
    before = place.files().keys()
    begun.open(OTHER_RUN)
    assert (begun.runs_left(), begun.is_resumable) == ([OTHER_RUN, RUN], False)
    assert newest(begun) is None
    assert place.files().keys() == before


def test_who_lost_the_run_and_does_not_know_spoils_nothing_of_the_next(
    place: Folder | Bucket, home: Callable[[str], StageWorkdir]
) -> None:
    one, other = home("one"), home("two")
    one.open(RUN, 1)
    put(one, "model", "half")
    one.save_state(1, 1, state(1))
    one.save_state(2, 2, state(2))
    other.open(RUN, 4)
    assert (newest(other) or {})["step"] == 2
    put(other, "model", "whole")
    other.save_state(3, 3, state(30))
    for step in (3, 4, 5):
        one.save_state(step, step, state(step))
    one.clear()
    assert {name.split("/")[2] for name in place.files()} == {"4"}
    for step in (6, 7):
        one.open(RUN, 1)
        one.save_state(step, step, state(step))
    third = home("three")
    third.open(RUN, 5)
    assert (newest(third) or {})["weights"].tolist() == [30.0, 30.0, 30.0]
    assert (third.output / "model").read_text() == "whole"
    third.save_state(8, 8, state(8))
    assert {name.split("/")[2] for name in place.files()} == {"1", "4", "5"}
    third.save_state(9, 9, state(9))
    assert {name.split("/")[2] for name in place.files()} == {"5"}, "the others' are no longer needed"
    third.clear()
    assert place.files() == {}


def test_what_is_left_of_a_finished_run_goes_and_another_s_stays(
    begun: StageWorkdir, place: Folder | Bucket, home: Callable[[str], StageWorkdir]
) -> None:
    other = home("two")
    other.open(OTHER_RUN, 3)
    other.save_state(1, 1, state(1))
    begun.clear(finished=RUN)
    assert {name.split("/")[1] for name in place.files()} == {OTHER_RUN}
    assert not begun.folder.exists()


def test_clearing_removes_what_is_shared(begun: StageWorkdir, place: Folder | Bucket) -> None:
    begun.clear()
    assert place.files() == {}
    assert begun.runs_left() == []


def test_half_a_state_is_no_state_and_goes(
    begun: StageWorkdir, place: Folder | Bucket, home: Callable[[str], StageWorkdir]
) -> None:
    place.write(f"{OF_RUN}/000000007/tensors-0.safetensors", b"half")
    other = home("two")
    other.open(RUN)
    assert (newest(other) or {})["step"] == 2
    assert not any("000000007" in name for name in place.files())


@pytest.mark.parametrize("what", ["tensors-0.safetensors", "state.json", SEAL, "output"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damage_gives_way_to_the_state_before(
    begun: StageWorkdir, place: Folder | Bucket, home: Callable[[str], StageWorkdir], what: str, how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    seal = json.loads(place.read(f"{OF_RUN}/000000002/{SEAL}"))
    name = f"output/{seal['output']['three-quarters/model']}" if what == "output" else f"000000002/{what}"
    content = bytearray(place.read(f"{OF_RUN}/{name}"))
    content[-10 if what != "output" else 0] ^= 1
    if how == "missing":
        place.remove(f"{OF_RUN}/{name}")
    else:
        place.write(f"{OF_RUN}/{name}", bytes(content))
    other = home("two")
    other.open(RUN)
    assert (newest(other) or {})["step"] == 1
    assert files(other.output) == ["half/model"]
    unsealed = what == SEAL and how == "missing"
    assert unsealed or "the state of step 2 is not used: " in caplog.text


def reseal(place: Folder | Bucket, change: Callable[[dict[str, Any]], None]) -> None:
    """As whoever may write there could."""
    for step in ("000000001", "000000002"):
        seal = json.loads(place.read(f"{OF_RUN}/{step}/{SEAL}"))
        change(seal)
        place.write(f"{OF_RUN}/{step}/{SEAL}", json.dumps(seal).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda seal: seal["output"].update({"../../../planted": "0" * 64}),
        lambda seal: seal["output"].update({"/tmp/planted": "0" * 64}),
        lambda seal: seal["output"].update({"a/../../planted": "0" * 64}),
        lambda seal: seal["output"].update({"planted": "../000000001/state.json"}),
        lambda seal: seal["output"].update({".": "0" * 64}),
        lambda seal: seal["state"].update({"../../planted": "0" * 64}),
        lambda seal: seal["state"].update({"tensors-0.safetensors": 7}),
        lambda seal: seal.update(last_step="9"),
        lambda seal: seal.update(state=[]),
        lambda seal: seal.update(key="b" * 64),
    ],
)
def test_a_hostile_seal_is_none(
    begun: StageWorkdir, place: Folder | Bucket, change: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    reseal(place, change)
    assert newest(begun) is None
    assert caplog.text.count("is not used: ") == 2
    assert not list(tmp_path.rglob("*planted*"))


def test_what_is_named_by_no_run_is_nobody_s(begun: StageWorkdir, place: Folder | Bucket) -> None:
    place.write(f"{KEY}/etc/0/000000001/{SEAL}", b"{}")
    assert begun.runs_left() == [RUN]


def test_a_seal_that_is_nested_too_deeply_is_none(begun: StageWorkdir, place: Folder | Bucket) -> None:
    begun.states.place.write(f"000000002/{SEAL}", b"[" * 100_000)
    assert begun.runs_left() == [RUN]
    assert (newest(begun) or {})["step"] == 1


def test_a_later_version_s_states_are_refused_and_stay(begun: StageWorkdir, place: Folder | Bucket) -> None:
    reseal(place, lambda seal: seal.update(format=99))
    before = place.files().keys()
    assert begun.runs_left() == [RUN]
    begun.open(RUN)
    with pytest.raises(DensePathError, match="another version of this program .* step 2.*dpr gc --unfinished"):
        begun.latest_state()
    assert place.files().keys() == before


def test_what_cannot_be_written_is_a_warning(
    begun: StageWorkdir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any) -> None:
        raise OSError("AWS Error SLOW_DOWN: 503, with planted-secret-key")

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key")
    caplog.set_level(logging.WARNING)
    with monkeypatch.context() as patched:
        patched.setattr(type(begun.states.place), "put", away)
        patched.setattr(type(begun.states.place), "write", away)
        assert begun.save_state(3, 3, state(3)) == 0
    assert "no state could be kept at step 3 in " in caplog.text
    assert "the one before it stays, and the work goes on" in caplog.text
    assert "planted" not in caplog.text
    assert (newest(begun) or {})["step"] == 2


def test_out_of_reach_it_is_said_and_nothing_is_thrown_away(
    begun: StageWorkdir, place: Folder | Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = place.files().keys()
    with monkeypatch.context() as patched:
        for name in ("files", "read", "path", "write", "remove"):

            def away(*_: Any) -> None:
                raise PermissionError("Access Denied")

            patched.setattr(type(place), name, away)
        for ask in (begun.runs_left, begun.check, begun.latest_state, lambda: begun.open(RUN)):
            with pytest.raises(UnreachableStatesError, match="DPR_STATES: .* cannot be used .*Access Denied"):
                ask()
        begun.clear()
        assert "dpr gc removes them" in caplog.text
    assert place.files().keys() == before


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://AKIAPLANTED0123:planted/secret@bucket/x", r"s3://\*\*\*@bucket/x holds a user, a password"),
        ("s3://bucket/x?secret=planted", "holds a user, a password or a query"),
        ("/shared/states", "is no address; set DPR_STATES to an address like"),
        ("file://host/shared", "names no folder"),
        ("s3:///x", "names no bucket"),
        ("nothing-known://x", "cannot be opened"),
    ],
)
def test_what_is_no_place_is_refused_without_its_secrets(uri: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_STATES", uri)
    with pytest.raises(UsageError, match=words) as raised:
        shared_place()
    assert "planted" not in str(raised.value).lower()
