"""Steps that are captured once and replayed. Without a GPU, torch's tracer captures: it records operations on tensors
where they are, as a graph does, and refuses to ask for a number that is in one."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, get_args

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from dpr_core.config.model import Family
from dpr_core.rollouts import cuda_graphs, in_process
from dpr_core.rollouts.cuda_graphs import GraphCapture, GraphedDecoder, Work
from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.in_process import ContrastiveReference, InProcessEngine
from dpr_core.rollouts.kv_cache import Decoder

PROMPTS = [tuple(30 + (7 * i + 3 * j) % 60 for j in range(1 + i % 9)) for i in range(24)]
SAMPLING = Sampling(1.0, 24, 35)
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


class Tracer:
    """Captures with torch's tracer, and counts."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        traced = make_fx(work)()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            traced()

        return replay


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Tracer:
    """Steps are replayed from what it captured, with columns in multiples of 16."""
    tracer = Tracer()
    monkeypatch.setattr(cuda_graphs, "COLUMNS", 16)
    monkeypatch.setattr(
        in_process,
        "with_cuda_graphs",
        lambda readers, _, give_up: [GraphedDecoder(each, tracer, give_up) for each in readers],
    )
    return tracer


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [(c.prompt, c.response) for c in found] == [(c.prompt, c.response) for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours.log_probs) == pytest.approx(theirs.log_probs, abs=1e-4)


@pytest.mark.parametrize(("family", "rows"), [("llama", 1), *((family, 6) for family in get_args(Family))])
def test_replayed_steps_draw_what_steps_draw(
    family: Family, rows: int, tiny: Callable[..., Any], traced: Tracer
) -> None:
    model = tiny(family, **SLIDING.get(family, {}))[0]
    expected = InProcessEngine(model, rows, graphs=False).generate(PROMPTS, SAMPLING, seed=1)
    assert traced.captured == 0
    assert_same(InProcessEngine(model, rows, graphs=True).generate(PROMPTS, SAMPLING, seed=1), expected)
    assert traced.replayed > 5 * traced.captured > 0


@pytest.mark.slow
def test_two_models_are_replayed_side_by_side(tiny: Callable[..., Any], traced: Tracer) -> None:
    model, reference = (tiny("llama", seed=seed)[0] for seed in (0, 3))
    contrast = ContrastiveReference(reference, 0.3)
    expected = InProcessEngine(model, 4, contrast=contrast, graphs=False).generate(PROMPTS, SAMPLING, seed=1)
    assert_same(InProcessEngine(model, 4, contrast=contrast, graphs=True).generate(PROMPTS, SAMPLING, seed=1), expected)
    assert traced.replayed > 0


@pytest.mark.slow
def test_replayed_steps_read_the_weights_as_they_are_now(tiny: Callable[..., Any], traced: Tracer) -> None:
    """Under bfloat16 the rounding of other columns may turn a row into another one, but not at once."""
    model = tiny("llama")[0]
    plain, replaying = (InProcessEngine(model, 4, torch.bfloat16, graphs=graphs) for graphs in (False, True))
    before = plain.generate(PROMPTS, SAMPLING, seed=1)
    assert alike(replaying.generate(PROMPTS, SAMPLING, seed=1), before) > len(PROMPTS) / 2
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    after, found = (engine.generate(PROMPTS, SAMPLING, seed=1) for engine in (plain, replaying))
    assert alike(found, after) > len(PROMPTS) / 2 > alike(found, before)
    assert traced.replayed > 0


def alike(found: list[Completion], expected: list[Completion]) -> int:
    """Rows that begin alike."""
    return sum(a.response[:4] == b.response[:4] for a, b in zip(found, expected, strict=True))


def test_rows_and_columns_are_filled_up_to_few_shapes(toy: Callable[..., Any]) -> None:
    replaying = GraphedDecoder(Decoder(toy(), slots=12, columns=300), lambda work: work, lambda: None)
    assert replaying._padded([(6, 129), (5, 40)]) == ((6, 256), (6, 128))
    assert replaying._padded([(5, 257)]) == ((6, 300),)
    assert replaying._padded([(3, 128)]) == ((3, 128),)
    assert replaying._padded([(2, 1)]) == ((2, 128),)
    assert replaying._padded([(1, 1)]) == ((1, 128),)


@pytest.mark.parametrize("problem", ["refuses", "differs"])
def test_what_cannot_be_captured_is_done_without_and_told_once(
    problem: str, tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(work: Work) -> Work:
        if problem == "refuses":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        def differently() -> None:
            replayed[-1].logits_out[0] += 0.2 * replayed[-1].logits_out.std()
            slots = replayed[-1].decoder.slots
            for keys, _ in slots.layers.values():
                keys.flatten(0, 2)[slots.places] += 1

        return differently

    replayed: list[GraphedDecoder] = []
    monkeypatch.setattr(
        in_process,
        "with_cuda_graphs",
        lambda readers, _, give_up: replayed.append(GraphedDecoder(readers[0], capture, give_up)) or replayed[-1:],
    )
    model = tiny("llama")[0]
    expected = InProcessEngine(model, rows=2, graphs=False).generate(PROMPTS, SAMPLING, seed=1)
    engine = InProcessEngine(model, rows=2, graphs=True)
    for _ in range(2):
        assert_same(engine.generate(PROMPTS, SAMPLING, seed=1), expected)
    (told,) = caplog.messages
    assert told.startswith("rollouts run without CUDA graphs, more slowly: ")
    assert ("operation not permitted" in told) == (problem == "refuses")
    assert "and more" not in told


def test_too_little_memory_for_a_graph_is_too_little_memory(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer rows are drawn at once, as with any other step."""
    tried: list[int] = []

    def capture(work: Work) -> Work:
        tried.append(1)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work

    monkeypatch.setattr(
        in_process, "with_cuda_graphs", lambda readers, _, give_up: [GraphedDecoder(readers[0], capture, give_up)]
    )
    model = tiny("llama")[0]
    expected = InProcessEngine(model, graphs=False).generate(PROMPTS, SAMPLING, seed=1)
    assert_same(InProcessEngine(model, rows=24, graphs=True).generate(PROMPTS, SAMPLING, seed=1), expected)
    assert len(tried) > 1


class Torch:
    """What torch.cuda says of graphs, as far as it is needed: memory may be shared with a graph that is there, and a
    capture that fails does not take its stream back."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stream = "usual"
        self.left: set[int] = set()
        names = count()

        class CUDAGraph:
            of = -1

            def pool(self) -> int:
                return self.of

            def replay(self) -> None: ...

        @contextmanager
        def stream(other: str) -> Iterator[None]:
            before, self.stream = self.stream, other
            try:
                yield
            finally:
                self.stream = before

        @contextmanager
        def graph(made: Any, pool: int, capture_error_mode: str = "global") -> Iterator[None]:
            assert pool not in self.left, "use_count > 0 INTERNAL ASSERT FAILED"
            self.stream = "capturing"
            yield
            self.stream, made.of = "usual", pool
            weakref.finalize(made, self.left.add, pool)

        for name, value in {
            "CUDAGraph": CUDAGraph,
            "graph": graph,
            "stream": stream,
            "current_stream": lambda: self.stream,
            "graph_pool_handle": lambda: next(names),
        }.items():
            patch.setattr(f"torch.cuda.{name}", value)


def test_graphs_share_memory_until_all_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the slots have grown."""
    torch_cuda, capture = Torch(monkeypatch), GraphCapture()
    held: list[Any] = [capture(lambda: None) for _ in range(3)]
    assert {replay.__self__.pool() for replay in held} == {0}
    held.clear()
    assert torch_cuda.left == {0}
    held.append(capture(lambda: None))
    assert held[0].__self__.pool() == 1


def test_after_a_capture_that_fails_work_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_cuda, capture = Torch(monkeypatch), GraphCapture()

    def refused() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        capture(refused)
    assert torch_cuda.stream == "usual"


@pytest.mark.gpu
def test_a_gpu_replays_when_the_slots_have_grown(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graphs, "COLUMNS", 8)
    InProcessEngine(tiny("llama")[0].cuda(), 8, graphs=True).generate(PROMPTS, SAMPLING, seed=1)
    assert not caplog.messages


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_replays_what_it_computes(
    dtype: torch.dtype, tiny: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")[0].cuda()
    expected = InProcessEngine(model, 8, dtype, graphs=False).generate(PROMPTS, SAMPLING, seed=1)
    found = InProcessEngine(model, 8, dtype, graphs=True).generate(PROMPTS, SAMPLING, seed=1)
    assert not caplog.messages
    same = sum(ours.response == theirs.response for ours, theirs in zip(found, expected, strict=True))
    assert same > 0.9 * len(PROMPTS)
