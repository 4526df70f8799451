"""How work is done, which is never part of what an artifact is."""

from typing import Literal

from pydantic import Field

from dpr_core.config.base import Config
from dpr_core.config.launch import LaunchConfig

Device = Literal["auto", "cuda"]

CPU_TOKENS = 1024
GPU_TOKENS = 8192


class ExecutionConfig(Config):
    """How the work is done. None of this changes what comes out beyond rounding."""

    device: Device = "auto"
    """`cuda` refuses to begin without a GPU. `auto` takes a GPU where there is one, and else the CPU."""

    tokens_per_micro_batch: int | None = Field(None, ge=1)
    """Tokens, padding included, that go through a network at once; none takes 1024 on a CPU and 8192 on a GPU."""

    packing: bool | None = None
    """Put whole sequences one behind the other into one row, with no padding, in place of a row each. None of them sees
    another. Unset packs with flash attention, and with sdpa on a CPU, where attention goes sequence by sequence; any
    other attention would mask all pairs of tokens in the row."""

    logits_per_chunk: int = Field(2**25, ge=1)
    """Logits (tokens x vocabulary) that exist at once. Where all of a micro-batch fit, training computes them once and
    not again in the backward pass."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    compile: bool = False
    """Have torch.compile fuse what goes element by element in the layers that train and that score, when they first
    run. It takes a C++ compiler, and on a GPU Triton."""

    rollout_rows: int = Field(256, ge=1)
    """Responses that are drawn at once; each needs room for its keys and values."""

    graphs: bool = True
    """On a GPU, replay the steps of a rollout as CUDA graphs: starting their kernels one by one takes longer than the
    kernels. Each is compared with what it is to repeat; where it differs, or none can be made, there are none."""

    threads: int | None = Field(None, ge=1)
    """CPU threads of this stage; none leaves torch's own choice. Of several processes each has so many, or its share of
    the cores."""

    checkpoint_minutes: float | None = Field(10.0, gt=0)
    """A killed run goes on from a state that is at most this old; none keeps no states by the clock."""

    checkpoint_steps: int | None = Field(None, ge=1)
    """Also keep a state after every so many steps: optimizer steps of SFT and of the lab's backbone, iterations of
    REINFORCE, batches of answers, and in self-play batches of responses and optimizer steps alike."""

    skipped_steps: int = Field(3, ge=0)
    """Optimizer steps in a row that may be left out for a loss or gradient that is not finite; then the stage fails."""

    launch: LaunchConfig = LaunchConfig()
    """Processes that share the work."""

    def tokens_at_once(self, on_gpu: bool) -> int:
        """As configured, or what is fast there."""
        return self.tokens_per_micro_batch or default_tokens(on_gpu)


def default_tokens(on_gpu: bool) -> int:
    """What is fast there: a core is busy with few tokens."""
    return GPU_TOKENS if on_gpu else CPU_TOKENS
