"""Execution settings: devices, micro-batches, memory, checkpoint intervals and processes; never part of a key."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Config

Device = Literal["auto", "cuda"]

CPU_TOKENS = 1024
GPU_TOKENS = 8192

GONE = {"machines": 1, "main_address": None, "main_port": 29555, "join_minutes": 10}
"""Settings of LaunchConfig that there were, with their defaults."""


class LaunchConfig(Config):
    """Processes that do a stage together, each with its share of every batch."""

    processes: int | None = Field(1, ge=1, le=4096)
    """Processes of the stage, on all machines together: one for each GPU, or on a CPU as many as share its cores. None
    takes as many as there are GPUs where the stage is done. Under another launcher, such as torchrun or srun, they are
    as many as that starts."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: the whole model (ddp), or its share of parameters, gradients and optimizer,
    of the frozen models too (fsdp)."""

    cpu_offload: bool = False
    """With fsdp: parameters and optimizer rest in the CPU's memory, and only what is at work is on the GPU. One process
    alone, which shares nothing out, rests nothing there either."""

    engine: Literal["processes", "ray"] = "processes"
    """What starts them: `processes`, torch's agent on this machine; `ray`, Ray Train on the cluster of RAY_ADDRESS."""

    timeout_minutes: float = Field(60, gt=0, le=10_080)
    """How long the processes wait for one of them, such as for the first to write a large checkpoint, before the stage
    fails."""

    fewest: int = Field(1, ge=1, le=4096)
    """With ray: the fewest processes that begin, and that go on where nodes are lost."""

    retries: int = Field(3, ge=0, le=1000)
    """With ray: how often those that are left, or that have come, go on from the last state where one has failed."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether they run on machines of a cluster, and not all on this one."""
        return self.engine == "ray" and self.processes != 1

    @property
    def count(self) -> int:
        """Of the processes, as far as it is known; see `on`."""
        return self.processes or 1

    def on(self, gpus: int) -> Self:
        """With a number of processes, where there are so many GPUs."""
        return self if self.processes else self.model_copy(update={"processes": max(1, gpus)})

    @model_validator(mode="before")
    @classmethod
    def _no_machines_of_its_own(cls, values: Any) -> Any:
        """What was stored while several machines met by themselves says so at its defaults, too."""
        if not isinstance(values, dict):
            return values
        if set_otherwise := [name for name, default in GONE.items() if values.get(name, default) != default]:
            raise ValueError(
                f"{set_otherwise[0]}: machines no longer meet by `dpr join`; set launch.engine=ray and RAY_ADDRESS to "
                "a Ray cluster, or start the stage's processes by torchrun or srun (docs/operations.md)"
            )
        return {name: value for name, value in values.items() if name not in GONE}

    @model_validator(mode="after")
    def _offloads_only_fsdp(self) -> Self:
        if self.cpu_offload and self.strategy != "fsdp":
            raise ValueError(f"cpu_offload is a setting of strategy=fsdp, and the strategy is {self.strategy}")
        return self


class ExecutionConfig(Config):
    """How the work is done. None of this changes what comes out beyond rounding."""

    device: Device = "auto"
    """`cuda` refuses to begin without a GPU. `auto` takes a GPU where there is one, and else the CPU."""

    tokens_per_micro_batch: int | None = Field(None, ge=1, le=2**24)
    """Tokens, padding included, that go through a network at once; none takes 1024 on a CPU and 8192 on a GPU."""

    packing: bool | None = None
    """Put whole sequences one behind the other into one row, with no padding, in place of a row each. None of them sees
    another. Unset packs with sdpa on a CPU, where attention goes sequence by sequence. Flash attention packs where this
    is true, not yet measured on a GPU; any other attention would mask all pairs of tokens in the row."""

    logits_per_chunk: int = Field(2**25, ge=1, le=2**34)
    """Logits (tokens x vocabulary) that exist at once. Where all of a micro-batch fit, training computes them once and
    not again in the backward pass."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    compile: bool = False
    """Have torch.compile fuse what goes element by element in the layers that train and that score, when they first
    run. It takes a C++ compiler, and on a GPU, where it is not yet measured, Triton."""

    tf32_head: bool = False
    """On a GPU, multiply hidden states and head in TensorFloat-32 where activations are bfloat16, and so are rounded
    more coarsely already; else in float32. Not yet measured on a GPU."""

    fused_adam: bool = False
    """On a GPU, have one kernel do AdamW's step in place of several for each weight. Not yet measured on a GPU; a CPU
    always does."""

    rollout_rows: int = Field(256, ge=1, le=2**16)
    """Responses that are drawn at once; each needs room for its keys and values."""

    graphs: bool = False
    """On a GPU, replay the steps of a rollout as CUDA graphs: starting their kernels one by one takes longer than the
    kernels. Each is compared with what it is to repeat; where it differs, or none can be made, there are none. Not yet
    measured on a GPU."""

    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of this stage, and of each of its processes; none takes OMP_NUM_THREADS where it is set, else the
    cores that this process may use (affinity, a container's quota), or its share beside others of the run."""

    checkpoint_minutes: float | None = Field(10.0, gt=0, le=525_600)
    """A killed run goes on from a state that is at most this old; none keeps no states by the clock."""

    checkpoint_steps: int | None = Field(None, ge=1, le=10**9)
    """Also keep a state after every so many steps: optimizer steps of SFT and of the lab's backbone, iterations of
    REINFORCE, batches of answers, and in self-play batches of responses and optimizer steps alike."""

    skipped_steps: int = Field(3, ge=0, le=10**6)
    """Optimizer steps in a row that may be left out for a loss or gradient that is not finite; then the stage fails."""

    timeout_minutes: float | None = Field(None, gt=0, le=525_600)
    """After so long the stage keeps its state and fails; the same command goes on from there. None sets no limit."""

    launch: LaunchConfig = LaunchConfig()
    """Processes that share the work."""

    def tokens_at_once(self, on_gpu: bool) -> int:
        """Tokens of a micro-batch: as configured, or the device's default."""
        return self.tokens_per_micro_batch or default_tokens(on_gpu)


def default_tokens(on_gpu: bool) -> int:
    """The default tokens of a micro-batch: a CPU core is busy with few."""
    return GPU_TOKENS if on_gpu else CPU_TOKENS
