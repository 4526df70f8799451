"""How many processes share the work of a stage, and how they divide the model among them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Config


class LaunchConfig(Config):
    """Processes that do a stage together, each with its share of every batch."""

    processes: int = Field(1, ge=1)
    """Processes of the stage, on all machines together: one for each GPU, or on a CPU as many as share its cores."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: the whole model (ddp), or its share of parameters, gradients and optimizer,
    of the frozen models too (fsdp)."""

    cpu_offload: bool = False
    """With fsdp: parameters and optimizer rest in the CPU's memory, and only what is at work is on the GPU. One process
    alone, which shares nothing out, rests nothing there either."""

    machines: int = Field(1, ge=1)
    """Machines that share them out equally. On every one but the first runs `dpr join`."""

    main_address: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    """Host name or IP address by which the other machines reach the first one."""

    main_port: int = Field(29555, ge=1, le=65535)
    """Where the first machine listens for the others."""

    join_minutes: float = Field(10, gt=0)
    """How long each stage waits for the other machines."""

    @property
    def on_each_machine(self) -> int:
        return self.processes // self.machines

    @model_validator(mode="after")
    def _same_share(self) -> Self:
        if self.processes % self.machines:
            raise ValueError(f"{self.processes} processes cannot be shared out equally over {self.machines} machines")
        return self

    @model_validator(mode="after")
    def _only_where_it_counts(self) -> Self:
        if self.cpu_offload and self.strategy != "fsdp":
            raise ValueError(f"cpu_offload is a setting of strategy=fsdp, and the strategy is {self.strategy}")
        return self
