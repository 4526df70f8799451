"""One process, and 2 and 4 that share its work: the same losses, gradients, responses and weights, to rounding."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from dpr_core import distributed
from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError
from dpr_core.models.oom import BatchLimits
from dpr_core.state import SavedTensor, read
from tests import ranks
from tests.dpr_core.training.distributed import (
    Found,
    backbone,
    compared,
    everything,
    fine_tuning,
    parts,
    slicing,
    waiting,
    weights_of,
)

pytestmark = pytest.mark.integration

NAMES = list(parts(LaunchConfig(), Path()))
SEVERAL = (2, 4)
ROUNDING = 1e-11
IN_FLOAT32 = dict.fromkeys(["ppo", "rounded training", "rounded lora"], 2e-4)
"""A step of Adam may divide by next to nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What everyone found, and the states and checkpoints that they left."""
    folder = tmp_path_factory.mktemp("ranks")
    everything(folder)
    for count in SEVERAL:
        ranks.run(count, everything, folder)
    return folder


@functools.cache
def found(folder: Path, count: int, rank: int = 0) -> dict[str, Found]:
    return torch.load(folder / f"{count}-{rank}.pt", weights_only=True)


def difference(one: Found, other: Found) -> float:
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape for name in one), "or the responses are others"
    return max(float((one[name].double() - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_several_processes_do_what_one_does(folder: Path, name: str, strategy: str) -> None:
    """Every one of them ends with all of the results."""
    alone = found(folder, 1)[f"ddp: {name}"]
    for count in [count for count in SEVERAL if name in compared(count, strategy)]:
        for rank in (0, count - 1):
            together = found(folder, count, rank)[f"{strategy}: {name}"]
            assert difference(together, alone) < IN_FLOAT32.get(name, ROUNDING), (count, rank)


@pytest.mark.slow
def test_what_is_compared_has_moved(folder: Path) -> None:
    alone = found(folder, 1)
    for name, family in [
        ("tied embeddings", "gemma3"),
        ("reinforce", "gemma3"),
        ("ppo", "gemma3"),
        ("self-play", "llama"),
    ]:
        before = weights_of(backbone(family)[0])
        assert max(float((alone[f"ddp: {name}"][each] - before[each]).abs().max()) for each in before) > 1e-3, name
    assert bool(alone["ddp: scores"]["log_probs"].any())
    assert bool((alone["ddp: scores"]["kl"] != alone["ddp: rounded scores"]["kl"]).any())


@pytest.mark.slow
def test_scores_are_the_same_bit_by_bit(folder: Path) -> None:
    """Micro-batches are those of one process, and a sum with zeros is exact."""
    for count in SEVERAL:
        for name in ("scores", "rounded scores"):
            alone, together = found(folder, 1)[f"ddp: {name}"], found(folder, count)[f"fsdp: {name}"]
            assert all(torch.equal(alone[each], together[each]) for each in alone)


@pytest.mark.slow
def test_slices_may_rest_on_the_cpu(folder: Path) -> None:
    for count in SEVERAL:
        offloaded = found(folder, count)["offloaded: tied embeddings"]
        assert difference(offloaded, found(folder, 1)["ddp: tied embeddings"]) < ROUNDING


@pytest.mark.slow
def test_each_process_keeps_its_slices_alone(folder: Path) -> None:
    """One after another they are the tensor; what all processes have is written once."""
    state = folder / "4 fsdp" / "state"
    assert sorted(path.name for path in state.iterdir()) == [
        "state.json",
        *(f"tensors-{rank}.safetensors" for rank in range(4)),
    ]
    first, last = (load_file(state / f"tensors-{rank}.safetensors") for rank in (0, 3))
    name = "/trainer/weights/model.model.layers.0.self_attn.q_proj.weight"
    assert first[name].shape == last[name].shape == (4, 16)
    assert any("random" in each for each in first)
    assert not any("random" in each for each in last)
    index = json.loads((state / "state.json").read_text())["tensors"][name]
    assert index["chunks"] == [[f"tensors-{rank}.safetensors", [4 * rank, 0], [4, 16]] for rank in range(4)]


@pytest.mark.slow
def test_pytorchs_own_reader_finds_the_same_tensors(folder: Path) -> None:
    """Its storage for Hugging Face's files knows nothing of our index."""
    state = folder / "4 fsdp" / "state"
    kept = read(state)["trainer"]
    known = [(f"/trainer/weights/{name}", weight) for name, weight in kept["weights"].items()]
    known += [(f"/trainer/optimizer/{i}/exp_avg", each["exp_avg"]) for i, each in enumerate(kept["optimizer"])]
    assert all(isinstance(weight, SavedTensor) for _, weight in known)
    target = {name: torch.empty(weight.shape, dtype=torch.float64) for name, weight in known}
    theirs = {name: each.clone() for name, each in target.items()}
    dcp.load(theirs, storage_reader=dcp.HuggingFaceStorageReader(str(state)), no_dist=True)
    assert all(torch.equal(weight.like(target[name]), theirs[name]) for name, weight in known)
    assert all(bool(each.any()) for each in theirs.values())


@pytest.mark.slow
def test_a_state_is_taken_up_by_any_number_of_processes(folder: Path) -> None:
    """One process's by 2, theirs by 4, and theirs by one again; with slices and without."""
    alone = found(folder, 1)["ddp: fine-tuning"]
    for count in SEVERAL:
        for strategy in ("ddp", "fsdp"):
            assert difference(found(folder, count)[f"{strategy}: taken up"], alone) < ROUNDING
    again = fine_tuning(LaunchConfig(), folder / "4 fsdp" / "state", folder / "again", goes_on=True)
    assert difference(again, alone) < ROUNDING


@pytest.mark.slow
def test_of_what_is_read_a_process_holds_its_slice_alone(tmp_path: Path) -> None:
    ranks.run(2, slicing, tmp_path)


@pytest.mark.slow
def test_nobody_is_given_up_while_the_first_writes_a_checkpoint(tmp_path: Path) -> None:
    ranks.run(2, waiting, tmp_path)
    assert [float((tmp_path / rank).read_text()) for rank in ("0", "1")] == [90 * 60] * 2


@pytest.mark.slow
@pytest.mark.parametrize("part", ["1.0", "ema", "lora"])
def test_what_is_published_is_one_plain_checkpoint(folder: Path, part: str) -> None:
    """Whatever slices there were: the same files, and tied weights once."""
    alone = load_file(folder / "1 ddp" / part / "model.safetensors")
    assert ("lm_head.weight" in alone) == (part != "lora")
    for place in ("2 ddp", "2 fsdp", "4 fsdp"):
        files = sorted(path.name for path in (folder / place / part).iterdir())
        assert files == sorted(path.name for path in (folder / "1 ddp" / part).iterdir())
        assert difference(load_file(folder / place / part / "model.safetensors"), alone) < ROUNDING


def test_turns_are_as_many_for_each_and_every_piece_is_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = list("abcdefg")
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(distributed.shard_work(pieces)))
    assert {len(share) for share in shares} == {3}
    assert sorted(piece for share in shares for piece, is_mine in share if is_mine) == pieces
    assert shares[2] == [("c", True), ("f", True), ("a", False)]


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """As the first of four in a new stage: makes a pass over rows of these lengths, in how many micro-batches."""
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    limits = BatchLimits()

    def some_pass(*lengths: int, tokens: int = 30, what: str = "a step") -> int:
        return limits.in_micro_batches(what, lengths, tokens, torch.device("cpu"), len)

    return some_pass


def test_processes_that_only_repeat_what_others_do_are_warned_of_once(
    four: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    assert four(10, 10, 10, 10, 10, 10) == 2
    four(10, 10, 10, 10, 10, 10, 10)
    assert caplog.messages == [
        "a step over 6 sequences, in micro-batches of at most 30 tokens, has work for 2 of 4 processes at a time; "
        "set execution.tokens_per_micro_batch to 15, or execution.launch.processes to 2"
    ]
    assert four(10, 10, 10, 10, 10, 10, tokens=15) >= 4


def test_smaller_micro_batches_are_no_cure_for_fewer_rows_than_processes(
    four: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    assert four(10, 10, 30) == 2
    assert caplog.messages[0].endswith("has work for 2 of 4 processes at a time; set execution.launch.processes to 2")


def test_no_rows_enough_micro_batches_and_what_is_left_of_an_epoch_are_nothing_to_warn_of(
    four: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    assert four() == 0
    assert four(30, 30, 30, 30) == 4
    assert four(30, 30, 30) == 3
    assert caplog.messages == []
    assert four(30, 30, 30, what="another kind of pass") == 3
    assert len(caplog.messages) == 1


def test_one_of_several_processes_does_not_begin_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    tried: list[int] = []

    def work(at_once: int) -> None:
        tried.append(at_once)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DensePathError, match="process 0 does not hold 8 rows .* set execution.rollout_rows to less"):
        BatchLimits().with_oom_backoff("{} rows", 8, 1, work, "rollout_rows", "one row", "")
    assert tried == [8]
