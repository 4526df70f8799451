"""What one process does alone, and several do together, in test_processes.py; mostly in float64, to be exact."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpr_core import distributed
from dpr_core.algorithms.base import LossInputs, required
from dpr_core.config.execution import LaunchConfig
from dpr_core.config.imitation import SelfPlayConfig, SpinConfig
from dpr_core.config.model import Family, LabBackboneConfig
from dpr_core.config.reinforce import (
    Algorithm1Config,
    FullVocabularyConfig,
    KLStopConfig,
    PPOConfig,
    ReinforceConfig,
    ReinforcePlusPlusConfig,
)
from dpr_core.config.training import ExecutionConfig, LoRAConfig, OptimizerConfig, SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.lab.backbone import untrained
from dpr_core.logprobs import TokenScores
from dpr_core.models.checkpoints import save
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.extrapolation import ContrastivePolicy
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score, score_at, score_with_kl
from dpr_core.models.sharding import shard_like, to_device_or_shard, unsharded_in_place
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.state import State, read, write
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import optimizer_steps
from dpr_core.training.self_play_loop import SelfPlay
from dpr_core.training.sft_loop import fine_tune
from dpr_core.training.trainer import Trainer

ROWS = [
    TokenSequence((1, 30, 31), (40, 41, 42, 2)),
    TokenSequence((1, 33), (0, 0, 45, 46, 47, 48, 49, 50)),
    TokenSequence((1, 60, 61, 62, 63, 64), (2,)),
    TokenSequence((1,), (70, 71, 72)),
    TokenSequence((1, 9), (12, 13, 2)),
]
WEIGHTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))
END = 2
LORA = LoRAConfig(rank=2, targets=("q_proj", "down_proj"))
STRATEGIES: tuple[Literal["ddp", "fsdp"], ...] = ("ddp", "fsdp")
Found = dict[str, Tensor]


def backbone(family: Family = "llama", seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights far from those of a fresh model, whose policy is so near the uniform one that mistakes hide in it."""
    model, tokenizer = untrained(LabBackboneConfig(family=family, width=16, layers=2, heads=2, feed_forward=32))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn(weight.shape, generator=generator) * 0.3
    return model.double().eval(), tokenizer


class Weighted:
    """Minus a weighted log-prob."""

    loss_reduction: Literal["token", "sequence"] = "token"

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        weights = required(inputs.advantages)
        return {"loss": -scores.log_probs * weights, "weight": weights}


def trainer_of(policy: Policy, execution: ExecutionConfig, **changes: Any) -> Trainer:
    settings = {"learning_rate": 1e-2, "batch_size": 5, "warmup_ratio": 0.0, "max_gradient_norm": 0.5, **changes}
    return Trainer(policy, OptimizerConfig.model_validate(settings), 10, execution)


def weights_of(model: PreTrainedModel) -> Found:
    """All of them, in every process."""
    return unsharded_in_place(dict(model.named_parameters()), torch.device("cpu"))


def steps(trainer: Trainer, count: int = 3) -> Found:
    told = [trainer.step(ROWS, Weighted(), LossInputs(advantages=WEIGHTS)) for _ in range(count)]
    names = ("loss", "gradient_norm", "weight", "learning_rate")
    return {name: torch.tensor([each[f"train/{name}"] for each in told]) for name in names}


def training(
    family: Family,
    launch: LaunchConfig,
    tokens: int,
    checkpointing: bool = False,
    activations: torch.dtype = torch.float32,
    packing: bool = False,
    compile: bool = False,
) -> Found:
    """Three steps."""
    model, _ = backbone(family)
    if activations != torch.float32:
        model.float()
    execution = ExecutionConfig(
        launch=launch,
        tokens_per_micro_batch=tokens,
        gradient_checkpointing=checkpointing,
        packing=packing,
        compile=compile,
    )
    trainer = trainer_of(Policy(model, 1000, activations, packing=packing), execution)
    return steps(trainer) | weights_of(model)


def adapting(launch: LaunchConfig, published: Path, activations: torch.dtype = torch.float32) -> Found:
    """Three steps of adapters, which are published merged into a model with tied embeddings."""
    model, tokenizer = backbone("gemma3")
    if activations != torch.float32:
        model.float()
    add_adapters(model, LORA, seed=0)
    policy = Policy(model, activations=activations).round_frozen()
    told = steps(trainer_of(policy, ExecutionConfig(launch=launch, tokens_per_micro_batch=16)))
    save(model, tokenizer, published)
    return told | weights_of(model)


def scoring(launch: LaunchConfig, activations: torch.dtype) -> Found:
    """Frozen policies."""
    policies = [
        to_device_or_shard(Policy(backbone("gemma3", seed)[0].float(), activations=activations).freeze(), launch)
        for seed in (0, 1)
    ]
    scores = score(policies[0], ROWS, 16, entropy=True)._asdict()
    contrasted = ContrastivePolicy(policies[0], policies[1], 0.5)
    return scores | {
        "tempered": score_at(policies[0], (1.0, 0.7), ROWS, 16)[1].log_probs,
        "kl": score_with_kl(policies[0], policies[1:], ROWS, 16)[1],
        "contrasted": score_with_kl(contrasted, policies, ROWS, 1)[1],
    }


def reinforce(launch: LaunchConfig, dtype: torch.dtype, **changes: Any) -> Found:
    """Two iterations and a last rollout."""
    config = ReinforceConfig(
        execution=ExecutionConfig(launch=launch, tokens_per_micro_batch=12, rollout_rows=2),
        learning_rate=1e-2, batch_size=8, rollout_batch_size=8, iterations=2, max_response_tokens=6, warmup_ratio=0.0,
        **changes,
    )  # fmt: skip
    prompts = [row.prompt for row in ROWS]
    policy, *scorers = (Policy(backbone("gemma3", seed)[0].to(dtype)) for seed in (0, 0, 1))
    if config.lora:
        add_adapters(policy.model, config.lora, seed=0)
    recorder = Watching()
    loop = ReinforceLoop(
        policy,
        InProcessEngine(policy.model, config.execution.rollout_rows),
        TokenReward(*(to_device_or_shard(each, launch) for each in scorers), "baseline_relative", 12),
        Trainer(policy, config, optimizer_steps(len(prompts), config), config.execution),
        config,
        END,
        lambda ids: " ".join(map(str, ids)),
        recorder,
    )
    loop.run(prompts)
    return recorder.found() | weights_of(policy.model)


def self_play(launch: LaunchConfig) -> Found:
    """Two rounds, each with a trainer of its own."""
    execution = ExecutionConfig(launch=launch, tokens_per_micro_batch=20)
    config = SelfPlayConfig(
        method=SpinConfig(beta=0.3), rounds=2, batch_size=2, epochs=1, learning_rate=1e-2, max_response_tokens=4,
        execution=execution,
    )  # fmt: skip
    model, recorder = backbone()[0], Watching()
    SelfPlay(Policy(model), InProcessEngine(model, 2), config, END, lambda ids: str(ids), recorder).run(ROWS)
    return recorder.found() | weights_of(model)


class Watching(InMemoryRecorder):
    """Also remembers texts: a changed token changes what is found. Whenever a state may be kept, there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.texts += [str(row.get("response", row.get("generated"))) for row in rows]

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        assert state()

    def found(self) -> Found:
        told = {
            f"{step} {name}": torch.tensor(value)
            for step, values in self.history
            for name, value in values.items()
            if "tokens_per_second" not in name
        }
        return told | {"texts": torch.tensor(list("\n".join(self.texts).encode()))}


class Keeping(InMemoryRecorder):
    """Keeps the state after one step, in the folder that it goes on from."""

    def __init__(self, folder: Path, at: int, goes_on: bool) -> None:
        super().__init__()
        self.folder, self.at, self.goes_on = folder, at, goes_on

    def restore(self) -> dict[str, Any] | None:
        return read(self.folder) if self.goes_on else None

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        if step == self.at and not self.goes_on:
            if distributed.rank() == 0:
                self.folder.mkdir(parents=True)
            distributed.all_gather([0])  # which waits for all
            write(state(), self.folder)


def fine_tuning(launch: LaunchConfig, state: Path, published: Path, goes_on: bool = False) -> Found:
    """Two epochs with a moving average; a state is kept after step 3, or taken up from there."""
    model, tokenizer = backbone("qwen2")
    config = SFTConfig(
        execution=ExecutionConfig(launch=launch, tokens_per_micro_batch=20), learning_rate=1e-2, batch_size=2, epochs=2,
        checkpoints=(1.0,), ema_decay=0.5,
    )  # fmt: skip
    recorder = Keeping(state, 3, goes_on)
    trainer = Trainer(Policy(model), config, 6, config.execution)
    found = {}

    def keep(part: float | Literal["ema"]) -> None:
        save(model, tokenizer, published / str(part))
        found.update({f"{part} {name}": weight.clone() for name, weight in weights_of(model).items()})

    fine_tune(trainer, ROWS, config, keep, recorder)
    return found


def parts(launch: LaunchConfig, mine: Path) -> Mapping[str, Callable[[], Found]]:
    """All that is compared; `mine` is for states and checkpoints."""
    critic = PPOConfig(critic_learning_rate=1e-2, critic_warmup_iterations=1)
    return {
        "one row at a time": lambda: training("llama", launch, 1),
        "some rows at a time": lambda: training("mistral", launch, 24),
        "fewer micro-batches than processes": lambda: training("llama", launch, 10_000),
        "tied embeddings": lambda: training("gemma3", launch, 16),
        "checkpointing": lambda: training("qwen2", launch, 16, checkpointing=True),
        "rounded training": lambda: training("mistral", launch, 16, True, torch.bfloat16),
        "packed": lambda: training("mistral", launch, 16, packing=True),
        "lora": lambda: adapting(launch, mine / "lora"),
        "rounded lora": lambda: adapting(launch, mine / "rounded lora", torch.bfloat16),
        "scores": lambda: scoring(launch, torch.float32),
        "rounded scores": lambda: scoring(launch, torch.bfloat16),
        "reinforce": lambda: reinforce(launch, torch.float64, algorithm=Algorithm1Config()),
        "guard and adapters": lambda: reinforce(
            launch, torch.float64, algorithm=Algorithm1Config(), guard=KLStopConfig(max_sequence_kl=1e-9), lora=LORA
        ),
        "full vocabulary": lambda: reinforce(launch, torch.float64, algorithm=FullVocabularyConfig(kl_weight=0.3)),
        "expected baseline": lambda: reinforce(
            launch,
            torch.float64,
            algorithm=ReinforcePlusPlusConfig(baseline="expected", whiten="batch_mean", gamma=0.5),
        ),
        "ppo": lambda: reinforce(launch, torch.float32, algorithm=critic),
        "self-play": lambda: self_play(launch),
        "fine-tuning": lambda: fine_tuning(launch, mine / "state", mine),
    }


def slicing(folder: Path) -> None:
    """What `shard_like` makes of values is a slice as torch would cut it, and holds no more than that."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    values = torch.arange(15.0).view(5, 3)
    like = distribute_tensor(values, mesh, [Shard(0)])
    mine: Any = shard_like(values, like)
    assert mine.to_local().equal(like.to_local())
    assert mine.to_local().untyped_storage().nbytes() == mine.to_local().nbytes


def waiting(folder: Path) -> None:
    """How long a process waits for others in an exchange, in seconds."""
    distributed.state(timedelta(minutes=90))
    group: Any = torch.distributed.group.WORLD
    seconds = group._get_backend(distributed.device()).options._timeout.total_seconds()
    (folder / f"{distributed.rank()}").write_text(str(seconds))


def compared(ranks: int, strategy: str) -> list[str]:
    """Four whole models in as many processes are not much else than two."""
    names = list(parts(LaunchConfig(), Path()))
    return ["fewer micro-batches than processes", "reinforce"] if (ranks, strategy) == (4, "ddp") else names


def everything(folder: Path) -> None:
    """All of it in this process, under each strategy, into a file of this process."""
    ranks = distributed.world_size()
    found: dict[str, Found] = {}
    for strategy in STRATEGIES if ranks > 1 else STRATEGIES[:1]:
        launch = LaunchConfig(processes=ranks, strategy=strategy)
        mine = folder / f"{ranks} {strategy}"
        each = parts(launch, mine)
        found |= {f"{strategy}: {name}": each[name]() for name in compared(ranks, strategy)}
        if ranks > 1:
            left = folder / ("1 ddp" if ranks == 2 else "2 fsdp") / "state"
            found[f"{strategy}: taken up"] = fine_tuning(launch, left, folder / "again", goes_on=True)
    if ranks > 1:
        offloaded = LaunchConfig(processes=ranks, strategy="fsdp", cpu_offload=True)
        found["offloaded: tied embeddings"] = training("gemma3", offloaded, 16)
    torch.save(found, folder / f"{ranks}-{distributed.rank()}.pt")
