"""One optimizer step over a global batch: gradient accumulation over micro-batches, data-parallel or sharded."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dpr_core import distributed
from dpr_core.algorithms.base import LossInputs, Objective
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.batching import Batch, collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.masking import response_mask
from dpr_core.models.oom import BatchLimits
from dpr_core.models.policy import Wanted, compile_layers
from dpr_core.models.sharding import is_sharded, networks, shard_like, to_device_or_shard, unshard
from dpr_core.recorder import InMemoryRecorder, Recorder
from dpr_core.state import State
from dpr_core.training.torch_runtime import decorrelate_ranks, random_state, set_random_state

logger = logging.getLogger("dense_path")

NO_INPUTS = LossInputs()


class Trainer:
    """Trains a module that scores the response tokens of a batch: a policy, or a critic."""

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerConfig,
        total_steps: int,
        execution: ExecutionConfig,
        name: str = "train",
        recorder: Recorder | None = None,
    ) -> None:
        # It takes as long to import as all else here, torch aside.
        from accelerate import Accelerator

        distributed.state()
        # Activations are the module's own business; Accelerate must not change them for the trained model alone.
        self.accelerator = Accelerator(mixed_precision="no")
        self.settings = settings
        self.execution = execution
        self.name = name
        self.recorder = recorder or InMemoryRecorder()
        self.steps_done = 0
        self.skipped_in_a_row = 0
        if execution.gradient_checkpointing:
            for network in networks(module):
                network.gradient_checkpointing_enable()
        to_device_or_shard(module, execution.launch)
        if execution.compile:
            compile_layers(module)
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = _optimizer(parameters, settings, execution)
        self.optimizer = self.accelerator.prepare(optimizer)
        # A sharded module exchanges gradients by itself, of each micro-batch: adding them up first takes all of them.
        self.module = module if is_sharded(module) else self.accelerator.prepare(module)
        self.packed = bool(getattr(module, "packed", False))
        self.limits: BatchLimits = getattr(module, "limits", None) or BatchLimits()
        self.schedule = LambdaLR(optimizer, lambda step: learning_rate_share(step, total_steps, settings))
        decorrelate_ranks()

    def step(
        self,
        sequences: Sequence[TokenSequence],
        objective: Objective,
        inputs: LossInputs = NO_INPUTS,
        temperature: float | None = None,
        entropy: bool = False,
        wanted: Callable[[Batch], Wanted] | None = None,
    ) -> dict[str, float]:
        """Minimise the objective over `sequences`; `inputs` are (B, T). `temperature` is that of a policy's scores.
        With `entropy` these hold entropies, too; with `wanted` they are the policy's expectations of that.

        The loss is the sum over the global batch over its own count, so neither micro-batches, padding nor the number
        of processes change it. Every process holds the whole batch and works on its share.
        """
        started = time.perf_counter()
        self.module.train()
        lengths = [len(s.response) for s in sequences]
        options: dict[str, Any] = {} if temperature is None else {"temperature": temperature, "entropy": entropy}
        if wanted is not None:
            options["wanted"] = wanted
        count = sum(lengths) if objective.loss_reduction == "token" else len(sequences)
        totals = self.limits.in_micro_batches(
            "an optimizer step",
            [len(s) for s in sequences],
            self.execution.tokens_per_micro_batch,
            self.accelerator.device,
            lambda batches: self._backward(batches, sequences, objective, inputs, count, options),
            self.packed,
        )
        norm = self._clip()
        sums = distributed.all_reduce_sum(torch.tensor(list(totals.values()), dtype=torch.float64)).tolist()
        totals = dict(zip(totals, sums, strict=True))
        loss_value = totals.pop("loss") / count
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            return self._skip(sequences, inputs, loss_value, norm)
        self.skipped_in_a_row = 0
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        tokens = sum(len(s) for s in sequences)
        metrics = {
            "loss": loss_value,
            "gradient_norm": norm,
            "learning_rate": float(learning_rate),
            "tokens_per_second": tokens / (time.perf_counter() - started),
            **{name: total / sum(lengths) for name, total in totals.items()},
        }
        return {f"{self.name}/{name}": value for name, value in metrics.items()}

    def _backward(
        self,
        batches: list[list[int]],
        sequences: Sequence[TokenSequence],
        objective: Objective,
        inputs: LossInputs,
        count: int,
        options: dict[str, Any],
    ) -> dict[str, float]:
        """Add up the gradients of this process's micro-batches; returns the sums of the objective's terms."""
        self.optimizer.zero_grad(set_to_none=True)
        mask = response_mask([len(s.response) for s in sequences])
        parts = list(distributed.shard_work(batches))
        totals: dict[str, float] = {}
        for i, (rows, is_mine) in enumerate(parts):
            batch = collate([sequences[row] for row in rows], self.packed).to(self.accelerator.device)
            flat = _flat(inputs, mask, rows, batch.targets.device)
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                terms = objective(self.module(batch, **options), flat)
                # Processes average their gradients; the sum over processes is wanted.
                loss = is_mine * terms["loss"].sum() / count * distributed.world_size()
                self.accelerator.backward(loss)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + is_mine * float(term.detach().sum())
        return totals

    def _clip(self) -> float:
        """Scale the gradients down to the configured norm, if there is one; returns the norm that they had."""
        bound = self.settings.max_gradient_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), bound)
        return float(unshard(norm))

    def _skip(
        self, sequences: Sequence[TokenSequence], inputs: LossInputs, loss: float, norm: float
    ) -> dict[str, float]:
        """Leave the weights as they are and the batch beside the run; fail where this happens again and again."""
        self.optimizer.zero_grad(set_to_none=True)
        step = self.steps_done + 1
        where = f"not_finite/{self.name}-{step:06d}.json"
        seed = getattr(self.settings, "seed", None)
        self.recorder.table(where, [{"seed": seed, "step": step, **row} for row in _rows(sequences, inputs)])
        self.skipped_in_a_row += 1
        message = (
            f"optimizer step {step}: {self.name}/loss is {loss}, the gradient norm {norm}; the step was not applied"
        )
        if self.skipped_in_a_row > self.execution.skipped_steps:
            raise DensePathError(
                f"{message}, after {self.skipped_in_a_row - 1} others that were not. The batch is in {where} of this "
                "run: look at it, or lower the learning rate"
            )
        logger.warning("%s; its batch is in %s of this run", message, where)
        # Without gradients this changes nothing; the schedule asks for it.
        self.optimizer.step()
        self.schedule.step()
        self.steps_done += 1
        return {f"{self.name}/loss": loss, f"{self.name}/gradient_norm": norm, f"{self.name}/skipped": 1.0}

    def state(self) -> State:
        """Weights, optimizer, schedule and the random numbers of each process."""
        optimizer = self.optimizer.state
        return {
            "steps_done": self.steps_done,
            "skipped_in_a_row": self.skipped_in_a_row,
            "weights": {name: p.detach() for name, p in self._trained()},
            "optimizer": [dict(optimizer.get(p, {})) for _, p in self._trained()],
            "schedule": {name: v for name, v in self.schedule.state_dict().items() if name != "lr_lambdas"},
            "random": distributed.all_gather([random_state()]),
        }

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.steps_done = state["steps_done"]
        self.skipped_in_a_row = state["skipped_in_a_row"]
        for name, parameter in self._trained():
            parameter.copy_(shard_like(state["weights"][name], parameter))
        groups = self.optimizer.state_dict()["param_groups"]
        kept = {
            i: {name: shard_like(value, p) if value.shape == p.shape else value for name, value in each.items()}
            for i, ((_, p), each) in enumerate(zip(self._trained(), state["optimizer"], strict=True))
            if each
        }
        self.optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self.schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None]})
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        set_random_state(state["random"])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        module = self.accelerator.unwrap_model(self.module)
        return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _optimizer(
    parameters: list[nn.Parameter], settings: OptimizerConfig, execution: ExecutionConfig
) -> torch.optim.Optimizer:
    # Over all weights at once (foreach) it would take room for the gradients once more.
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=settings.learning_rate, foreach=False)
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.adam_betas,
        weight_decay=settings.weight_decay,
        fused=execution.fused_adam or parameters[0].device.type == "cpu",
        foreach=False,
    )


def learning_rate_share(step: int, total_steps: int, settings: OptimizerConfig) -> float:
    """Linear warm-up from 0, then decay: the share of the peak at which step number `step` (from 0) is taken."""
    warmup = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    decay = 1 - progress if settings.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    final = settings.final_learning_rate_share
    return final + (1 - final) * decay


def _flat(inputs: LossInputs, mask: Tensor, rows: list[int], device: torch.device) -> LossInputs:
    """(B, T) inputs of some rows as (N,), in the order in which a batch of these rows lists its targets."""
    return inputs.map(lambda values: values[rows][mask[rows]].to(device))


def _rows(sequences: Sequence[TokenSequence], inputs: LossInputs) -> list[dict[str, Any]]:
    """A batch as a table: the ids of every sequence, and the loss inputs of its response tokens."""
    given = {name: values for name, values in inputs._asdict().items() if values is not None}
    return [
        {
            "prompt": list(s.prompt),
            "response": list(s.response),
            **{name: values[row, : len(s.response)].tolist() for name, values in given.items()},
        }
        for row, s in enumerate(sequences)
    ]
