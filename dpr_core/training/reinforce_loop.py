"""The REINFORCE loop: sample, score, credit, update. Each algorithm's credit and loss are in `dpr_core/algorithms`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import LossInputs, Objective, PolicyGradient
from dpr_core.algorithms.kl_control import KLControl
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.rollouts import VllmConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import DenseReward
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Completion, UpdatableEngine
from dpr_core.rollouts.overlap import OverlappedEngine
from dpr_core.training.guard import RollBack
from dpr_core.training.hooks import (
    CriticLearner,
    EarlyStopping,
    Hook,
    Iteration,
    Prefetch,
    ReportProgress,
    Resume,
    RewardDrift,
    RolloutMetrics,
    SampleTables,
    TruncatedImportance,
)
from dpr_core.training.rollout import Rollout
from dpr_core.training.schedule import (
    RolloutRequest,
    critic_warmup,
    iterations,
    mini_batches,
    rollout_requests,
    steps_per_iteration,
)
from dpr_core.training.trainer import Trainer

Prompts = Sequence[tuple[int, ...]]


@dataclass
class ReinforceLoop:
    """Improves `policy` in place."""

    policy: Policy
    engine: UpdatableEngine
    reward: DenseReward
    trainer: Trainer
    config: ReinforceConfig
    end_token: int
    decode: Callable[[Sequence[int]], str]
    recorder: Recorder

    def run(self, prompts: Prompts) -> dict[str, float]:
        """Iterate until the configured end, or until a hook ends the run; returns the last metrics."""
        total, steps = iterations(len(prompts), self.config), steps_per_iteration(self.config)
        method = policy_gradient(self.config.algorithm)
        kl = method.kl_control(total)
        critic = None
        if method.critic:
            critic = CriticLearner(method.critic, self.policy, self.config, total * steps, self.recorder)
        hooks = self._hooks(prompts, critic, kl)
        resume = Resume(self.recorder, [self.trainer, kl, *hooks])

        # One rollout more than there are updates: the last one measures the policy that comes out.
        requests = rollout_requests(prompts, self.config, self.end_token)
        plan = zip(range(1, total + 2), requests, mini_batches(self.config), strict=False)
        for number, request, order in islice(plan, resume.done, None):
            completions = self.sample(request)
            rollout = self.score(completions, critic)
            advantages = method.credit(rollout.batch, kl.weight)

            iteration = Iteration(number, total, (number - 1) * steps, rollout, advantages)
            for each in hooks:
                each.after_credit(iteration)
            self.recorder.metrics(iteration.metrics, iteration.step)
            if any(each.before_update(iteration) for each in hooks):
                break

            if number <= total:
                self.update(iteration, order, method, critic)
                kl.update(rollout.sequence_kl)
            resume.checkpoint(iteration)

        metrics = resume.metrics
        for each in hooks:
            metrics = each.finish(metrics)
        return metrics

    def sample(self, request: RolloutRequest) -> list[Completion]:
        """Draw responses from the policy as it is now, or one iteration behind where rollouts overlap."""
        self.engine.update_weights(self.trainer.steps_done)
        return self.engine.generate(*request, on_progress=partial(self.recorder.part, "rollout"))

    def score(self, completions: list[Completion], critic: CriticLearner | None = None) -> Rollout:
        """Log-probs under the actor and both frozen models, in the same shapes; rewards; the critic's values.

        What draws is what learns: the actor and its KL to SFT are those at the rollouts' temperature, the rewards of 1.
        Both ends of the KL compute as the actor does, whatever the reward's arithmetic, or it would not begin at 0.
        """
        sequences = [TokenSequence(c.prompt, c.response) for c in completions]
        budget, temperature = self.config.execution.tokens_per_micro_batch, self.config.temperature
        part = self.recorder.part
        by_policy, by_reward = partial(part, "scoring by the policy"), partial(part, "scoring by the reward")
        actor = score(self.policy, sequences, budget, temperature=temperature, entropy=True, on_progress=by_policy)
        scored = self.reward(sequences, by_reward)
        tempered = None
        if temperature != 1 or self.reward.differs:
            sft, budget = self.reward.sft, self.reward.tokens_per_micro_batch
            tempered = score(sft, sequences, budget, temperature=temperature).log_probs
        values = critic.values(sequences) if critic else None
        version = self.engine.version
        return Rollout(completions, sequences, scored, actor.log_probs, actor.entropies, version, values, tempered)

    def update(
        self,
        iteration: Iteration,
        order: Sequence[Sequence[int]],
        method: PolicyGradient,
        critic: CriticLearner | None,
    ) -> None:
        """One pass over the rollout in mini-batches; in the critic's warm-up the policy stays as it is."""
        learners: list[tuple[Trainer, Objective, float | None]] = []
        if critic:
            learners.append((critic.trainer, critic.objective, None))
        if iteration.number > critic_warmup(self.config):
            learners.append((self.trainer, method, self.config.temperature))
        rollout = iteration.rollout
        inputs = LossInputs(rollout.old_log_probs, rollout.batch.values, *iteration.advantages)
        for step, rows in enumerate(order, start=iteration.step + 1):
            sequences = [rollout.sequences[row] for row in rows]
            mini_batch = inputs.rows(rows, max(len(s.response) for s in sequences))
            for trainer, objective, temperature in learners:
                self.recorder.metrics(trainer.step(sequences, objective, mini_batch, temperature), step)
            self.recorder.part("update", step - iteration.step, len(order))

    def _hooks(self, prompts: Prompts, critic: CriticLearner | None, kl: KLControl) -> list[Hook]:
        """What this run needs, in the order in which metrics are recorded and calls are made."""
        config, recorder = self.config, self.recorder
        hooks: list[Hook] = [RolloutMetrics(self.end_token, kl)]
        if isinstance(config.rollouts, VllmConfig):
            hooks.append(TruncatedImportance(config.rollouts))
        if critic:
            hooks.append(critic)
        hooks.append(RewardDrift())
        if config.guard:
            hooks.append(EarlyStopping(RollBack(config.guard, self.policy), recorder))
        hooks += [SampleTables(self.end_token, self.decode, recorder), ReportProgress(recorder, bool(config.guard))]
        if isinstance(self.engine, OverlappedEngine):
            hooks.append(Prefetch(self.engine, rollout_requests(prompts, config, self.end_token)))
        return hooks
