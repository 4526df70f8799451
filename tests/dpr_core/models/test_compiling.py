"""Compiled layers: the same scores, losses, gradients and files, from few pieces of code."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpr_core import distributed
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.config.model import Family
from dpr_core.config.training import LoRAConfig, SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models import policy as policy_module
from dpr_core.models.checkpoints import save
from dpr_core.models.critic import Critic
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy, compile_layers
from dpr_core.models.scoring import score, score_values
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.trainer import Trainer
from tests import ranks
from tests.dpr_core.training.distributed import STRATEGIES, training

SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}
SETTINGS = SFTConfig(learning_rate=1e-3, batch_size=4, warmup_ratio=0.0)


def ragged(*lengths: tuple[int, int]) -> list[TokenSequence]:
    """Sequences of so many tokens in their prompts and responses, no two of them alike."""
    drawn = iter(torch.randint(3, 90, (1000,), generator=torch.Generator().manual_seed(len(lengths))).tolist())

    def take(count: int) -> tuple[int, ...]:
        return tuple(next(drawn) for _ in range(count))

    return [TokenSequence(take(prompt), take(response)) for prompt, response in lengths]


BATCHES = [ragged((4, 6), (2, 9), (1, 1), (7, 4)), ragged((3, 3), (2, 2)), ragged((5, 5), (5, 5), (5, 6))]
OTHERS = [ragged((6, 11), (3, 5), (2, 8)), ragged((8, 9), (1, 4), (9, 1), (2, 2), (3, 7))]


class Counted:
    """A compiler that leaves the graphs as they are, which takes no time, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, examples: Any) -> Any:
        self.graphs += 1
        return graph


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """What was compiled in a test."""
    counted = Counted()
    settings = torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True)
    torch.compiler.reset()
    monkeypatch.setattr(policy_module, "_check_compiler", lambda device: None)
    with settings, torch.compiler.set_stance("default", force_backend=counted):
        yield counted
    torch.compiler.reset()


class Taught:
    """A policy that learns, and a frozen one, compiled or not."""

    def __init__(self, model: PreTrainedModel, tokens: int, activations: torch.dtype = torch.float32, **execution: Any):
        self.execution = ExecutionConfig(tokens_per_micro_batch=tokens, skipped_steps=0, **execution)
        self.policy = Policy(model, activations=activations, packing=self.execution.packing)
        self.trainer = Trainer(self.policy, SETTINGS, 100, self.execution)
        self.gradients: dict[str, Tensor] = {}
        clip = self.trainer.accelerator.clip_grad_norm_

        def seen(*arguments: Any) -> Any:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            return clip(*arguments)

        self.trainer.accelerator.clip_grad_norm_ = seen  # type: ignore[method-assign]

    def step(self, sequences: Sequence[TokenSequence]) -> float:
        return self.trainer.step(sequences, SupervisedFineTuning())["train/loss"]

    def scores(self, sequences: Sequence[TokenSequence]) -> Tensor:
        return score(self.policy, sequences, self.execution.tokens_per_micro_batch).log_probs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "use"),
    [
        ("llama", "packed"),
        ("llama", "packed, with checkpointing"),
        ("qwen2", "padded, with checkpointing"),
        ("mistral", "padded"),
        ("gemma3", "padded"),
    ],
)
def test_learns_and_scores_the_same(tiny: Callable[..., Any], compiled: Counted, family: Family, use: str) -> None:
    """In float64. What is of other lengths is not compiled again."""
    how = {"packing": "packed" in use, "gradient_checkpointing": "checkpointing" in use}
    one, other = (
        Taught(tiny(family, **SLIDING.get(family, {}))[0].double(), 24, compile=each, **how) for each in (True, False)
    )
    for sequences in BATCHES:
        assert one.step(sequences) == pytest.approx(other.step(sequences), abs=1e-9)
        assert one.gradients.keys() == other.gradients.keys()
        for name, gradient in other.gradients.items():
            torch.testing.assert_close(one.gradients[name], gradient, atol=1e-9, rtol=1e-6, msg=name)
        torch.testing.assert_close(one.scores(sequences), other.scores(sequences), atol=1e-6, rtol=0)
    known = compiled.graphs
    assert known > 0
    for sequences in OTHERS:
        assert one.step(sequences) == pytest.approx(other.step(sequences), abs=1e-9)
        one.scores(sequences)
    assert compiled.graphs == known


@pytest.mark.slow
def test_models_of_a_kind_share_their_code(tiny: Callable[..., Any], compiled: Counted) -> None:
    """However many layers they have, trained and frozen apart."""
    taught = Taught(tiny("llama")[0], 24, compile=True)
    frozen = [Policy(tiny("llama", seed=seed)[0], packing=False).freeze() for seed in (1, 2)]
    found = []
    for policy in (taught.policy, *frozen):
        compile_layers(policy)
        found += [(score(policy, BATCHES[0], 1000).log_probs, compiled.graphs)]
    (first, one), (second, two), (third, all_of_them) = found
    assert 0 < one < two == all_of_them
    assert not torch.allclose(second, third)
    assert first.isfinite().all()


@pytest.mark.slow
def test_adapters_and_rounding(tiny: Callable[..., Any], compiled: Counted) -> None:
    losses = []
    for each in (True, False):
        model = tiny("qwen2")[0]
        add_adapters(model, LoRAConfig(rank=2), seed=0)
        taught = Taught(model, 1000, torch.bfloat16, packing=False, compile=each)
        losses.append([taught.step(BATCHES[0]) for _ in range(3)])
    assert compiled.graphs > 0
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0][2] < losses[0][0]


def test_a_critic(tiny: Callable[..., Any], compiled: Counted) -> None:
    policy = Policy(tiny("llama")[0], packing=False)
    critic = Critic(policy)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    expected = score_values(critic, BATCHES[0], 24)
    Trainer(critic, SETTINGS, 10, ExecutionConfig(compile=True), "critic")
    torch.testing.assert_close(score_values(critic, BATCHES[0], 24), expected, atol=1e-5, rtol=0)
    known = compiled.graphs
    assert known > 0
    score(policy, BATCHES[0], 24)
    assert compiled.graphs == known, "the policy, whose body was copied, is not compiled"


def test_draws_with_the_layers_as_they_were(tiny: Callable[..., Any], compiled: Counted) -> None:
    model, tokenizer = tiny("gemma3")
    engine = InProcessEngine(model, rows=2)
    prompts, sampling = [(1, 30, 31), (1, 33), (1, 60, 61, 62)], Sampling(1.0, 8, tokenizer.eos_token_id)
    expected = engine.generate(prompts, sampling, seed=0)
    taught = Taught(model, 1000, packing=False, compile=True)
    before = taught.scores(BATCHES[0])
    known = compiled.graphs
    assert known > 0
    assert engine.generate(prompts, sampling, seed=0) == expected
    assert compiled.graphs == known
    assert torch.equal(taught.scores(BATCHES[0]), before), "afterwards they are compiled as before"


def test_what_is_published_is_the_same_byte_for_byte(
    tiny: Callable[..., Any], compiled: Counted, tmp_path: Path
) -> None:
    for folder in ("plain", "compiled"):
        model, tokenizer = tiny("gemma3")
        taught = Taught(model, 1000, packing=False, compile=folder == "compiled")
        taught.scores(BATCHES[0])
        save(model, tokenizer, tmp_path / folder)
    assert compiled.graphs > 0
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "compiled").iterdir())
    assert all(
        (tmp_path / "plain" / name).read_bytes() == (tmp_path / "compiled" / name).read_bytes() for name in files
    )


def _two_processes(folder: Path) -> None:
    found = {}
    for strategy in STRATEGIES:
        launch = LaunchConfig(processes=distributed.world_size(), strategy=strategy)
        counted = Counted()
        torch.compiler.reset()
        with torch.compiler.set_stance("default", force_backend=counted):
            learned = training("llama", launch, 16, compile=True)
        found[strategy] = {**learned, "graphs": torch.tensor(counted.graphs)}
    torch.save(found, folder / f"{distributed.rank()}.pt")


@pytest.mark.slow
@pytest.mark.integration
def test_several_processes_learn_the_same(tmp_path: Path) -> None:
    ranks.run(2, _two_processes, tmp_path)
    alone = training("llama", LaunchConfig(), 16)
    for name, together in torch.load(tmp_path / "0.pt", weights_only=True).items():
        assert together.pop("graphs") > 0
        assert together.keys() == alone.keys()
        for each in alone:
            torch.testing.assert_close(together[each], alone[each], atol=1e-9, rtol=0, msg=f"{name}: {each}")


@pytest.mark.slow
def test_makes_kernels(tiny: Callable[..., Any]) -> None:
    """With the compiler that is used outside of tests, in float32."""
    from torch._dynamo.utils import counters

    counters.clear()
    one, other = (Taught(tiny("llama")[0], 1000, packing=False, compile=each) for each in (True, False))
    for sequences in BATCHES[:2]:
        assert one.step(sequences) == pytest.approx(other.step(sequences), abs=1e-5)
    for name, gradient in other.gradients.items():
        torch.testing.assert_close(one.gradients[name], gradient, atol=1e-4, rtol=1e-3, msg=name)
    assert counters["stats"]["unique_graphs"] > 0


def test_says_what_is_missing(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    # Else what was compiled before serves again.
    torch.compiler.reset()
    policy_module._check_compiler.cache_clear()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UsageError, match=r"no-such-compiler.*install a C\+\+ compiler.*--set execution.compile=false"):
        Trainer(Policy(tiny("llama")[0]), SETTINGS, 10, ExecutionConfig(compile=True))
