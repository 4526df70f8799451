"""The table of forward passes in docs/performance.md is what is counted: tokens that go through each network."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpr_core.config.evaluation import AnswerConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import PPOConfig, ReinforceConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.critic import Critic
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.extrapolation import ContrastivePolicy
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Completion
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training import hooks
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.trainer import Trainer
from tasks.stages.policies import Answering

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,)]


class Passes(Counter[str]):
    """Tokens through each network, but for those that are drawn."""

    drawing = False

    def watch(self, name: str, body: torch.nn.Module) -> None:
        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if not self.drawing:
                self[name] += kwargs["input_ids"].numel()

        body.register_forward_pre_hook(count, with_kwargs=True)

    def row(self, what: str, tokens: int) -> str:
        shares = [self[name] / tokens for name in ("policy", "pi_SFT", "pi_ref", "critic")]
        return f"| {' | '.join([what, *(f'{share:g}' if share else '' for share in shares)])} |".replace("  |", " |")


def watched(toy: Callable[..., Any], passes: Passes, **options: Any) -> list[Policy]:
    """A policy, pi_SFT and pi_ref."""
    policies = [Policy(toy(seed), **options) for seed in (2, 0, 1)]
    for name, policy in zip(("policy", "pi_SFT", "pi_ref"), policies, strict=True):
        passes.watch(name, policy.model.get_decoder())
    return policies


def iteration(
    toy: Callable[..., Any], monkeypatch: Any, what: str, arithmetic: Any = None, **changes: Any
) -> list[str]:
    """The rows of an iteration and of the last rollout."""
    passes, rows = Passes(), []
    activations = changes.pop("activations", torch.float32)
    policy, sft, reference = watched(toy, passes, activations=activations)

    class Counted(InProcessEngine):
        tokens = 0

        def generate(self, *args: Any, **kwargs: Any) -> list[Completion]:
            self.told()
            passes.drawing = True
            drawn = super().generate(*args, **kwargs)
            passes.drawing = False
            self.tokens = sum(len(c.prompt + c.response) for c in drawn)
            return drawn

        def told(self) -> None:
            if self.tokens:
                rows.append(passes.row(what if not rows else "the last rollout", self.tokens))
            passes.clear()

    class WatchedCritic(Critic):
        def __init__(self, policy: Policy) -> None:
            super().__init__(policy)
            self.model._forward_pre_hooks.clear()  # the copied policy's
            passes.watch("critic", self.model)

    monkeypatch.setattr(hooks, "Critic", WatchedCritic)
    config = ReinforceConfig(
        **{"rollout_batch_size": 8, "batch_size": 8, "iterations": 1, "max_response_tokens": 3, **changes}
    )
    engine = Counted(policy.model, activations=activations)
    reward = TokenReward(sft, reference, "baseline_relative", arithmetic=arithmetic)
    trainer = Trainer(policy, config, 1, config.execution)
    ReinforceLoop(policy, engine, reward, trainer, config, 0, str, InMemoryRecorder()).run(PROMPTS)
    engine.told()
    return rows


def answers(toy: Callable[..., Any], what: str, kind: str, arithmetic: Any = None, **options: Any) -> str:
    passes = Passes()
    policy, sft, reference = watched(toy, passes, **options)
    reward = TokenReward(sft, reference, "baseline_relative", arithmetic=arithmetic)
    answered_by: Any = {"trained": policy, "SFT": sft, "contrastive": ContrastivePolicy(sft, reference, 0.5)}[kind]
    sequences = [TokenSequence(prompt, (3, 2, 0)) for prompt in PROMPTS]
    settings = AnswerConfig(benchmark={"type": "lab"}, execution=ExecutionConfig())  # type: ignore[arg-type]
    responder = Answering(settings, answered_by, sft, None if kind == "SFT" else reward)
    scored, kl, _ = responder.measure(sequences, None)
    assert kl is not None
    assert (scored is None) == (kind == "SFT")
    return passes.row(what, sum(map(len, sequences)))


def test_the_table_of_passes_is_what_is_counted(toy: Callable[..., Any], monkeypatch: Any) -> None:
    one, last = iteration(toy, monkeypatch, "an iteration with one update, float32")
    rows = [
        one,
        *iteration(toy, monkeypatch, "the same at a temperature other than 1", temperature=0.7)[:1],
        *iteration(toy, monkeypatch, "the same with PPO's critic", algorithm=PPOConfig())[:1],
        *iteration(toy, monkeypatch, "an iteration with several updates", batch_size=4)[:1],
        *iteration(toy, monkeypatch, "an iteration in bfloat16", activations=torch.bfloat16)[:1],
        *iteration(toy, monkeypatch, "the same, its reward in float32", "float32", activations=torch.bfloat16)[:1],
        last,
        answers(toy, "answers of SFT", "SFT"),
        answers(toy, "answers of a trained policy", "trained"),
        answers(toy, "the same, its reward in another arithmetic", "trained", "bfloat16"),
        answers(toy, "answers of contrastive decoding", "contrastive"),
    ]
    table = "\n".join(["| | policy | pi_SFT | pi_ref | critic |", "|---|--:|--:|--:|--:|", *rows])
    assert table in PAGE.read_text(encoding="utf-8"), f"docs/performance.md should hold\n\n{table}"
