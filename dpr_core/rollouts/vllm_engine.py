"""Sampling by a vLLM server, which gets the policy's weights whenever they have changed."""

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
from dpr_core.rollouts.engine import Completion, Progress, Sampling, log_probs
from dpr_core.rollouts.vllm_client import Died, VllmClient
from dpr_core.rollouts.vllm_server import VllmServer

DEATHS = 3
"""So often a server may die in one rollout and be started again."""

RECOGNISED_BY = 4
"""Prompts that are answered first, to see that the server computes what the trainer does."""

RECOGNISED_WITHIN = 0.1
"""Nats, on average over their tokens: more than rounding makes, and less than other weights do."""

SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

logger = logging.getLogger("dense_path")


@dataclass(frozen=True)
class WeightSource:
    """What the engine needs of the policy."""

    save: Callable[[Path], None]
    """Write its weights as they are now."""
    log_probs: Callable[[Sequence[TokenSequence]], Tensor]
    """(B, T) under its weights as they are now."""
    shape: dict[str, object]
    """See `shape_of`."""
    longest: int
    """Tokens of the longest sequence that will be asked for."""


class VllmEngine:
    """The same seed does not give the same responses bit by bit: a server batches as requests come in."""

    def __init__(self, server: VllmServer, policy: WeightSource, folder: Path, rows: int, seconds: float) -> None:
        self.server = server
        self.policy = policy
        self.folder = folder
        self.rows = rows
        self.seconds = seconds
        self.version = 0
        self._run = secrets.token_hex(4)
        self._weights: Path | None = None
        self._recognised = False
        self._closed = False

    def refresh(self, version: int) -> None:
        weights = self.folder / f"weights-{version}"
        if weights == self._weights:
            return
        self.policy.save(weights)
        if self._weights is not None and distributed.rank() == 0:
            shutil.rmtree(self._weights, ignore_errors=True)
        self._weights, self.version = weights, version

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: Progress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        if not self._recognised:
            self._recognise(prompts[:RECOGNISED_BY], sampling, seed)
        self._draw(prompts, sampling, seed, completions, on_progress)
        return [completions[row] for row in range(len(prompts))]

    def close(self) -> None:
        self._closed = True
        self.server.close()

    @property
    def _vocabulary(self) -> int:
        return int(str(self.policy.shape["vocab_size"]))

    @property
    def _name(self) -> str:
        """What the server shall call the weights of this version and of no other run."""
        return f"{self._run}-{self.version}"

    def _on_a_living_server(self, work: Callable[[VllmClient, str], None]) -> None:
        """Do it with the policy's weights loaded, again where the server dies over it."""
        died: Died | None = None
        for _ in range(DEATHS + 1):
            if self._closed:
                raise DensePathError(f"{self.server.name} is not needed any more")
            try:
                work(*self._ready())
                return
            except Died as error:
                died = error
            logger.warning("%s failed (%s); what it had not drawn is drawn again", self.server.name, died)
            self.server.dead()
        raise DensePathError(
            f"{self.server.name} failed {DEATHS + 1} times in one rollout, at last with: {died}. "
            f"{self.server.last_lines()}"
        )

    def _ready(self) -> tuple[VllmClient, str]:
        """A server that answers and has the weights, and what it calls its model."""
        if self._weights is None:
            raise DensePathError("an engine must be told of its policy before it draws")
        self.server.start(self._weights)
        client = VllmClient(self.server.connection(), self.server.name, self.seconds, self.rows)
        if client.version() == self._name:
            return client, client.served().model
        served = client.served()
        if served.positions < self.policy.longest:
            raise UsageError(
                f"{self.server.name} takes sequences of {served.positions} tokens, and up to {self.policy.longest} "
                "will be asked for; start it with a larger --max-model-len, or lower max_prompt_tokens or "
                "max_response_tokens"
            )
        if not self.server.own and (other := differences(self.policy.shape, served.root)):
            raise UsageError(
                f"{self.server.name} serves {served.model} ({served.root}), which is another model than this policy: "
                f"{', '.join(other)} differ; serve the checkpoint that the policy starts from"
            )
        try:
            client.load(self._weights, self._name)
        except Died as died:
            if self.server.own:
                raise
            raise DensePathError(
                f"{self.server.name}, which serves {served.model} ({served.root}), failed over the policy's weights in "
                f"{self._weights}: {died}. It must run the policy's architecture and see this folder; it may have ended"
            ) from None
        return client, served.model

    def _draw(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        completions: dict[int, Completion],
        on_progress: Progress | None = None,
    ) -> None:
        """Add the rows that are missing. Of several processes the first talks to the server, and all get what it got,
        or fail as it did."""

        def keep(row: int, completion: Completion) -> None:
            completions[row] = completion
            done = len(completions)
            if on_progress is not None and (done % self.rows == 0 or done == len(prompts)):
                on_progress(done, len(prompts))

        def draw(client: VllmClient, model: str) -> None:
            rows = [row for row in range(len(prompts)) if row not in completions]
            client.draw(model, prompts, rows, sampling, seed, self._vocabulary, keep)
            if client.version() != self._name:
                raise DensePathError(f"{self.server.name} got other weights during a rollout: give this run its own")

        failure: DensePathError | None = None
        if distributed.rank() == 0:
            try:
                self._on_a_living_server(draw)
            except DensePathError as error:
                failure = error
        for found, failed in distributed.all_gather([(completions, failure)] if distributed.rank() == 0 else []):
            if failed is not None:
                raise failed
            completions.update(found)

    def _recognise(self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int) -> None:
        """Refuse a server that does not compute what the trainer does."""
        drawn: dict[int, Completion] = {}
        self._draw(prompts, sampling, seed, drawn)
        completions = [drawn[row] for row in range(len(prompts))]
        ours = self.policy.log_probs([TokenSequence(c.prompt, c.response) for c in completions])
        gap = float(masked_mean((ours - log_probs(completions)).abs(), response_mask([c.length for c in completions])))
        if not gap <= RECOGNISED_WITHIN:
            raise UsageError(
                f"{self.server.name} does not compute what this policy does: with its weights, log-probs are {gap:.3g} "
                "nats off on average; serve the checkpoint that the policy starts from, and change nothing by options"
            )
        self._recognised = True


def shape_of(config: object) -> dict[str, object]:
    """What two networks must share to take each other's weights."""
    return {name: getattr(config, name, None) for name in SHAPE}


def differences(shape: dict[str, object], root: str) -> list[str]:
    """In what a checkpoint differs from that shape; nothing where it cannot be read from here."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return []
    served = shape_of(config.get_text_config())
    return [name for name in SHAPE if shape[name] != served[name]]
