"""How many processes share the work of a stage, and how they divide the model among them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Config


class Launch(Config):
    """Processes that do a stage together, each with its share of every batch."""

    processes: int = Field(1, ge=1)
    """Processes of the stage: one for each GPU, or on a CPU as many as share its cores."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds: the whole model (ddp), or its share of parameters, gradients and optimizer,
    of the frozen models too (fsdp)."""

    cpu_offload: bool = False
    """With fsdp: parameters and optimizer rest in the CPU's memory, and only what is at work is on the GPU. One process
    alone, which shares nothing out, rests nothing there either."""

    @model_validator(mode="after")
    def _only_where_it_counts(self) -> Self:
        if self.cpu_offload and self.strategy != "fsdp":
            raise ValueError(f"cpu_offload is a setting of strategy=fsdp, and the strategy is {self.strategy}")
        return self
