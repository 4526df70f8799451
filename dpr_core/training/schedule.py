"""The schedule of a REINFORCE run: iterations and optimizer steps, rollout requests and mini-batches."""

import math
import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from dpr_core.algorithms import policy_gradient
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.errors import UsageError
from dpr_core.rollouts.engine import Sampling


class RolloutRequest(NamedTuple):
    """The arguments of an engine's `generate` in one iteration."""

    prompts: list[tuple[int, ...]]
    sampling: Sampling
    seed: int


def iterations(prompts: int, config: ReinforceConfig) -> int:
    """As configured, or one pass over the prompts."""
    return config.iterations or max(1, math.ceil(prompts / config.rollout_batch_size))


def steps_per_iteration(config: ReinforceConfig) -> int:
    """Mini-batches of one rollout batch."""
    return math.ceil(config.rollout_batch_size * config.samples_per_prompt / config.batch_size)


def critic_warmup(config: ReinforceConfig) -> int:
    """Iterations at the start in which only the critic is updated."""
    critic = policy_gradient(config.algorithm).critic
    return critic.warmup_iterations if critic else 0


def optimizer_steps(prompts: int, config: ReinforceConfig) -> int:
    """Steps of the policy in the whole run, which its learning rate's schedule spans."""
    total, warmup = iterations(prompts, config), critic_warmup(config)
    if warmup >= total:
        raise UsageError(
            f"the critic's warm-up of {warmup} iterations leaves none of {total} to learn in; "
            "lower algorithm.critic_warmup_iterations or raise iterations"
        )
    return (total - warmup) * steps_per_iteration(config)


def rollout_requests(
    prompts: Sequence[tuple[int, ...]], config: ReinforceConfig, end_token: int
) -> Iterator[RolloutRequest]:
    """Endless, from the first iteration on."""
    sampling = Sampling(config.temperature, config.max_response_tokens, end_token)
    for iteration, batch in zip(count(1), prompt_batches(prompts, config), strict=False):
        repeated = [prompt for prompt in batch for _ in range(config.samples_per_prompt)]
        yield RolloutRequest(repeated, sampling, config.seed * 1_000_003 + iteration)


def prompt_batches(prompts: Sequence[tuple[int, ...]], config: ReinforceConfig) -> Iterator[list[tuple[int, ...]]]:
    """Endless batches of prompts, pass after pass, each pass in a fresh order."""
    rng = random.Random(f"prompts {config.seed}")
    queue: list[tuple[int, ...]] = []
    while True:
        while len(queue) < config.rollout_batch_size:
            shuffled = list(prompts)
            rng.shuffle(shuffled)
            queue += shuffled
        yield queue[: config.rollout_batch_size]
        queue = queue[config.rollout_batch_size :]


def mini_batches(config: ReinforceConfig) -> Iterator[list[list[int]]]:
    """Endless: for each iteration, the rows of its rollout batch in mini-batches, every time in a fresh order."""
    rng = random.Random(f"mini-batches {config.seed}")
    while True:
        order = list(range(config.rollout_batch_size * config.samples_per_prompt))
        rng.shuffle(order)
        yield [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
