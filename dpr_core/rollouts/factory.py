"""Construction of the engine that the settings name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.rollouts import Rollouts, VllmConfig, VllmExecutionConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.engine import UpdatableEngine
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.rollouts.overlap import OverlappedEngine
from dpr_core.rollouts.vllm_engine import VllmEngine, WeightSource, shape_of
from dpr_core.rollouts.vllm_server import ExternalServer, ManagedServer, VllmServer, python_interpreter


@contextmanager
def open_engine(
    settings: Rollouts,
    policy: Policy,
    save: Callable[[Path], None],
    longest: int,
    execution: ExecutionConfig,
    folder: Path,
) -> Iterator[UpdatableEngine]:
    """An engine that samples from `policy`; `save` writes it as a checkpoint, and `folder` has room for two of them."""
    if not isinstance(settings, VllmConfig):
        yield InProcessEngine.of(policy, execution)
        return

    def log_probs(sequences: Sequence[TokenSequence], temperature: float) -> Tensor:
        return score(policy, sequences, execution.tokens_per_micro_batch, temperature=temperature).log_probs

    if settings.overlap and distributed.world_size() > 1:
        raise UsageError("rollouts.overlap draws and trains at once, which several processes cannot: set one of them")
    folder.mkdir(parents=True, exist_ok=True)
    source = WeightSource(save, log_probs, shape_of(policy.model.config.get_text_config()), longest)
    server = open_server(settings.execution, policy.activations, longest, execution.rollout_rows, folder)
    engine = VllmEngine(server, source, folder, execution.rollout_rows, settings.execution.request_seconds)
    if not settings.overlap:
        with closing(engine):
            yield engine
        return
    # Closing the engine first ends a pending batch. It is closed again after the thread has ended, which may have been
    # starting a server.
    with closing(engine), closing(OverlappedEngine(engine)) as overlapping, closing(engine):
        yield overlapping


def open_server(settings: VllmExecutionConfig, dtype: torch.dtype, longest: int, rows: int, folder: Path) -> VllmServer:
    """The server at the configured URL, or one that the stage starts itself."""
    if settings.url is not None:
        return ExternalServer(settings)
    options = {
        "served-model-name": "policy",
        "dtype": str(dtype).removeprefix("torch."),
        "max-model-len": longest,
        "max-num-seqs": rows,
        "gpu-memory-utilization": settings.memory_share,
        # Without this, sampling defaults of a checkpoint's generation_config.json would apply.
        "generation-config": "vllm",
        # At the temperature that draws: what is learned from it is weighted by the policy that drew it.
        "logprobs-mode": "processed_logprobs",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    eager = ["--enforce-eager"] if settings.eager else []
    return ManagedServer(python_interpreter(settings), [*words, *eager], folder / "vllm.log", settings.start_seconds)
