"""The engine that the settings ask for."""

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
from dpr_core.rollouts.engine import FollowingEngine
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.rollouts.overlap import Overlapping
from dpr_core.rollouts.vllm_engine import VllmEngine, WeightSource, shape_of
from dpr_core.rollouts.vllm_server import OwnServer, RunningServer, VllmServer, python_of


@contextmanager
def open_engine(
    settings: Rollouts,
    policy: Policy,
    save: Callable[[Path], None],
    longest: int,
    execution: ExecutionConfig,
    folder: Path,
) -> Iterator[FollowingEngine]:
    """It draws with `policy`, which may learn; `save` writes that as a checkpoint, and `folder` has room for two."""
    if not isinstance(settings, VllmConfig):
        yield InProcessEngine.of(policy, execution)
        return

    def log_probs(sequences: Sequence[TokenSequence]) -> Tensor:
        return score(policy, sequences, execution.tokens_per_micro_batch).log_probs

    if settings.overlap and distributed.world_size() > 1:
        raise UsageError("rollouts.overlap draws and trains at once, which several processes cannot: set one of them")
    folder.mkdir(parents=True, exist_ok=True)
    source = WeightSource(save, log_probs, shape_of(policy.model.config.get_text_config()), longest)
    server = server_for(settings.execution, policy.activations, longest, execution.rollout_rows, folder)
    engine = VllmEngine(server, source, folder, execution.rollout_rows, settings.execution.request_seconds)
    if not settings.overlap:
        with closing(engine):
            yield engine
        return
    # The engine is closed first: that ends a batch which nobody will ask for. And again when the thread has ended: it
    # may have been starting a server.
    with closing(engine), closing(Overlapping(engine)) as overlapping, closing(engine):
        yield overlapping


def server_for(settings: VllmExecutionConfig, dtype: torch.dtype, longest: int, rows: int, folder: Path) -> VllmServer:
    if settings.url is not None:
        return RunningServer(settings)
    options = {
        "served-model-name": "policy",
        "dtype": str(dtype).removeprefix("torch."),
        "max-model-len": longest,
        "max-num-seqs": rows,
        "gpu-memory-utilization": settings.memory_share,
        # Else what a checkpoint says of its favourite sampling would count.
        "generation-config": "vllm",
        "logprobs-mode": "raw_logprobs",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    eager = ["--enforce-eager"] if settings.eager else []
    return OwnServer(python_of(settings), [*words, *eager], folder / "vllm.log", settings.start_seconds)
