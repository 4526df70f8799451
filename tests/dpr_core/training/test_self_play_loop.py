import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dpr_core.algorithms import self_play_loss
from dpr_core.algorithms.pair_loss import PairLossSurrogate, losses_and_slopes, surrogate_inputs
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.imitation import GsilConfig, SelfPlayConfig, SpinConfig
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Engine, ScriptedEngine
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.self_play_loop import (
    ResponsePair,
    SelfPlay,
    method_of_round,
    steps_of_rounds,
)
from dpr_core.training.trainer import Trainer

EOS = 0
DEMONSTRATIONS = [
    TokenSequence((1, 2), (3, 3, 0)),
    TokenSequence((3,), (1, 0)),
    TokenSequence((4, 4, 1), (2, 4, 1, 3, 0)),
    TokenSequence((2,), (0,)),
    TokenSequence((1,), (4, 2, 0)),
]
SCRIPT = {(1, 2): (2, 0), (3,): (4, 1, 4, 4), (4, 4, 1): (0,), (2,): (1, 3, 0), (1,): (4, 2, 0)}
METHODS = [
    SpinConfig(beta=0.3),
    *(GsilConfig(loss=name, scale=0.2, shift=0.3) for name in ("bernoulli", "brier", "hinge", "kliep", "lsif")),  # type: ignore[arg-type]
]


class Watching(InMemoryRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.progress: list[tuple[int, int, str]] = []

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.tables[path] = rows

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        self.progress.append((step, total, note))

    def updates(self) -> list[dict[str, float]]:
        return [values for _, values in self.history if "train/loss" in values]


def _config(**changes: Any) -> SelfPlayConfig:
    small = {
        "learning_rate": 1e-2, "later_learning_rate": None, "batch_size": 5, "rounds": 1, "max_response_tokens": 4,
        "warmup_ratio": 0.0, "final_learning_rate_share": 1.0,
    }  # fmt: skip
    return SelfPlayConfig(**{**small, **changes})


def _loop(model: Any, config: SelfPlayConfig, engine: Engine | None = None) -> tuple[SelfPlay, Watching]:
    recorder = Watching()
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    return SelfPlay(Policy(model), engine or ScriptedEngine(SCRIPT), config, EOS, decode, recorder), recorder


def _pairs() -> list[ResponsePair]:
    return [ResponsePair(row, TokenSequence(row.prompt, SCRIPT[row.prompt])) for row in DEMONSTRATIONS]


def _plain_log_prob(model: Any, row: TokenSequence) -> Tensor:
    logits = model(torch.tensor([row.prompt + row.response])).logits[0, len(row.prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[range(len(row.response)), list(row.response)].sum()


def _plain_loss(settings: Any, model: Any, opponent: Any, pairs: Sequence[ResponsePair]) -> Tensor:
    """The whole batch in one autograd graph, pair by pair."""
    method = self_play_loss(settings)
    ratios = [
        torch.stack([_plain_log_prob(model, row) - _plain_log_prob(opponent, row).detach() for row in pair])
        for pair in pairs
    ]
    return torch.stack([method(*ratio) for ratio in ratios]).mean()


@pytest.mark.parametrize("settings", METHODS, ids=str)
@pytest.mark.parametrize("budget", [1, 9, 16, 1000])
def test_the_gradient_is_that_of_the_pairs_loss_for_any_micro_batches(
    toy: Callable[..., Any], settings: Any, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain, opponent = toy(0), toy(0), toy(1)
    loop, _ = _loop(model, _config(method=settings, execution=ExecutionConfig(tokens_per_micro_batch=budget)))
    expected = _plain_loss(settings, plain, opponent, _pairs())
    expected.backward()

    trainer = Trainer(loop.policy, loop.config, 1, loop.config.execution)
    found: dict[str, Tensor] = {}

    def look(*_: Any) -> Tensor:
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return torch.zeros(())

    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", look)
    theirs, _ = _loop(opponent, loop.config)
    inputs = surrogate_inputs(
        *losses_and_slopes(self_play_loss(settings), loop.log_probs(_pairs()) - theirs.log_probs(_pairs())), 5
    )
    rows = [*DEMONSTRATIONS, *(pair.generated for pair in _pairs())]
    metrics = trainer.step(rows, PairLossSurrogate(), inputs)
    assert metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_a_round_takes_the_steps_that_plain_torch_takes(toy: Callable[..., Any], settings: Any) -> None:
    """Three passes of one batch: from the second on, the policy is not its opponent any more."""
    loop, recorder = _loop(toy(0), _config(method=settings, epochs=3, learning_rate=1e-3))
    loop.run(DEMONSTRATIONS)
    plain, opponent = toy(0), toy(0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    for update in recorder.updates():
        loss = _plain_loss(settings, plain, opponent, _pairs())
        assert update["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    assert len(recorder.updates()) == 3
    # Adam turns the rounding of a gradient that is almost 0 into a step, so single weights may differ.
    found, expected, start = (
        torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        for model in (loop.policy.model, plain, opponent)
    )
    assert float((found - expected).norm()) < 0.02 * float((expected - start).norm())


def test_a_round_starts_at_the_loss_of_a_policy_that_is_its_own_opponent(toy: Callable[..., Any]) -> None:
    loop, recorder = _loop(toy(0), _config(rounds=2, mix_previous=True))
    loop.run(DEMONSTRATIONS)
    first, second = recorder.updates()[0], recorder.updates()[1]
    for start in (first, second):
        assert start["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
        for name in ("margin", "log_ratio_demonstrations", "log_ratio_generated"):
            assert start[f"train/{name}"] == pytest.approx(0, abs=1e-5)


def test_what_is_reported(toy: Callable[..., Any]) -> None:
    model, opponent = toy(0), toy(0)
    loop, recorder = _loop(model, _config(epochs=2))
    told = loop.run(DEMONSTRATIONS)
    assert [step for step, _ in recorder.history] == [0, 1, 2]
    start = recorder.history[0][1]
    assert start == {"rollout/length": 13 / 5, "rollout/eos_rate": 0.8, "rollout/copies": 0.2}
    assert told == start | recorder.updates()[-1]
    # The metrics of the second step are those of the policy after the first.
    once, _ = _loop(toy(0), _config())
    once.run(DEMONSTRATIONS)
    with torch.no_grad():
        ratios = [
            [float(_plain_log_prob(once.policy.model, row) - _plain_log_prob(opponent, row)) for row in pair]
            for pair in _pairs()
        ]
    margins = [real - own for real, own in ratios]
    assert told["train/accuracy"] == sum(margin > 0 for margin in margins) / 5
    assert told["train/margin"] == pytest.approx(sum(margins) / 5, abs=1e-4)
    assert told["train/log_ratio_demonstrations"] == pytest.approx(sum(real for real, _ in ratios) / 5, abs=1e-4)
    assert told["train/log_ratio_generated"] == pytest.approx(sum(own for _, own in ratios) / 5, abs=1e-4)
    rows = {row["prompt"]: row for row in recorder.tables["samples/round-01.json"]}
    assert rows["3"] == {"prompt": "3", "demonstration": "1 0", "generated": "4 1 4 4", "tokens": 4, "ended": False}
    assert len(rows) == 5
    assert [(step, total) for step, total, _ in recorder.progress] == [(1, 2), (2, 2)]


def test_each_round_draws_from_the_policy_as_it_is_then(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(0)
    loop, recorder = _loop(model, _config(rounds=3, learning_rate=0.05), InProcessEngine(model))
    drawn: list[tuple[list[ResponsePair], list[ResponsePair]]] = []
    play = loop.play

    def checked(rows: Sequence[TokenSequence], number: int, *more: Any) -> list[ResponsePair]:
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        pairs = play(rows, number, *more)
        fresh = toy(0)
        fresh.load_state_dict(weights, strict=False)
        again, _ = _loop(fresh, loop.config, InProcessEngine(fresh))
        drawn.append((pairs, again.play(rows, number)))
        return pairs

    monkeypatch.setattr(loop, "play", checked)
    loop.run(DEMONSTRATIONS)
    assert all(pairs == again for pairs, again in drawn)
    own = [{pair.generated for pair in pairs} for pairs, _ in drawn]
    assert own[0] != own[1] != own[2]
    assert sorted(recorder.tables) == [f"samples/round-0{i}.json" for i in (1, 2, 3)]


@pytest.mark.parametrize(("mix", "sizes"), [(True, [5, 10, 10]), (False, [5, 5, 5])])
def test_later_rounds_learn_from_the_previous_rounds_pairs_too(
    toy: Callable[..., Any], mix: bool, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(0)
    config = _config(rounds=3, mix_previous=mix, batch_size=10, learning_rate=0.05)
    loop, _ = _loop(model, config, InProcessEngine(model))
    fresh: list[list[ResponsePair]] = []
    learned: list[Sequence[ResponsePair]] = []
    play, learn = loop.play, loop._learn

    def playing(*arguments: Any) -> list[ResponsePair]:
        fresh.append(play(*arguments))
        return fresh[-1]

    def learning(method: Any, pairs: Sequence[ResponsePair], *more: Any) -> dict[str, float]:
        learned.append(pairs)
        return learn(method, pairs, *more)

    monkeypatch.setattr(loop, "play", playing)
    monkeypatch.setattr(loop, "_learn", learning)
    loop.run(DEMONSTRATIONS)
    assert [len(pairs) for pairs in learned] == sizes
    assert Counter(learned[2]) == Counter(fresh[2] + (fresh[1] if mix else []))


def test_older_pairs_are_scored_by_the_opponent_of_the_round(toy: Callable[..., Any]) -> None:
    """At the start of a round all its log-ratios are 0, those of the previous round's pairs among them."""
    model = toy(0)
    loop, recorder = _loop(model, _config(rounds=2, learning_rate=0.05, batch_size=1), InProcessEngine(model))
    loop.run(DEMONSTRATIONS)
    starts = [values for step, values in recorder.history if step in (1, 6) and "train/loss" in values]
    assert [start["train/margin"] for start in starts] == pytest.approx([0, 0], abs=1e-5)
    assert abs(recorder.updates()[4]["train/margin"]) > 1e-2


def test_a_learning_rate_schedule_spans_a_round(toy: Callable[..., Any]) -> None:
    config = _config(
        rounds=2, batch_size=1, mix_previous=False, warmup_ratio=0.2, final_learning_rate_share=0.0,
        learning_rate=1e-3, later_learning_rate=1e-4,
    )  # fmt: skip
    loop, recorder = _loop(toy(0), config)
    loop.run(DEMONSTRATIONS)
    rates = [values["train/learning_rate"] for values in recorder.updates()]
    shares = [0.5, 1.0, 0.75, 0.5, 0.25]
    assert rates == pytest.approx([1e-3 * share for share in shares] + [1e-4 * share for share in shares])


@pytest.mark.parametrize(
    ("demonstrations", "changes", "expected"),
    [
        (50_000, {"rounds": 2, "batch_size": 64, "mix_previous": True}, [782, 1563]),
        (50_000, {"rounds": 2, "batch_size": 64, "mix_previous": False}, [782, 782]),
        (100, {"rounds": 3, "batch_size": 8, "pairs": 20, "epochs": 2}, [6, 10, 10]),
        (10, {"rounds": 1, "batch_size": 8, "pairs": 20}, [2]),
    ],
)
def test_steps_of_rounds_by_hand(demonstrations: int, changes: dict[str, Any], expected: list[int]) -> None:
    assert steps_of_rounds(demonstrations, SelfPlayConfig(**changes)) == expected


def test_a_round_draws_its_demonstrations_without_repeats_and_each_round_others(toy: Callable[..., Any]) -> None:
    loop, _ = _loop(toy(0), _config(pairs=3))
    draws = [[pair.demonstration for pair in loop.play(DEMONSTRATIONS, number)] for number in range(1, 9)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 4
    assert {row for draw in draws for row in draw} == set(DEMONSTRATIONS)
    other, _ = _loop(toy(0), _config(pairs=3, seed=1))
    assert [[p.demonstration for p in other.play(DEMONSTRATIONS, n)] for n in range(1, 9)] != draws


def test_a_run_is_repeatable_and_its_seed_matters(toy: Callable[..., Any]) -> None:
    def weights(seed: int) -> list[Tensor]:
        model = toy(0)
        loop, _ = _loop(model, _config(seed=seed, rounds=2, batch_size=2), InProcessEngine(model))
        loop.run(DEMONSTRATIONS)
        return [p.detach() for p in model.parameters()]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_self_play_moves_the_policy_towards_the_demonstrations(toy: Callable[..., Any], settings: Any) -> None:
    model = toy(0)
    config = _config(method=settings, rounds=4, epochs=10, learning_rate=3e-3)
    loop, _ = _loop(model, config, InProcessEngine(model))
    before = score(Policy(toy(0)), DEMONSTRATIONS, 1000).log_probs.sum()
    loop.run(DEMONSTRATIONS)
    assert score(loop.policy, DEMONSTRATIONS, 1000).log_probs.sum() > before + 1


def test_a_loss_that_overflows_is_refused_and_the_step_not_applied(toy: Callable[..., Any]) -> None:
    config = _config(method=GsilConfig(loss="kliep", shift=1e39), execution=ExecutionConfig(skipped_steps=0))
    loop, recorder = _loop(toy(0), config)
    with pytest.raises(DensePathError, match="the step was not applied"):
        loop.run(DEMONSTRATIONS)
    assert recorder.updates() == []
    assert all(a.equal(b) for a, b in zip(loop.policy.model.parameters(), toy(0).parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma3"])
def test_training_and_scoring_see_the_same_log_probs(tiny: Callable[..., Any], family: Any) -> None:
    """No dropout: the slopes, taken in scoring mode, belong to the log-probs of the training pass."""
    policy = Policy(tiny(family)[0])
    batch = collate([TokenSequence((1, 30), (40, 41, 2)), TokenSequence((1,), (50, 2))])
    with torch.no_grad():
        assert torch.equal(policy.train()(batch).log_probs, policy.eval()(batch).log_probs)


def test_the_last_round_may_have_another_beta_and_the_rate_may_fall_later() -> None:
    config = SelfPlayConfig(method=SpinConfig(beta=0.1, last_beta=5), rounds=4, later_from_round=3)
    assert [method_of_round(config, number).beta for number in (1, 2, 3, 4)] == [0.1, 0.1, 0.1, 5]  # type: ignore[union-attr]
    assert method_of_round(config.model_copy(update={"rounds": 1}), 1) == config.method
    plain = SelfPlayConfig()
    assert method_of_round(plain, 3) is plain.method
    left_out = {"optimizer", "later_from_round"}
    assert not left_out & plain.identity().keys()
    assert plain.identity()["method"] == {"type": "spin", "beta": 0.1}
    assert config.identity()["method"]["last_beta"] == 5
    assert config.identity()["later_from_round"] == 3


def test_the_rate_of_later_rounds(toy: Callable[..., Any]) -> None:
    config = _config(rounds=3, learning_rate=1e-3, later_learning_rate=1e-4, later_from_round=3)
    loop, recorder = _loop(toy(0), config)
    loop.run(DEMONSTRATIONS)
    rates = [update["train/learning_rate"] for update in recorder.updates()]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4, 1e-4])
