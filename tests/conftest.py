"""What many tests need: one CPU thread, networks small enough to check by hand, and a server in place of a model's."""

import copy
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dpr_core.config.model import Family, LabBackboneConfig
from dpr_core.lab.backbone import CLASSES, untrained
from tests.loopback import KEY, Loopback, serving

torch.set_num_threads(1)

TinyModel = Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]
ToyModel = Callable[..., PreTrainedModel]


def _spread(model: PreTrainedModel, seed: int, deviation: float) -> PreTrainedModel:
    """Fresh weights give nearly uniform policies, in which most mistakes hide; these are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, deviation, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.eval()
    return model


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@pytest.fixture
def hang_limit() -> Iterator[None]:
    """Half a minute, after which a test that waits for a pipe or reads a device without end fails."""

    def fail(*_: object) -> None:
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def tiny() -> TinyModel:
    """`tiny(family, seed=0, **config_changes)` -> a two-layer model with random weights, and its tokenizer."""

    def build(
        family: Family = "llama", *, seed: int = 0, deviation: float = 0.3, **changes: Any
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = untrained(LabBackboneConfig(family=family, width=16, layers=2, heads=2, feed_forward=32))
        if changes:
            config = copy.deepcopy(model.config)
            for name, value in changes.items():
                setattr(config, name, value)
            model = CLASSES[family][1](config)
        return _spread(model, seed, deviation), tokenizer

    return build


@pytest.fixture
def toy() -> ToyModel:
    """`toy(seed=0)` -> a one-layer model over 5 tokens, of which 0 ends a response: all responses can be enumerated."""

    def build(seed: int = 0, deviation: float = 0.5) -> PreTrainedModel:
        config = LlamaConfig(
            vocab_size=5,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        return _spread(LlamaForCausalLM(config), seed, deviation)

    return build


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A server that speaks the OpenAI API and calls everything a tie, unless the test sets its `answer`."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server
