"""Whether there is a GPU, which is better known before the work than by how slow it is."""

import torch

from dpr_core.errors import UsageError


def refuse_without_gpu() -> None:
    """Raise if torch sees none: with a build for the CPU alone, for want of a driver, or because there is none."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda or torch.version.hip:
        reason = "sees none: look at `nvidia-smi`, the driver's version and CUDA_VISIBLE_DEVICES"
    else:
        reason = "is a build for the CPU alone: install one for your GPU (https://pytorch.org/get-started)"
    raise UsageError(
        f"a GPU is asked for (device=cuda), but torch {torch.__version__} {reason}; or take what there is: "
        "--set device=auto, or for a single stage --set execution.device=auto"
    )
