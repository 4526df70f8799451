"""GPUs: how much they hold, and how fast they are at most."""

import difflib
from dataclasses import dataclass

from dpr_core.errors import UsageError

AS_OF = "2025-06"
"""What the makers had published by then, to the best of our knowledge: it was not compared with their data sheets."""

RESERVED = 0.1
"""Share of a GPU's memory for its context, the kernels' own space and the allocator's fragments."""


@dataclass(frozen=True)
class Gpu:
    """Peaks are for dense matrices; float32 is without the tensor cores."""

    name: str
    gigabytes: float
    """Of 2^30 bytes."""
    bfloat16_teraflops: float
    float32_teraflops: float
    gigabytes_per_second: float
    """Of 10^9 bytes, to and from memory."""

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.gigabytes * 2**30

    @property
    def usable(self) -> float:
        """Bytes that a stage can have."""
        return self.memory * (1 - RESERVED)

    def teraflops(self, dtype: str) -> float:
        return self.bfloat16_teraflops if dtype == "bfloat16" else self.float32_teraflops

    def head_teraflops(self, dtype: str) -> float:
        """Under bfloat16 the head's products are rounded to TensorFloat-32, at half the speed of bfloat16."""
        return self.bfloat16_teraflops / 2 if dtype == "bfloat16" else self.float32_teraflops


GPUS: dict[str, Gpu] = {
    "h200": Gpu("H200 SXM", 141, 989, 67, 4800),
    "h100": Gpu("H100 SXM", 80, 989, 67, 3350),
    "h100-pcie": Gpu("H100 PCIe", 80, 756, 51, 2000),
    "a100": Gpu("A100 SXM 80 GB", 80, 312, 19.5, 2039),
    "a100-40": Gpu("A100 SXM 40 GB", 40, 312, 19.5, 1555),
    "l40s": Gpu("L40S", 48, 362, 91.6, 864),
    "a10": Gpu("A10", 24, 125, 31.2, 600),
    "l4": Gpu("L4", 24, 121, 30.3, 300),
    "4090": Gpu("RTX 4090", 24, 165, 82.6, 1008),
}


def gpu_named(name: str) -> Gpu:
    if (found := GPUS.get(name.lower())) is not None:
        return found
    near = difflib.get_close_matches(name.lower(), GPUS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"there is no GPU {name!r} in the table; {hint}GPUs: {', '.join(GPUS)}")
