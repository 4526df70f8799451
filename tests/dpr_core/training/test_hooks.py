"""Hooks of the loop: training on what a vLLM server has sampled, against a stand-in of the server, and prefetching."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.algorithms.kl_control import Constant
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import Algorithm1Config, ReinforceConfig
from dpr_core.config.rollouts import VllmConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Sampling, ScriptedEngine, UpdatableEngine
from dpr_core.rollouts.factory import open_engine
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.hooks import Iteration, Prefetch, Resume, corrected
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.rollout import Rollout
from dpr_core.training.schedule import rollout_requests
from dpr_core.training.trainer import Trainer
from tests.loopback_vllm import LoopbackVllm, serving

PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,)]


class Watching(InMemoryRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.tables[path] = rows

    def told(self, name: str) -> list[float]:
        return [values[f"rollout/{name}"] for _, values in self.history if f"rollout/{name}" in values]


@pytest.fixture
def server(toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackVllm]:
    monkeypatch.setattr("dpr_core.rollouts.vllm_server.FAILURE_SETTLE_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    toy(0).save_pretrained(tmp_path / "served")
    with serving(tmp_path / "served") as running:
        yield running


def _config(**changes: Any) -> ReinforceConfig:
    return ReinforceConfig.model_validate(
        {
            "learning_rate": 3e-2, "batch_size": 6, "rollout_batch_size": 6, "iterations": 3, "max_response_tokens": 3,
            "warmup_ratio": 0.0, "final_learning_rate_share": 1.0, "algorithm": {"type": "algorithm1"}, **changes,
        }
    )  # fmt: skip


def _train(
    toy: Callable[..., Any], config: ReinforceConfig, folder: Path, engine: Any = None
) -> tuple[ReinforceLoop, Watching]:
    policy, recorder = Policy(toy(0)), Watching()
    reward = TokenReward(Policy(toy(0)), Policy(toy(1)), "baseline_relative")
    execution = ExecutionConfig()

    def run(engine: UpdatableEngine) -> ReinforceLoop:
        trainer = Trainer(policy, config, 3, execution)
        loop = ReinforceLoop(policy, engine, reward, trainer, config, 0, str, recorder)
        loop.run(PROMPTS)
        return loop

    if engine is not None:
        return run(engine(policy.model)), recorder
    with open_engine(
        config.rollouts, policy, policy.model.save_pretrained, 6, execution, folder / "work"
    ) as opened_engine:
        return run(opened_engine), recorder


def _vllm(server: LoopbackVllm, **changes: Any) -> dict[str, Any]:
    return {"type": "vllm", "execution": {"url": server.url}, **changes}


def test_every_rollout_comes_from_the_policy_as_it_is(
    toy: Callable[..., Any], server: LoopbackVllm, tmp_path: Path
) -> None:
    _, recorder = _train(toy, _config(rollouts=_vllm(server), batch_size=3, algorithm={"type": "ppo"}), tmp_path)
    assert recorder.told("policy_version") == [0, 2, 4, 6]
    assert [each for each in server.asked if each.startswith("load")] == [f"load weights-{n}" for n in (0, 2, 4, 6)]
    assert max(recorder.told("engine_mismatch_kl")) < 1e-9
    assert recorder.told("importance_mean") == pytest.approx([1.0] * 4, abs=1e-4)
    assert recorder.told("importance_truncated_share") == [0.0] * 4
    assert [row["policy_version"] for row in recorder.tables["samples/iteration-0003.json"]] == [4] * 6
    seeds = [asked["seed"] for asked in server.drawn[4:]]
    assert len(set(seeds)) == 4 * 6


def test_a_server_that_dies_costs_no_iteration(toy: Callable[..., Any], server: LoopbackVllm, tmp_path: Path) -> None:
    config = _config(rollouts=_vllm(server))
    undisturbed, _ = _train(toy, config, tmp_path / "whole")
    server.die_at(9, 14, 20)
    disturbed, _ = _train(toy, config, tmp_path / "killed")
    for ours, theirs in zip(undisturbed.policy.parameters(), disturbed.policy.parameters(), strict=True):
        assert ours.equal(theirs)


def test_overlapping_rollouts_are_one_iteration_old(
    toy: Callable[..., Any], server: LoopbackVllm, tmp_path: Path
) -> None:
    _, recorder = _train(toy, _config(rollouts=_vllm(server, overlap=True, importance_cap=1.05)), tmp_path)
    assert recorder.told("policy_version") == [0, 0, 1, 3], "the last one measures the policy that comes out"
    lagging = recorder.told("engine_mismatch_kl")
    assert min(lagging[1:3]) > 1e-4 > max(lagging[0], lagging[3])
    assert max(recorder.told("importance_truncated_share")[1:3]) > 0
    assert recorder.told("importance_truncated_share")[0] == 0


def test_an_overlapping_batch_that_fails_ends_the_run(
    toy: Callable[..., Any], server: LoopbackVllm, tmp_path: Path
) -> None:
    def changed(choice: Mapping[str, Any]) -> None:
        if len(server.drawn) > 12:
            server.weights = "theirs"

    server.change = changed
    with pytest.raises(Exception, match="got other weights"):
        _train(toy, _config(rollouts=_vllm(server, overlap=True)), tmp_path)


def test_advantages_are_weighted_by_the_truncated_ratio(toy: Callable[..., Any]) -> None:
    script = {(1, 2): (3, 0), (3,): (1, 2, 4), (4, 4, 1): (0,), (2,): (2, 2, 0)}
    policy = Policy(toy(0))
    completions = ScriptedEngine(script, log_prob=-1.3).generate(PROMPTS, Sampling(1.0, 3, 0), 0)
    sequences = [TokenSequence(c.prompt, c.response) for c in completions]
    scored = TokenReward(policy, Policy(toy(1)), "baseline_relative")(sequences)
    ours = score(policy, sequences, None).log_probs
    rollout = Rollout(completions, sequences, scored, ours, ours, None, version=5)
    found, metrics = corrected(torch.full(ours.shape, 2.0), rollout, VllmConfig(importance_cap=1.1))
    weights = [
        [min(float(torch.exp(ours[i, t] + 1.3)), 1.1) for t in range(len(s.response))] for i, s in enumerate(sequences)
    ]
    for row, expected in zip(found.tolist(), weights, strict=True):
        assert row == pytest.approx([2 * w for w in expected] + [2.0] * (3 - len(expected)), rel=1e-5)
    flat = [w for row in weights for w in row]
    assert metrics["rollout/importance_mean"] == pytest.approx(sum(flat) / 9)
    assert metrics["rollout/importance_truncated_share"] == pytest.approx(sum(w == 1.1 for w in flat) / 9)
    assert 0 < metrics["rollout/importance_truncated_share"] < 1
    assert metrics["rollout/policy_version"] == 5


def test_in_the_process_nothing_is_weighted(toy: Callable[..., Any], tmp_path: Path) -> None:
    """An engine whose log-probs are all wrong changes nothing there, since the policy itself has drawn."""
    config = _config(algorithm=Algorithm1Config().model_dump())
    right, recorder = _train(toy, config, tmp_path)

    class Wrong(InProcessEngine):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            drawn = super().generate(*args, **kwargs)
            return [type(c)(c.prompt, c.response, (-9.0,) * c.length) for c in drawn]

    wrong, _ = _train(toy, config, tmp_path, Wrong)
    assert all(a.equal(b) for a, b in zip(right.policy.parameters(), wrong.policy.parameters(), strict=True))
    assert recorder.told("importance_mean") == []
    assert [row["policy_version"] for row in recorder.tables["samples/iteration-0003.json"]] == [2] * 6


def test_prefetch_samples_the_next_request_also_after_a_resume() -> None:
    begun: list[int] = []

    class Engine:
        def begin(self, prompts: Any, sampling: Any, seed: int) -> None:
            begun.append(seed)

    config = _config(iterations=5)
    seeds = [request.seed for request in islice(rollout_requests(PROMPTS, config, 0), 6)]
    prefetch = Prefetch(Engine(), rollout_requests(PROMPTS, config, 0))  # type: ignore[arg-type]
    for number in (3, 4, 5, 6):
        assert prefetch.before_update(Iteration(number, 5, 0, None, None)) is False  # type: ignore[arg-type]
    assert begun == seeds[3:5], "the last rollout waits for the update"


@pytest.mark.parametrize(
    "state", [{"done": 2, "policy": {}, "kl": {}}, {"done": 2, "metrics": {}, "parts": {"Old": {}}}]
)
def test_a_state_of_another_version_of_the_loop_is_refused_in_a_sentence(state: dict[str, Any]) -> None:
    class Left(InMemoryRecorder):
        def restore(self) -> Any:
            return state

    with pytest.raises(DensePathError, match="interrupted under another version.*start it anew with --force"):
        Resume(Left(), [Constant(0.1)])
