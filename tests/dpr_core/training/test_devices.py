import pytest
import torch

from dpr_core.errors import UsageError
from dpr_core.training.devices import refuse_without_gpu


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
