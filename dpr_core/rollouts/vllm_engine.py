"""The vLLM engine: sampling by a vLLM server, which reloads the policy's weights after each update."""

import logging
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dpr_core import distributed
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError, UsageError
from dpr_core.masking import masked_mean, response_mask
from dpr_core.rollouts.engine import Completion, OnProgress, Sampling, log_probs
from dpr_core.rollouts.vllm_client import ServerFailedError, VllmClient
from dpr_core.rollouts.vllm_server import VllmServer

MAX_RESTARTS = 3
"""Restarts of a failed server within one rollout."""

CHECKED_PROMPTS = 4
"""Prompts of the first request, whose log-probs are compared with the trainer's."""

MAX_LOG_PROB_GAP = 0.1
"""Greatest mean difference of their log-probs, in nats: more than rounding makes, and less than other weights do."""

SHAPE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

logger = logging.getLogger("dense_path")


@dataclass(frozen=True)
class WeightSource:
    """The policy as the engine sees it."""

    save: Callable[[Path], None]
    """Write the current weights as a checkpoint."""
    log_probs: Callable[[Sequence[TokenSequence], float], Tensor]
    """(B, T) log-probs under the current weights, at a temperature."""
    shape: dict[str, object]
    """The dimensions of the network; see `shape_of`."""
    longest: int
    """Tokens of the longest sequence that will be requested."""


class VllmEngine:
    """Samples from a vLLM server; not bitwise reproducible, since the server batches requests as they arrive."""

    def __init__(self, server: VllmServer, policy: WeightSource, folder: Path, rows: int, seconds: float) -> None:
        self.server = server
        self.policy = policy
        self.folder = folder
        self.rows = rows
        self.seconds = seconds
        self.version = 0
        self._run = secrets.token_hex(4)
        self._weights: Path | None = None
        self._checked = False
        self._closed = False

    def update_weights(self, step: int) -> None:
        """Write a checkpoint of the policy, which the server loads before it samples next."""
        weights = self.folder / f"weights-{step}"
        if weights == self._weights:
            return
        self.policy.save(weights)
        if self._weights is not None and distributed.rank() == 0:
            shutil.rmtree(self._weights, ignore_errors=True)
        self._weights, self.version = weights, step

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: OnProgress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        if not self._checked:
            self._check_log_probs(prompts[:CHECKED_PROMPTS], sampling, seed)
        self._sample(prompts, sampling, seed, completions, on_progress)
        return [completions[row] for row in range(len(prompts))]

    def close(self) -> None:
        self._closed = True
        self.server.close()

    @property
    def _vocabulary(self) -> int:
        return int(str(self.policy.shape["vocab_size"]))

    @property
    def _weights_name(self) -> str:
        """The server's name for the weights of this run and version."""
        return f"{self._run}-{self.version}"

    def _with_restarts(self, work: Callable[[VllmClient, str], None]) -> None:
        """Call `work` with the policy's weights loaded, and again after a restart where the server fails."""
        failure: ServerFailedError | None = None
        for _ in range(MAX_RESTARTS + 1):
            if self._closed:
                raise DensePathError(f"{self.server.name} is not needed any more")
            try:
                work(*self._connect())
                return
            except ServerFailedError as error:
                failure = error
            logger.warning("%s failed (%s); missing responses are sampled again", self.server.name, failure)
            self.server.mark_failed()
        raise DensePathError(
            f"{self.server.name} failed {MAX_RESTARTS + 1} times in one rollout, at last with: {failure}. "
            f"{self.server.log_tail()}"
        )

    def _connect(self) -> tuple[VllmClient, str]:
        """A client of a healthy server with the weights loaded, and the name of its model."""
        if self._weights is None:
            raise DensePathError("update_weights must be called before generate")
        self.server.start(self._weights)
        client = VllmClient(self.server.connection(), self.server.name, self.seconds, self.rows)
        if client.version() == self._weights_name:
            return client, client.model_info().model
        info = client.model_info()
        if info.positions < self.policy.longest:
            raise UsageError(
                f"{self.server.name} takes sequences of {info.positions} tokens, and up to {self.policy.longest} "
                "will be asked for; start it with a larger --max-model-len, or lower max_prompt_tokens or "
                "max_response_tokens"
            )
        if not self.server.managed and (other := shape_differences(self.policy.shape, info.root)):
            raise UsageError(
                f"{self.server.name} serves {info.model} ({info.root}), which is another model than this policy: "
                f"{', '.join(other)} differ; serve the checkpoint that the policy starts from"
            )
        try:
            client.load(self._weights, self._weights_name)
        except ServerFailedError as failure:
            if self.server.managed:
                raise
            raise DensePathError(
                f"{self.server.name}, which serves {info.model} ({info.root}), failed over the policy's weights in "
                f"{self._weights}: {failure}. It must run the policy's architecture and see this folder; it may have "
                "ended"
            ) from None
        return client, info.model

    def _sample(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        completions: dict[int, Completion],
        on_progress: OnProgress | None = None,
    ) -> None:
        """Sample the missing rows. Rank 0 talks to the server; all processes get its completions, or raise its
        error."""

        def keep(row: int, completion: Completion) -> None:
            completions[row] = completion
            done = len(completions)
            if on_progress is not None and (done % self.rows == 0 or done == len(prompts)):
                on_progress(done, len(prompts))

        def sample(client: VllmClient, model: str) -> None:
            rows = [row for row in range(len(prompts)) if row not in completions]
            client.sample(model, prompts, rows, sampling, seed, self._vocabulary, keep)
            if client.version() != self._weights_name:
                raise DensePathError(f"{self.server.name} got other weights during a rollout: give this run its own")

        failure: DensePathError | None = None
        if distributed.rank() == 0:
            try:
                self._with_restarts(sample)
            except DensePathError as error:
                failure = error
        for sampled, failed in distributed.all_gather([(completions, failure)] if distributed.rank() == 0 else []):
            if failed is not None:
                raise failed
            completions.update(sampled)

    def _check_log_probs(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int) -> None:
        """UsageError where the server's log-probs differ from the trainer's."""
        drawn: dict[int, Completion] = {}
        self._sample(prompts, sampling, seed, drawn)
        completions = [drawn[row] for row in range(len(prompts))]
        sequences = [TokenSequence(c.prompt, c.response) for c in completions]
        mask, theirs = response_mask([c.length for c in completions]), log_probs(completions)

        def off(temperature: float) -> Tensor:
            return self.policy.log_probs(sequences, temperature) - theirs

        at_temperature = off(sampling.temperature)
        if sampling.temperature != 1 and masked_mean(off(1.0).square() - at_temperature.square(), mask) < 0:
            raise UsageError(
                f"{self.server.name} gives log-probs at temperature 1 of what it draws at {sampling.temperature:g}; "
                "start it with --logprobs-mode processed_logprobs"
            )
        gap = float(masked_mean(at_temperature.abs(), mask))
        if not gap <= MAX_LOG_PROB_GAP:
            raise UsageError(
                f"{self.server.name} does not compute what this policy does: with its weights, log-probs are {gap:.3g} "
                "nats off on average; serve the checkpoint that the policy starts from, and change nothing by options"
            )
        self._checked = True


def shape_of(config: object) -> dict[str, object]:
    """The dimensions that two networks must share to load each other's weights."""
    return {name: getattr(config, name, None) for name in SHAPE_FIELDS}


def shape_differences(shape: dict[str, object], root: str) -> list[str]:
    """The dimensions in which a checkpoint differs; none where it cannot be read from here."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return []
    other = shape_of(config.get_text_config())
    return [name for name in SHAPE_FIELDS if shape[name] != other[name]]
