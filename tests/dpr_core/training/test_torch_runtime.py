"""Random numbers of several processes, and the check for a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.config.training import ExecutionConfig, LoRAConfig
from dpr_core.errors import UsageError
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy
from dpr_core.training.torch_runtime import (
    decorrelate_ranks,
    random_state,
    refuse_without_gpu,
    set_random_state,
    torch_threads,
)
from tests import ranks
from tests.dpr_core.training.distributed import backbone, trainer_of

Draw = Callable[[int, Callable[[], None]], Tensor]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """The numbers that a process of this rank draws after something."""

    def drawn(rank: int, after: Callable[[], None]) -> Tensor:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        torch.manual_seed(3)
        after()
        return torch.rand(8)

    return drawn


def all_differ(drawn: list[Tensor]) -> bool:
    return len({tuple(each.tolist()) for each in drawn}) == len(drawn)


def test_each_process_draws_numbers_of_its_own_and_the_first_those_of_one_process_alone(draw: Draw) -> None:
    alone = draw(0, lambda: None)
    drawn = [draw(rank, decorrelate_ranks) for rank in range(4)]
    assert drawn[0].equal(alone)
    assert all_differ(drawn)
    assert drawn[2].equal(draw(2, decorrelate_ranks)), "as the seed has them"


def test_a_second_trainer_does_not_bring_them_together_again(draw: Draw) -> None:
    def twice() -> None:
        decorrelate_ranks()
        decorrelate_ranks()

    assert all_differ([draw(rank, twice) for rank in range(4)])


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("now", [1, 2, 4])
def test_those_that_go_on_go_on_and_those_that_are_new_draw_what_nobody_does(draw: Draw, before: int, now: int) -> None:
    states: list[Any] = []

    def keep() -> None:
        decorrelate_ranks()
        states.append(random_state())

    expected = [draw(rank, keep) for rank in range(before)]
    found = [draw(rank, lambda: set_random_state(states)) for rank in range(now)]
    for one, other in zip(found, expected, strict=False):
        assert one.equal(other)
    assert all_differ([*expected, *found[before:]])


def dropping(folder: Path) -> None:
    """Adapters, as the process of this rank made them, and what the dropout of one leaves of ones."""
    torch.manual_seed(0)
    model, _ = backbone()
    add_adapters(model, LoRAConfig(rank=2, targets=("q_proj",), dropout=0.5), seed=0)
    adapter = model.model.layers[0].self_attn.q_proj.lora_A["default"].weight.detach().clone()
    trainer_of(Policy(model), ExecutionConfig())
    left = model.train().model.layers[0].self_attn.q_proj.lora_dropout["default"](torch.ones(64))
    torch.save({"adapter": adapter, "left": left}, folder / f"{distributed.world_size()}-{distributed.rank()}")


@pytest.mark.slow
@pytest.mark.integration
def test_processes_that_share_a_step_drop_different_inputs_of_the_same_adapters(tmp_path: Path) -> None:
    dropping(tmp_path)
    ranks.run(2, dropping, tmp_path)
    alone, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert first["adapter"].equal(alone["adapter"])
    assert second["adapter"].equal(alone["adapter"])
    assert first["left"].equal(alone["left"])
    assert not second["left"].equal(alone["left"])
    assert set(second["left"].tolist()) == {0.0, 2.0}


def said(monkeypatch: pytest.MonkeyPatch, version: str, cuda: str | None, hip: str | None = None) -> str:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    with pytest.raises(UsageError) as caught:
        refuse_without_gpu()
    return str(caught.value)


def test_a_build_for_the_cpu_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    message = said(monkeypatch, "2.13.0+cpu", cuda=None)
    for words in ("torch 2.13.0+cpu is a build for the CPU alone", "https://pytorch.org", "--set device=auto"):
        assert words in message


@pytest.mark.parametrize("build", [("13.0", None), (None, "7.0")])
def test_a_build_for_a_gpu_that_sees_none_points_at_the_driver(
    monkeypatch: pytest.MonkeyPatch, build: tuple[str | None, str | None]
) -> None:
    message = said(monkeypatch, "2.13.0", *build)
    for words in ("sees none", "nvidia-smi", "CUDA_VISIBLE_DEVICES", "--set device=auto"):
        assert words in message


def test_where_there_is_one_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refuse_without_gpu()


@pytest.mark.parametrize(
    ("threads", "omp", "cores", "expected"),
    [(None, None, 3, 3), (None, None, 16, 8), (None, "8", 3, 8), (5, None, 3, 5), (5, "8", 3, 5)],
)
def test_threads_are_those_asked_for_or_else_the_cores_that_there_are(
    threads: int | None, omp: str | None, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond torch's own choice, here 8, there are none more."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setattr("dpr_core.training.torch_runtime.usable_cores", lambda: cores)
    torch.set_num_threads(8)
    try:
        with torch_threads(threads):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)
