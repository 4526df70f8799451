"""The REINFORCE loop: sample, score, credit, update. Each algorithm's credit and loss are in `dpr_core/algorithms`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import LossInputs, Objective, PolicyGradient
from dpr_core.algorithms.kl_control import KLControl
from dpr_core.config.reinforce import FullVocabularyConfig, ReinforceConfig
from dpr_core.config.rollouts import VllmConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Completion, UpdatableEngine, log_probs
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.rollouts.overlap import OverlappedEngine
from dpr_core.training.guard import RollBack
from dpr_core.training.hooks import (
    CriticLearner,
    EarlyStopping,
    Hook,
    Iteration,
    KeepAtKL,
    Prefetch,
    ReportProgress,
    Resume,
    RewardDrift,
    RolloutMetrics,
    SampleTables,
    TruncatedImportance,
)
from dpr_core.training.rollout import OnPolicy, Rollout
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
    reward: TokenReward
    trainer: Trainer
    config: ReinforceConfig
    end_token: int
    decode: Callable[[Sequence[int]], str]
    recorder: Recorder
    keep: Callable[[Path], None] | None = None
    """Saves the policy as it is now into a folder."""
    kept: Path = Path("kept")
    """Where those of `keep_at_kl` go, each into a folder of its own."""

    def run(self, prompts: Prompts) -> dict[str, float]:
        """Iterate until the configured end, or until a hook ends the run; returns the last metrics."""
        total, steps = iterations(len(prompts), self.config), steps_per_iteration(self.config)
        method = policy_gradient(self.config.algorithm)
        if self.config.over_vocabulary:
            self.reward.check_per_token()
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
            learns = critic_warmup(self.config) < number <= total
            rollout = self.score(completions, critic, trust_engine=learns and self.one_step_on_policy)
            advantages = method.credit(rollout.batch, kl.weight)

            iteration = Iteration(number, total, (number - 1) * steps, rollout, advantages, kl.weight)
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
        for each in reversed(hooks):
            metrics = each.finish(metrics)
        return metrics

    def sample(self, request: RolloutRequest) -> list[Completion]:
        """Draw responses from the policy as it is now, or one iteration behind where rollouts overlap."""
        self.engine.update_weights(self.trainer.steps_done)
        return self.engine.generate(*request, on_progress=partial(self.recorder.part, "rollout"))

    @property
    def one_step_on_policy(self) -> bool:
        """Whether an iteration needs no pass of the actor before its update, since that is one step, whose forward pass
        is of the weights that drew, and what the engine says of them is right to float32's rounding."""
        return (
            steps_per_iteration(self.config) == 1
            and not self.config.over_vocabulary
            and isinstance(self.engine, InProcessEngine)
            and not self.engine.graphs
            and self.policy.activations == torch.float32
            and not self.policy.drops_out
        )

    def score(
        self, completions: list[Completion], critic: CriticLearner | None = None, trust_engine: bool = False
    ) -> Rollout:
        """Log-probs under the actor, or as the engine gave them, and under both frozen models; rewards; the critic's
        values.

        What draws is what learns: the actor and its KL to SFT are those at the rollouts' temperature, the rewards of 1.
        Both ends of the KL compute as the actor does, whatever the reward's arithmetic, or it would not begin at 0.
        """
        sequences = [TokenSequence(c.prompt, c.response) for c in completions]
        budget, temperature = self.config.execution.tokens_per_micro_batch, self.config.temperature
        part = self.recorder.part
        old, entropies, expected = log_probs(completions), None, None
        if self.config.expected_baseline:
            together = partial(part, "scoring by the policy and the reward")
            scored, log_sft, (old, _, entropies), expected = self.reward.with_expected(
                sequences, self.policy, temperature, together
            )
        else:
            by_policy, by_reward = partial(part, "scoring by the policy"), partial(part, "scoring by the reward")
            if not trust_engine:
                old, _, entropies = score(
                    self.policy, sequences, budget, temperature=temperature, entropy=True, on_progress=by_policy
                )
            scored, log_sft = self.reward.with_log_sft(sequences, temperature, by_reward)
        values = critic.values(sequences) if critic else None
        return Rollout(completions, sequences, scored, log_sft, old, entropies, self.engine.version, values, expected)

    def update(
        self,
        iteration: Iteration,
        order: Sequence[Sequence[int]],
        method: PolicyGradient,
        critic: CriticLearner | None,
    ) -> None:
        """One pass over the rollout in mini-batches; in the critic's warm-up the policy stays as it is."""
        rollout = iteration.rollout
        on_policy = OnPolicy(method) if rollout.entropies is None else None
        learners: list[tuple[Trainer, Objective, float | None]] = []
        if critic:
            learners.append((critic.trainer, critic.objective, None))
        if iteration.number > critic_warmup(self.config):
            learners.append((self.trainer, on_policy or method, self.config.temperature))
        wanted = None
        if isinstance(self.config.algorithm, FullVocabularyConfig):
            wanted = partial(self.reward.wanted, temperature=self.config.temperature, kl_weight=iteration.kl_weight)
        inputs = LossInputs(rollout.old_log_probs, rollout.batch.values, *iteration.advantages)
        for step, rows in enumerate(order, start=iteration.step + 1):
            sequences = [rollout.sequences[row] for row in rows]
            mini_batch = inputs.rows(rows, max(len(s.response) for s in sequences))
            for trainer, objective, temperature in learners:
                metrics = trainer.step(sequences, objective, mini_batch, temperature, objective is on_policy, wanted)
                if objective is on_policy:
                    iteration.metrics |= (late := on_policy.take(metrics))
                    self.recorder.metrics(late, iteration.step)
                self.recorder.metrics(metrics, step)
            self.recorder.part("update", step - iteration.step, len(order))

    def _hooks(self, prompts: Prompts, critic: CriticLearner | None, kl: KLControl) -> list[Hook]:
        """What this run needs, in the order in which metrics are recorded and calls are made."""
        config, recorder = self.config, self.recorder
        hooks: list[Hook] = [RolloutMetrics(self.end_token, kl, self.reward)]
        if isinstance(config.rollouts, VllmConfig):
            hooks.append(TruncatedImportance(config.rollouts))
        if critic:
            hooks.append(critic)
        hooks.append(RewardDrift())
        if config.keep_at_kl and self.keep is not None:
            hooks.append(KeepAtKL(config.keep_at_kl, self.keep, self.kept))
        if config.guard:
            hooks.append(EarlyStopping(RollBack(config.guard, self.policy), recorder))
        hooks += [SampleTables(self.end_token, self.decode, recorder), ReportProgress(recorder, bool(config.guard))]
        if isinstance(self.engine, OverlappedEngine):
            hooks.append(Prefetch(self.engine, rollout_requests(prompts, config, self.end_token)))
        return hooks
