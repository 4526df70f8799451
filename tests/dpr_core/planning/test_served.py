"""What a vLLM server needs of a GPU, by hand."""

import pytest

from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.rollouts import InProcessConfig, VllmConfig, VllmExecutionConfig
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.memory import NetworkMemory, VllmServerShare, vllm_server_share

TOY = Architecture("llama", 10, 4, 2, 2, 1, 2, 8, 64, False)
"""Two layers with 144 weights in matrices each, and keys of two numbers; 100 weights are in no layer's matrices."""


def memory(dtype: str) -> NetworkMemory:
    return NetworkMemory(TOY, dtype, "sdpa", ExecutionConfig(rollout_rows=8), 10, 6)


@pytest.mark.parametrize(("dtype", "number"), [("float32", 4), ("bfloat16", 2)])
def test_weights_and_keys_and_values_are_of_the_type_of_the_activations(dtype: str, number: int) -> None:
    found = vllm_server_share(VllmConfig(execution=VllmExecutionConfig(memory_share=0.25)), memory(dtype))
    assert found == VllmServerShare(0.25, weights=number * 388, row=number * 2 * 2 * 2 * 16, rows=8)


def test_there_is_none_in_process_or_elsewhere() -> None:
    elsewhere = VllmConfig(execution=VllmExecutionConfig(url="http://127.0.0.1:8000"))
    assert [vllm_server_share(each, memory("float32")) for each in (InProcessConfig(), elsewhere)] == [None, None]


@pytest.mark.parametrize(
    ("gpu", "fits", "at_once", "share"),
    [(400, False, 0, 0.28), (440, True, 1, 0.25), (600, True, 5, 0.19), (4000, True, 8, 0.03)],
)
def test_what_its_weights_leave_is_for_responses(gpu: float, fits: bool, at_once: int, share: float) -> None:
    server = VllmServerShare(share=0.25, weights=100, row=10, rows=8)
    assert (server.fits(gpu), server.drawn_at_once(gpu), server.least_share(gpu)) == (fits, at_once, share)
