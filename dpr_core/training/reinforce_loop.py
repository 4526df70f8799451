"""The REINFORCE loop: sample, score, credit, update. What a method is stands in `dpr_core/algorithms`."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee

from dpr_core.advantages import explained_variance
from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import Advantages, LossInputs, Objective, RolloutBatch
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.rollouts import VllmConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.dense_reward import DenseReward
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import FollowingEngine, Sampling
from dpr_core.rollouts.overlap import Overlapping
from dpr_core.state import State
from dpr_core.training.critic_learner import CriticLearner
from dpr_core.training.guard import RollBack
from dpr_core.training.importance_correction import corrected
from dpr_core.training.rollout_batch import Rollout, describe, samples
from dpr_core.training.trainer import Trainer

SAMPLE_TABLES = 20
"""About as many tables of samples are kept of a run, however long it is."""


@dataclass
class OnPolicy:
    """Improves `policy` in place."""

    policy: Policy
    engine: FollowingEngine
    reward: DenseReward
    trainer: Trainer
    config: ReinforceConfig
    end_token: int
    decode: Callable[[Sequence[int]], str]
    recorder: Recorder

    def run(self, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
        """Iterate until the configured end or until the guard stops; returns the last measurements."""
        config = self.config
        method = policy_gradient(config.algorithm)
        total, per_iteration = iterations(len(prompts), config), steps_per_iteration(config)
        critic = (
            CriticLearner(method.critic, self.policy, config, total * per_iteration, self.recorder)
            if method.critic
            else None
        )
        waits = actor_waits(config)
        kl = method.kl_control(total)
        guard = RollBack(config.guard, self.policy) if config.guard else None
        done = 0
        measured: dict[str, float] = {}
        first_reward: float | None = None

        def state() -> State:
            return {
                "done": done,
                "measured": measured,
                "first_reward": first_reward,
                "policy": self.trainer.state(),
                "critic": critic.trainer.state() if critic else None,
                "kl": kl.state(),
                "guard": guard.state() if guard else None,
            }

        if (left := self.recorder.restore()) is not None:
            done, measured, first_reward = left["done"], left["measured"], left["first_reward"]
            self.trainer.load_state(left["policy"])
            if critic:
                critic.trainer.load_state(left["critic"])
            kl.load_state(left["kl"])
            if guard:
                guard.load_state(left["guard"])
            left = None  # else the whole of it stays in memory
        # One rollout more than there are updates: the last one measures the policy that comes out.
        batches, following = tee(prompt_batches(prompts, config))
        plan = zip(range(1, total + 2), batches, islice(following, 1, None), mini_batches(config), strict=False)
        for iteration, batch, next_batch, order in islice(plan, done, None):
            rollout = self.roll_out(batch, iteration)
            seen = rollout.experience(critic.values(rollout.sequences) if critic else None)
            credit = method.credit(seen, kl.weight)
            latest = {**describe(rollout, credit, self.end_token), "rollout/kl_weight": kl.weight}
            if isinstance(config.rollouts, VllmConfig):
                advantages, told = corrected(credit.advantages, rollout, config.rollouts)
                credit, latest = credit._replace(advantages=advantages), {**latest, **told}
            if critic:
                latest["critic/explained_variance"] = explained_variance(seen.values, credit.returns, seen.mask)
            first_reward = latest["rollout/reward"] if first_reward is None else first_reward
            latest["rollout/reward_drift"] = latest["rollout/reward"] - first_reward
            step = (iteration - 1) * per_iteration
            self.recorder.metrics(latest, step)
            if guard is None or guard.watch(iteration, latest):
                measured = latest
            if guard and guard.reason:
                self.recorder.advance(total, total, f"stopped: {guard.reason}")
                break
            if (iteration - 1) % math.ceil(total / SAMPLE_TABLES) == 0 or iteration > total:
                shown = samples(rollout, self.end_token, self.decode)
                self.recorder.table(f"samples/iteration-{iteration:04d}.json", shown)
            note = f"return {latest['rollout/return']:.3f}, KL {latest['rollout/kl']:.3f}"
            self.recorder.advance(min(iteration, total), total, note)
            if isinstance(self.engine, Overlapping) and iteration < total:
                self.engine.begin(*self._asked(next_batch, iteration + 1))
            if iteration <= total:
                learners: list[tuple[Trainer, Objective]] = [(critic.trainer, critic.objective)] if critic else []
                if iteration > waits:
                    learners.append((self.trainer, method))
                self._update(learners, rollout.sequences, seen, credit, order, step)
                kl.update(rollout.sequence_kl)
            done = iteration
            self.recorder.checkpoint(done, state)
        return {**measured, **guard.finish(self.recorder)} if guard else measured

    def roll_out(self, prompts: Sequence[tuple[int, ...]], iteration: int) -> Rollout:
        """Sample responses and score them under the actor and both frozen models, in the same shapes."""
        self.engine.refresh(self.trainer.steps_done)
        completions = self.engine.generate(*self._asked(prompts, iteration))
        sequences = [TokenSequence(c.prompt, c.response) for c in completions]
        budget = self.config.execution.tokens_per_micro_batch
        own = score(self.policy, sequences, budget, entropy=True)
        return Rollout(
            completions, sequences, self.reward(sequences), own.log_probs, own.entropies, self.engine.version
        )

    def _asked(self, prompts: Sequence[tuple[int, ...]], iteration: int) -> tuple[list[tuple[int, ...]], Sampling, int]:
        """What the engine is to draw in an iteration, and with which seed."""
        repeated = [prompt for prompt in prompts for _ in range(self.config.samples_per_prompt)]
        sampling = Sampling(self.config.temperature, self.config.max_response_tokens, self.end_token)
        return repeated, sampling, self.config.seed * 1_000_003 + iteration

    def _update(
        self,
        learners: Sequence[tuple[Trainer, Objective]],
        sequences: Sequence[TokenSequence],
        seen: RolloutBatch,
        credit: Advantages,
        order: Sequence[Sequence[int]],
        steps_done: int,
    ) -> None:
        """One pass over the rollout batch in mini-batches; each objective takes from the values what it needs."""
        known = LossInputs(seen.log_old, seen.values, *credit)
        for step, rows in enumerate(order, start=steps_done + 1):
            width = max(len(sequences[row].response) for row in rows)
            inputs = known.rows(rows, width)
            for trainer, objective in learners:
                self.recorder.metrics(trainer.step([sequences[row] for row in rows], objective, inputs), step)


def iterations(prompts: int, config: ReinforceConfig) -> int:
    """As configured, or one pass over the prompts."""
    return config.iterations or max(1, math.ceil(prompts / config.rollout_batch_size))


def steps_per_iteration(config: ReinforceConfig) -> int:
    """Mini-batches of one rollout batch."""
    return math.ceil(config.rollout_batch_size * config.samples_per_prompt / config.batch_size)


def actor_waits(config: ReinforceConfig) -> int:
    """Iterations at the start in which the policy does not learn yet, because its critic does."""
    critic = policy_gradient(config.algorithm).critic
    return critic.warmup_iterations if critic else 0


def optimizer_steps(prompts: int, config: ReinforceConfig) -> int:
    """Steps of the policy in the whole run, which its learning rate's schedule spans."""
    total, waits = iterations(prompts, config), actor_waits(config)
    if waits >= total:
        raise UsageError(
            f"the critic's warm-up of {waits} iterations leaves none of {total} to learn in; "
            "lower algorithm.critic_warmup_iterations or raise iterations"
        )
    return (total - waits) * steps_per_iteration(config)


def prompt_batches(prompts: Sequence[tuple[int, ...]], config: ReinforceConfig) -> Iterator[list[tuple[int, ...]]]:
    """Endless batches of prompts, pass after pass, each pass in a fresh order."""
    rng = random.Random(f"prompts {config.seed}")
    queue: list[tuple[int, ...]] = []
    while True:
        while len(queue) < config.rollout_batch_size:
            again = list(prompts)
            rng.shuffle(again)
            queue += again
        yield queue[: config.rollout_batch_size]
        queue = queue[config.rollout_batch_size :]


def mini_batches(config: ReinforceConfig) -> Iterator[list[list[int]]]:
    """Endless: for each iteration, the rows of its rollout batch in mini-batches, every time in a fresh order."""
    rng = random.Random(f"mini-batches {config.seed}")
    while True:
        order = list(range(config.rollout_batch_size * config.samples_per_prompt))
        rng.shuffle(order)
        yield [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
