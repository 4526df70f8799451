"""Improve the SFT policy by REINFORCE against its own recovered reward."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.reinforce import ReinforceConfig, extrapolation
from dpr_core.config.rollouts import VllmConfig
from dpr_core.errors import UsageError, naming
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import KEPT, Lineage

if TYPE_CHECKING:
    from dpr_core.state import State


def body(config: StageConfig, work: Work) -> dict[str, float]:
    from dpr_core.data.encoding import decode_response, end_token
    from dpr_core.data.subsample import read
    from dpr_core.models.checkpoints import save
    from dpr_core.models.lora import add_adapters
    from dpr_core.reporting import plots
    from dpr_core.rollouts.factory import open_engine
    from dpr_core.training.reinforce_loop import ReinforceLoop
    from dpr_core.training.schedule import optimizer_steps
    from dpr_core.training.trainer import Trainer

    settings = cast(ReinforceConfig, config)
    lineage = Lineage(work.store)
    reward = work.input("reward")
    tokenizer, renderer = lineage.tokenizer(reward), lineage.renderer(reward)
    learned = lineage.sample(reward)
    drawn = read(work.input("prompts").path) if "prompts" in work.inputs else learned
    rows = drawn.demonstrations
    prompts = []
    for row in rows:
        with naming(f"prompt {row.id}"):
            prompt = renderer.prompt(tokenizer, row.prompt, row.system, row.history)
        if len(prompt) <= settings.max_prompt_tokens:
            prompts.append(prompt)
    if not prompts:
        raise UsageError(f"no prompt is left: all are longer than max_prompt_tokens={settings.max_prompt_tokens}")
    policy = lineage.load(lineage.policy_folder(reward), reward, settings.execution)
    longest = max(map(len, prompts)) + settings.max_response_tokens
    policy.check_length(longest)
    if settings.lora is not None:
        add_adapters(policy.model, settings.lora, settings.seed)
        policy.round_frozen()
    history = History(work)

    def keep(folder: Path) -> None:
        save(policy.model, tokenizer, folder)

    with open_engine(
        settings.rollouts,
        policy,
        keep,
        longest,
        settings.execution,
        work.scratch / "rollouts",
    ) as engine:
        dense_reward = lineage.dense_reward(reward, settings.execution)
        dense_reward.target.check_length(longest)
        loop = ReinforceLoop(
            policy=policy,
            engine=engine,
            reward=dense_reward,
            trainer=Trainer(
                policy, settings, optimizer_steps(len(prompts), settings), settings.execution, recorder=history
            ),
            config=settings,
            end_token=end_token(tokenizer),
            decode=lambda ids: decode_response(tokenizer, ids),
            recorder=history,
            keep=keep,
            kept=work.output / KEPT,
        )
        metrics = loop.run(prompts)
    keep(work.output / "policy")
    plots.lines(work.scratch / "training.png", "During REINFORCE", "optimizer step", history.series())
    work.file(work.scratch / "training.png", "plots")
    overlap = {} if drawn is learned else {"data/prompt_overlap": drawn.overlap(learned)}
    return metrics | overlap | {"data/prompts_too_long": float(len(rows) - len(prompts))}


class History:
    """Passes everything on to the workspace, and remembers across interruptions what the plot shows of the rollouts."""

    SHOWN = ("rollout/return", "rollout/kl", "rollout/length", "rollout/entropy")

    def __init__(self, work: Work) -> None:
        self.advance = work.advance
        self.part = work.part
        self.table = work.table
        self._work = work
        self._points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._work.metrics(values, step)
        if shown := {name: values[name] for name in self.SHOWN if name in values}:
            self._points.append((step, shown))

    def restore(self) -> dict[str, Any] | None:
        left = self._work.restore()
        if left is None:
            return None
        self._points = left["points"]
        loop: dict[str, Any] = left["loop"]
        return loop

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        self._work.checkpoint(step, lambda: {"loop": state(), "points": self._points})

    def series(self) -> dict[str, list[tuple[float, float]]]:
        return {
            name: [(float(step), values[name]) for step, values in self._points if name in values]
            for name in self.SHOWN
        }


def describe(config: StageConfig) -> str:
    settings = cast(ReinforceConfig, config)
    guard = f", guarded by {settings.guard.type}" if settings.guard else ""
    kept = f", kept at a KL of {', '.join(f'{kl:g}' for kl in settings.keep_at_kl)}" if settings.keep_at_kl else ""
    drawn_by = " by vLLM" if isinstance(settings.rollouts, VllmConfig) else ""
    beta = getattr(settings.algorithm, "kl_weight", None)
    held = "" if beta is None else f", KL weight {beta:g} (lambda {extrapolation(beta):g} without a teacher)"
    return (
        f"REINFORCE ({settings.algorithm.type}, gamma {settings.algorithm.gamma:g}{held}) on the recovered reward: "
        f"learning rate {settings.learning_rate:g}, rollouts of {settings.rollout_batch_size}{drawn_by}{guard}{kept} "
        f"(seed {settings.seed})."
    )


def preflight(configs: Sequence[ReinforceConfig], planning: bool = False) -> None:
    """Look for vLLM before hours of training."""
    from dpr_core.rollouts.vllm_server import check_settings

    for config in configs:
        if isinstance(config.rollouts, VllmConfig):
            check_settings(config.rollouts.execution)


STAGE = Stage(
    name="reinforce",
    version=1,
    config=ReinforceConfig,
    inputs={"reward": ("reward",), "prompts": ("prompts",)},
    optional=frozenset({"prompts"}),
    body=body,
    describe=describe,
    shared=True,
    preflight=preflight,
    # The policy is scored at the temperature that draws, where it was once scored at 1.
    revisions=lambda config: int(config.temperature != 1),
)
