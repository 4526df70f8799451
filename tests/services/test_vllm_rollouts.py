"""A real vLLM as rollout engine, on the CPU: what it draws, its weights, its death, and the training that it serves."""

import itertools
import os
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.rollouts import VllmExecutionConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.checkpoints import save
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Completion, Sampling, UpdatableEngine, log_probs
from dpr_core.rollouts.factory import open_server
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.rollouts.vllm_engine import VllmEngine, WeightSource, shape_of
from dpr_core.rollouts.vllm_server import ManagedServer
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.trainer import Trainer

pytestmark = pytest.mark.services

ENVIRONMENT = Path(os.environ.get("DENSE_PATH_VLLM") or Path(__file__).parents[2] / ".venv-vllm")
PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,)]
END, VOCABULARY, LONGEST = 0, 5, 3
ITERATIONS, SEEDS = 12, 4


def network(seed: int) -> PreTrainedModel:
    """Over so few tokens that all responses can be listed; heads are as wide as vLLM's smallest."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.25, generator=generator)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({name: i for i, name in enumerate("eabcd")}, unk_token="e"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="e", pad_token="e", unk_token="e")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no vLLM in {ENVIRONMENT}: `make install-vllm` makes it, or set DENSE_PATH_VLLM")
    folder = tmp_path_factory.mktemp("vllm")
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CACHE_ROOT": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setenv(name, value)
        settings = VllmExecutionConfig(python=str(python), eager=True)
        running = open_server(settings, torch.float32, 16, 64, folder)
        assert isinstance(running, ManagedServer)
        yield running
        running.close()


Engines = Callable[[Policy], VllmEngine]


@pytest.fixture
def engine_of(server: ManagedServer, tmp_path: Path) -> Engines:
    """An engine for a policy, on the one server that all tests share."""

    def build(policy: Policy) -> VllmEngine:
        folder = tmp_path / f"weights-of-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()

        def scores(sequences: Sequence[TokenSequence], temperature: float) -> Tensor:
            return score(policy, sequences, None, temperature=temperature).log_probs

        source = WeightSource(lambda to: save(policy.model, tokenizer(), to), scores, shape_of(policy.model.config), 16)
        return VllmEngine(server, source, folder, rows=64, seconds=120.0)

    return build


def gap(policy: Policy, drawn: list[Completion], temperature: float = 1.0) -> float:
    sequences = [TokenSequence(c.prompt, c.response) for c in drawn]
    ours = score(policy, sequences, None, temperature=temperature).log_probs
    return float((ours - log_probs(drawn)).abs().max())


def test_tokens_and_log_probs_are_the_policys(engine_of: Engines) -> None:
    policy = Policy(network(0))
    engine = engine_of(policy)
    engine.update_weights(0)
    sampling = Sampling(0.7, 6, END)
    drawn = engine.generate(PROMPTS * 10, sampling, 3)
    assert [c.prompt for c in drawn] == PROMPTS * 10
    assert {c.ended(END) for c in drawn} == {True, False}
    assert all(c.ended(END) or c.length == 6 for c in drawn)
    assert gap(policy, drawn, 0.7) < 1e-4, "at the temperature of the draw"
    assert len({c.response for c in drawn[::4]}) > 3, "the rows of one prompt have seeds of their own"


def test_what_is_drawn_is_distributed_as_the_policy_at_the_temperature(engine_of: Engines) -> None:
    policy, count = Policy(network(1)), 600
    engine = engine_of(policy)
    engine.update_weights(0)
    drawn = engine.generate([(3, 1)] * count, Sampling(0.7, 1, END), 5)
    found = Counter(c.response[0] for c in drawn)
    with torch.no_grad():
        exact = torch.softmax(policy.model(torch.tensor([[3, 1]])).logits[0, -1].double() / 0.7, -1)
    expected = [count * float(p) for p in exact]
    assert stats.chisquare([found[token] for token in range(VOCABULARY)], expected).pvalue > 1e-4, (found, expected)


def test_new_weights_change_what_is_drawn(engine_of: Engines) -> None:
    policy = Policy(network(0))
    engine = engine_of(policy)
    engine.update_weights(0)
    before = engine.generate(PROMPTS * 4, Sampling(1.0, 6, END), 3)
    policy.model.load_state_dict(network(2).state_dict())
    engine.update_weights(1)
    after = engine.generate(PROMPTS * 4, Sampling(1.0, 6, END), 3)
    assert gap(policy, after) < 1e-4
    assert gap(policy, before) > 0.1
    assert [c.response for c in after] != [c.response for c in before]


def exact_return(policy: PreTrainedModel) -> float:
    """Expected return over the prompts, from every response there is."""
    responses = [
        (*body, last)
        for n in range(LONGEST)
        for body in itertools.product(range(1, VOCABULARY), repeat=n)
        for last in range(VOCABULARY)
        if last == END or n == LONGEST - 1
    ]
    rows = [TokenSequence(p, r) for p in PROMPTS for r in responses]
    own, sft, reference = (
        score(Policy(m), rows, 100_000).log_probs.double().sum(-1) for m in (policy, network(0), network(1))
    )
    assert float(own.exp().sum()) == pytest.approx(len(PROMPTS), abs=1e-4)
    return float((own.exp() * (sft - reference)).sum()) / len(PROMPTS)


def trained(
    seed: int, engine_of: Callable[[Policy], UpdatableEngine], **rollouts: object
) -> tuple[float, InMemoryRecorder]:
    """The exact expected return after some iterations."""
    config = ReinforceConfig.model_validate(
        {
            "learning_rate": 5e-4, "batch_size": 64, "rollout_batch_size": 64, "iterations": ITERATIONS, "seed": seed,
            "max_response_tokens": LONGEST, "warmup_ratio": 0.0, "algorithm": {"type": "algorithm1"},
            "rollouts": rollouts,
        }
    )  # fmt: skip
    policy, recorder = Policy(network(0)), InMemoryRecorder()
    reward = TokenReward(Policy(network(0)), Policy(network(1)), "baseline_relative")
    trainer = Trainer(policy, config, ITERATIONS, ExecutionConfig())
    ReinforceLoop(policy, engine_of(policy), reward, trainer, config, END, str, recorder).run(PROMPTS)
    return exact_return(policy.model), recorder


def test_training_ends_where_it_ends_in_the_process(engine_of: Engines) -> None:
    """The means over seeds are as near as their own spread says, which is small beside what is learned."""
    start = exact_return(network(0))
    inside = [trained(seed, lambda policy: InProcessEngine(policy.model))[0] for seed in range(3 * SEEDS)]
    served, mismatches = [], []
    for seed in range(100, 100 + SEEDS):
        end, recorder = trained(seed, engine_of, type="vllm")
        served.append(end)
        told = [values for _, values in recorder.history if "rollout/policy_version" in values]
        assert [values["rollout/policy_version"] for values in told] == list(range(ITERATIONS + 1))
        mismatches += [values["rollout/engine_mismatch_kl"] for values in told]
    learned = statistics.mean(inside) - start
    apart = stats.ttest_ind(served, inside, equal_var=True).confidence_interval(0.99)
    print(f"start {start:.3f}, in the process {inside}, vLLM {served}, 99% interval of the difference {apart}")
    assert max(mismatches) < 1e-6
    assert min(served) > start
    assert apart.low < 0 < apart.high
    assert apart.high - apart.low < learned / 2, "the interval says something"


def test_a_server_that_is_killed_in_a_rollout_is_started_again(engine_of: Engines, server: ManagedServer) -> None:
    policy = Policy(network(0))
    engine = engine_of(policy)
    engine.update_weights(0)
    engine.generate(PROMPTS, Sampling(1.0, 8, END), 1)
    drawn: dict[int, Completion] = {}
    kept: list[int] = []

    def kill(done: int, total: int) -> None:
        if not kept:
            kept.extend(drawn)
            first = drawn[kept[0]]
            assert engine.server is server
            assert server._process is not None
            os.killpg(server._process.pid, signal.SIGKILL)
            drawn[kept[0]] = Completion(first.prompt, first.response, (*first.log_probs[:-1], -99.0))

    prompts = PROMPTS * 100
    completions = engine.generate(prompts, Sampling(1.0, 8, END), 2, kill, drawn)
    assert [c.prompt for c in completions] == prompts
    assert 0 < len(kept) < len(prompts)
    assert completions[kept[0]].log_probs[-1] == -99.0, "what was there has stayed"
    assert gap(policy, [c for row, c in enumerate(completions) if row != kept[0]]) < 1e-4, (
        "the weights are the policy's"
    )


def _alive(leader: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in listed if line.split()[0] == str(leader) and not line.split()[1].startswith("Z")]


def test_nothing_is_left_of_a_server_that_is_closed(server: ManagedServer) -> None:
    process, folder = server._process, server._socket.parent
    assert process is not None
    assert folder.exists()
    server.close()
    until = time.monotonic() + 30
    while (left := _alive(process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []
    assert not folder.exists()
