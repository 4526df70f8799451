"""What the engine says to a vLLM server and makes of its answers, against a stand-in. A real one: tests/services."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.rollouts import VllmConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError, UsageError
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.engine import Completion, Sampling, UpdatableEngine
from dpr_core.rollouts.factory import open_engine
from dpr_core.rollouts.overlap import OverlappedEngine
from dpr_core.rollouts.vllm_client import row_seed
from dpr_core.rollouts.vllm_engine import CHECKED_PROMPTS, MAX_RESTARTS, VllmEngine
from dpr_core.rollouts.vllm_server import Connection
from tests.loopback_vllm import LoopbackVllm, serving

PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,), (2, 2), (1,), (3, 1, 4)]
SAMPLING = Sampling(0.8, 5, 0)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr_core.rollouts.vllm_server.FAILURE_SETTLE_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def policy(toy: Callable[..., Any]) -> Policy:
    return Policy(toy(0))


@pytest.fixture
def server(toy: Callable[..., Any], tmp_path: Path) -> Iterator[LoopbackVllm]:
    """It starts with weights that are not the policy's."""
    toy(7).save_pretrained(tmp_path / "served")
    with serving(tmp_path / "served") as running:
        yield running


@pytest.fixture
def engine(policy: Policy, server: LoopbackVllm, tmp_path: Path) -> Iterator[VllmEngine]:
    with _opened(policy, server, tmp_path) as running:
        assert isinstance(running, VllmEngine)
        running.update_weights(0)
        yield running


def _opened(policy: Policy, server: LoopbackVllm, folder: Path, longest: int = 8, **changes: Any) -> Any:
    settings = VllmConfig.model_validate({"execution": {"url": server.url, **changes}})
    execution = ExecutionConfig(rollout_rows=3)
    return open_engine(settings, policy, policy.model.save_pretrained, longest, execution, folder / "work")


def _scores(policy: Policy, drawn: list[Completion]) -> list[list[float]]:
    sequences = [TokenSequence(c.prompt, c.response) for c in drawn]
    rows = score(policy, sequences, None, temperature=SAMPLING.temperature).log_probs.tolist()
    return [row[: c.length] for row, c in zip(rows, drawn, strict=True)]


def _change(policy: Policy, by: float = 0.5) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn_like(weight) * by)


def test_responses_are_the_policys_in_the_order_of_the_prompts(
    engine: VllmEngine, policy: Policy, server: LoopbackVllm
) -> None:
    told: list[tuple[int, int]] = []
    drawn = engine.generate(PROMPTS, SAMPLING, 3, lambda *done: told.append(done))
    assert [c.prompt for c in drawn] == PROMPTS
    for completion, expected in zip(drawn, _scores(policy, drawn), strict=True):
        assert completion.log_probs == pytest.approx(expected, abs=1e-5), (
            "at its temperature, under the policy's weights"
        )
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert len({c.response for c in drawn}) > 3
    assert drawn == engine.generate(PROMPTS, SAMPLING, 3), "this server repeats itself"
    assert [c.response for c in drawn] != [c.response for c in engine.generate(PROMPTS, SAMPLING, 4)]


def test_the_whole_distribution_is_asked_for_whatever_a_checkpoint_prefers(
    engine: VllmEngine, server: LoopbackVllm
) -> None:
    engine.generate(PROMPTS, SAMPLING, 3)
    for asked in server.drawn:
        settings = {name: asked[name] for name in ("temperature", "max_tokens", "top_p", "top_k", "min_p")}
        assert settings == {"temperature": 0.8, "max_tokens": 5, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        assert (asked["stop_token_ids"], asked["ignore_eos"], asked["repetition_penalty"]) == ([0], True, 1.0)
    rollout = server.drawn[CHECKED_PROMPTS:]
    assert sorted(asked["seed"] for asked in rollout) == sorted(row_seed(3, row) for row in range(len(PROMPTS)))


def test_no_two_rows_or_rollouts_share_a_seed() -> None:
    assert len({row_seed(seed, row) for seed in range(100) for row in range(100)}) == 10_000
    assert all(0 <= row_seed(seed, 5) < 2**63 for seed in range(100))


def test_weights_are_loaded_once_a_version_and_what_was_cached_is_forgotten(
    engine: VllmEngine, policy: Policy, server: LoopbackVllm
) -> None:
    engine.generate(PROMPTS, SAMPLING, 3)
    engine.update_weights(0)
    engine.generate(PROMPTS, SAMPLING, 4)
    assert server.asked == ["load weights-0", "reset", "version 0"]
    _change(policy)
    engine.update_weights(8)
    drawn = engine.generate(PROMPTS, SAMPLING, 5)
    assert server.asked[3:] == ["load weights-8", "reset", "version 8"]
    assert engine.version == 8
    for completion, expected in zip(drawn, _scores(policy, drawn), strict=True):
        assert completion.log_probs == pytest.approx(expected, abs=1e-5)
    assert [path.name for path in engine.folder.iterdir()] == ["weights-8"]


def test_rows_that_are_there_stay(engine: VllmEngine, server: LoopbackVllm) -> None:
    kept = {1: Completion(PROMPTS[1], (4, 0), (-9.0, -9.0))}
    drawn = engine.generate(PROMPTS, SAMPLING, 3, drawn=kept)
    assert drawn[1] == Completion(PROMPTS[1], (4, 0), (-9.0, -9.0))
    assert list(PROMPTS[1]) not in [asked["prompt"] for asked in server.drawn[CHECKED_PROMPTS:]]


@pytest.mark.parametrize("deaths", [(5,), (0,), (6, 10), (CHECKED_PROMPTS + len(PROMPTS) - 1,)])
def test_a_server_that_dies_gets_the_weights_again_and_draws_what_is_missing(
    engine: VllmEngine, policy: Policy, server: LoopbackVllm, deaths: tuple[int, ...]
) -> None:
    undisturbed = engine.generate(PROMPTS, SAMPLING, 9)
    engine._checked = False
    server.drawn.clear()
    server.asked.clear()
    server.die_at(*deaths)
    assert engine.generate(PROMPTS, SAMPLING, 9) == undisturbed
    assert server.asked == ["load weights-0", "reset", "version 0"] * len(deaths)
    asked = [asked["seed"] for asked in server.drawn]
    assert all(asked.count(row_seed(9, row)) == 1 for row in range(CHECKED_PROMPTS, len(PROMPTS)))


def test_a_server_that_dies_between_rollouts_is_no_news(engine: VllmEngine, server: LoopbackVllm) -> None:
    before = engine.generate(PROMPTS, SAMPLING, 9)
    server._restart()
    assert engine.generate(PROMPTS, SAMPLING, 9) == before


def test_a_server_that_dies_over_and_over_ends_the_run(engine: VllmEngine, server: LoopbackVllm) -> None:
    server.die_at(*range(1000))
    with pytest.raises(
        DensePathError,
        match=rf"failed {MAX_RESTARTS + 1} times in one rollout, at last with: RemoteProtocol.*Its own log says more",
    ):
        engine.generate(PROMPTS, SAMPLING, 9)


def test_a_server_of_another_architecture_keeps_its_weights(
    tiny: Callable[..., Any], policy: Policy, tmp_path: Path
) -> None:
    tiny("llama")[0].save_pretrained(tmp_path / "other")
    with serving(tmp_path / "other") as server, _opened(policy, server, tmp_path) as engine:
        engine.update_weights(0)
        with pytest.raises(UsageError, match=r"serves served \(.*other\).*vocab_size, num_hidden_layers differ"):
            engine.generate(PROMPTS, SAMPLING, 3)
        assert server.asked == []


def test_a_server_whose_log_probs_are_not_at_the_temperature_is_told_apart(
    engine: VllmEngine, policy: Policy, server: LoopbackVllm
) -> None:
    """Near 1 the two are closer than rounding may be, and yet they are told apart."""

    def at_temperature_1(choice: dict[str, Any]) -> None:
        sequence = TokenSequence(tuple(choice["prompt_token_ids"]), tuple(choice["token_ids"]))
        choice["logprobs"]["token_logprobs"] = score(policy, [sequence], None).log_probs[0].tolist()

    server.change = at_temperature_1
    for temperature in (0.5, 0.97, 1.3):
        with pytest.raises(UsageError, match=rf"at temperature 1 of what it draws at {temperature:g}; start it with"):
            engine.generate(PROMPTS, Sampling(temperature, 5, 0), 3)
    engine.generate(PROMPTS, Sampling(1.0, 5, 0), 3)


def test_a_server_that_computes_something_else_is_refused(engine: VllmEngine, server: LoopbackVllm) -> None:
    def flattened(choice: dict[str, Any]) -> None:
        choice["logprobs"]["token_logprobs"] = [each / 0.8 for each in choice["logprobs"]["token_logprobs"]]

    server.change = flattened
    with pytest.raises(UsageError, match=r"does not compute what this policy does: .*0\.\d+ nats off"):
        engine.generate(PROMPTS, SAMPLING, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": [3, 17, 0]}, "token 17, where the policy has 5"),
        ({"token_ids": [3, -1, 0]}, "token -1, where the policy has 5"),
        ({"token_ids": [0, 3, 0]}, "3 tokens, of which 1 should be there"),
        ({"token_ids": [3, 3, 3]}, "3 tokens, of which 5 should be there"),
        ({"token_ids": []}, "0 tokens, where 1 to 5 were asked for"),
        ({"token_ids": [1, 1, 1, 1, 1, 0]}, "6 tokens, where 1 to 5 were asked for"),
        ({"prompt_token_ids": [1]}, r"it read the prompt \[1\] in place of \[2\]"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "1 log-probs of 3 tokens"),
        ({"logprobs": {"token_logprobs": [-1.0, 0.5, -1.0]}}, "a log-prob above 0"),
        ({"logprobs": {"token_logprobs": [-1.0, None, -1.0]}}, "TypeError"),
        ({"logprobs": None}, "TypeError"),
    ],
)
def test_what_cannot_be_a_response_is_refused(
    engine: VllmEngine, server: LoopbackVllm, change: dict[str, Any], said: str
) -> None:
    whole = {"prompt_token_ids": [2], "token_ids": [3, 3, 0], "logprobs": {"token_logprobs": [-1.0, -1.0, -1.0]}}
    server.change = lambda choice: choice.update(whole | change)
    with pytest.raises(DensePathError, match=f"returned what cannot be a response: .*{said}"):
        engine.generate([(2,)], SAMPLING, 3)


def test_weights_of_someone_else_in_the_middle_of_a_rollout(engine: VllmEngine, server: LoopbackVllm) -> None:
    engine.generate(PROMPTS, SAMPLING, 3)

    def replaced(choice: dict[str, Any]) -> None:
        server.weights = "theirs"

    server.change = replaced
    with pytest.raises(DensePathError, match="got other weights during a rollout: give this run its own"):
        engine.generate(PROMPTS, SAMPLING, 4)


def test_a_server_without_the_endpoints_for_weights(engine: VllmEngine, server: LoopbackVllm) -> None:
    server.development = False
    with pytest.raises(UsageError, match="VLLM_SERVER_DEV_MODE=1"):
        engine.generate(PROMPTS, SAMPLING, 3)


def test_a_server_with_too_few_positions(policy: Policy, server: LoopbackVllm, tmp_path: Path) -> None:
    with _opened(policy, server, tmp_path, longest=33) as engine:
        engine.update_weights(0)
        with pytest.raises(UsageError, match="takes sequences of 32 tokens, and up to 33"):
            engine.generate(PROMPTS, SAMPLING, 3)


def test_a_server_with_a_key(
    policy: Policy, server: LoopbackVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret-key"

    def draw(engine: UpdatableEngine) -> int:
        engine.update_weights(0)
        return len(engine.generate(PROMPTS, SAMPLING, 3))

    with _opened(policy, server, tmp_path) as engine, pytest.raises(UsageError, match="refused the key"):
        draw(engine)
    monkeypatch.setenv("A_KEY", "wrong-key")
    with _opened(policy, server, tmp_path, api_key_variable="A_KEY") as engine:
        with pytest.raises(UsageError, match="refused the key") as raised:
            draw(engine)
        assert "wrong-key" not in str(raised.value)
        monkeypatch.setenv("A_KEY", "secret-key")
        assert draw(engine) == len(PROMPTS)
        monkeypatch.delenv("A_KEY")
        with pytest.raises(UsageError, match="A_KEY"):
            draw(engine)


def test_a_server_that_is_started_while_its_engine_is_closed_ends_too(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starting:
        name, own, running = "a server", True, False

        def __init__(self) -> None:
            self.begun, self.closed = threading.Event(), threading.Event()

        def start(self, weights: Path) -> None:
            self.begun.set()
            assert self.closed.wait(30)
            self.running = True

        def connection(self) -> Connection:
            return Connection("http://127.0.0.1:9")

        def mark_failed(self) -> None:
            pass

        def close(self) -> None:
            self.running = False
            self.closed.set()

    server = Starting()
    monkeypatch.setattr("dpr_core.rollouts.factory.open_server", lambda *_: server)
    overlapping = VllmConfig(overlap=True)
    with open_engine(
        overlapping, policy, policy.model.save_pretrained, 8, ExecutionConfig(), tmp_path / "work"
    ) as engine:
        assert isinstance(engine, OverlappedEngine)
        engine.update_weights(0)
        engine.begin(PROMPTS, SAMPLING, 3)
        assert server.begun.wait(30)
    assert server.closed.is_set()
    assert not server.running


def test_a_server_that_is_not_there(policy: Policy, server: LoopbackVllm, tmp_path: Path) -> None:
    with _opened(policy, server, tmp_path, url="http://127.0.0.1:9") as engine:
        engine.update_weights(0)
        with pytest.raises(DensePathError, match="http://127.0.0.1:9 does not answer; start it"):
            engine.generate(PROMPTS, SAMPLING, 3)
