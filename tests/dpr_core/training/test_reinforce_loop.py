import copy
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import Advantages, LossInputs, required
from dpr_core.algorithms.full_vocabulary import FullVocabulary
from dpr_core.config.reinforce import (
    Algorithm1Config,
    FullVocabularyConfig,
    KLLinearConfig,
    KLStopConfig,
    KLTargetConfig,
    PPOConfig,
    ReinforceConfig,
    ReinforcePlusPlusConfig,
    SequenceReinforceConfig,
    WitnessStopConfig,
)
from dpr_core.config.training import ExecutionConfig, LoRAConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.masking import masked_sum
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Completion, Engine, ScriptedEngine
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.hooks import KEPT_FILE, KEPT_METRICS, CriticLearner, Iteration
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import iterations, optimizer_steps
from dpr_core.training.trainer import Trainer

PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,)]
EOS = 0


class Watching(InMemoryRecorder):
    """Also remembers tables, and the policy's weights when each rollout is reported: before its update."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.weights: list[dict[str, Tensor]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.said: list[str] = []
        """Of the progress."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if "rollout/kl" in values:
            self.weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.tables[path] = rows

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        self.said.append(f"{step} of {'at most ' if at_most else ''}{total}: {note.partition(' ')[0]}")

    def part(self, what: str, done: int, total: int) -> None:
        self.said.append(f"{what} {done}/{total}")

    def rollouts(self) -> list[dict[str, float]]:
        """What is told of each rollout, in part with its update."""
        told = {step: dict(values) for step, values in self.history if "rollout/kl" in values}
        for step, values in self.history:
            told.get(step, {}).update({name: v for name, v in values.items() if name.startswith("rollout/")})
        return list(told.values())

    def updates(self) -> list[dict[str, float]]:
        return [values for _, values in self.history if "train/loss" in values]


def _config(**changes: Any) -> ReinforceConfig:
    small = {
        "learning_rate": 1e-2, "batch_size": 8, "rollout_batch_size": 8, "iterations": 3, "max_response_tokens": 3,
        "warmup_ratio": 0.0, "final_learning_rate_share": 1.0, "algorithm": Algorithm1Config(),
    }  # fmt: skip
    return ReinforceConfig(**{**small, **changes})


def _method(
    toy: Callable[..., Any], config: ReinforceConfig, engine: Callable[[PreTrainedModel], Engine] = InProcessEngine
) -> tuple[ReinforceLoop, Watching]:
    model = toy(0)
    policy, recorder = Policy(model), Watching(model)
    reward = TokenReward(Policy(toy(0)), Policy(toy(1)), "baseline_relative")
    updates = (
        iterations(len(PROMPTS), config) * config.rollout_batch_size * config.samples_per_prompt
    ) // config.batch_size
    trainer = Trainer(policy, config, updates, ExecutionConfig())
    decode = lambda ids: " ".join(map(str, ids))  # noqa: E731
    return ReinforceLoop(policy, engine(model), reward, trainer, config, EOS, decode, recorder), recorder


def test_rollouts_and_updates_are_reported_under_their_names(toy: Callable[..., Any]) -> None:
    method, recorder = _method(toy, _config(algorithm=ReinforcePlusPlusConfig(), batch_size=4))
    last = method.run(PROMPTS)
    assert len(recorder.rollouts()) == 3 + 1, "the last one measures the policy that comes out"
    assert len(recorder.updates()) == 6
    names = (
        "reward",
        "return",
        "return_deviation",
        "kl",
        "kl_weight",
        "lambda",
        "entropy",
        "length",
        "eos_rate",
        "eos_advantage",
        "log_sft",
        "log_sft_error",
        "contrast",
        "contrast_error",
        "repetition",
        "reward_drift",
    )
    for values in recorder.rollouts():
        assert sorted(values) == sorted(f"rollout/{name}" for name in (*names, "engine_log_prob_gap"))
        assert all(math.isfinite(value) for value in values.values())
    for values in recorder.updates():
        names = ("clip_fraction", "gradient_norm", "learning_rate", "loss", "tokens_per_second")
        assert sorted(values) == [f"train/{name}" for name in names]
    assert last == recorder.rollouts()[-1]
    first = recorder.rollouts()[0]
    assert first["rollout/kl"] == pytest.approx(0, abs=1e-6), "the actor starts at SFT"
    assert first["rollout/engine_log_prob_gap"] < 1e-5
    assert recorder.rollouts()[-1]["rollout/kl"] != pytest.approx(0, abs=1e-4)
    assert [step for step, values in recorder.history if "rollout/kl" in values] == [0, 2, 4, 6]
    assert sorted(recorder.tables) == [f"samples/iteration-000{i}.json" for i in (1, 2, 3, 4)]
    for row in recorder.tables["samples/iteration-0001.json"]:
        assert sorted(row) == ["ended", "policy_version", "prompt", "response", "reward", "tokens"]


def test_progress_tells_each_count_once_and_what_goes_on_inside_an_iteration(toy: Callable[..., Any]) -> None:
    method, recorder = _method(toy, _config(algorithm=ReinforcePlusPlusConfig(), batch_size=4, iterations=2))
    method.run(PROMPTS)
    rollout = ["rollout 8/8", "scoring by the policy 8/8", "scoring by the reward 8/8"]
    updates = ["update 1/2", "update 2/2"]
    first, second, closing = "0 of 2: return", "1 of 2: return", "2 of 2: closing"
    assert recorder.said == [*rollout, first, *updates, *rollout, second, *updates, *rollout, closing]


def test_of_a_run_that_a_guard_may_end_the_iterations_are_the_most_there_will_be(toy: Callable[..., Any]) -> None:
    guard = KLStopConfig(max_sequence_kl=0.02)
    method, recorder = _method(toy, _config(iterations=40, rollout_batch_size=32, batch_size=32, guard=guard))
    stopped_at = method.run(PROMPTS)["guard/stopped_at_iteration"]
    counts = [said for said in recorder.said if " of " in said]
    assert counts[0] == "0 of at most 40: return"
    assert counts[-1] == f"{stopped_at - 1:.0f} of at most 40: stopped:"


def test_what_is_reported_of_a_scripted_rollout(toy: Callable[..., Any]) -> None:
    """Two responses that end and two that are cut, each prompt twice: everything against plain models."""
    script = {(1, 2): (3, 0), (3,): (1, 2, 4), (4, 4, 1): (0,), (2,): (2, 2, 2, 2)}
    config = _config(iterations=1, samples_per_prompt=2, rollout_batch_size=4)
    method, recorder = _method(toy, config, lambda model: ScriptedEngine(script, log_prob=-0.25))
    method.run(PROMPTS)
    told = recorder.rollouts()[0]

    rows = [(p, r[:3]) for p, r in script.items()]
    token_rewards, log_probs, entropies = [], [], []
    for prompt, response in rows:
        with torch.no_grad():
            logs = [
                torch.log_softmax(m(torch.tensor([prompt + response])).logits[0].double(), -1)[len(prompt) - 1 : -1]
                for m in (toy(0), toy(1))
            ]
        chosen = [log[range(len(response)), list(response)] for log in logs]
        token_rewards.append((chosen[0] - chosen[1]).tolist())
        log_probs += chosen[0].tolist()
        entropies += (-(logs[0].exp() * logs[0]).sum(-1)).tolist()
    flat = [r for row in token_rewards for r in row]
    assert told["rollout/reward"] == pytest.approx(sum(flat) / 9, abs=1e-5)
    assert told["rollout/return"] == pytest.approx(sum(flat) / 4, abs=1e-5)
    assert told["rollout/return_deviation"] == pytest.approx(statistics.pstdev(map(sum, token_rewards)), abs=1e-5)
    assert told["rollout/entropy"] == pytest.approx(sum(entropies) / 9, abs=1e-5)
    assert told["rollout/length"] == 9 / 4
    assert told["rollout/eos_rate"] == 0.5
    assert told["rollout/eos_advantage"] == pytest.approx((token_rewards[0][-1] + token_rewards[2][-1]) / 2, abs=1e-5)
    assert told["rollout/engine_log_prob_gap"] == pytest.approx(max(abs(p + 0.25) for p in log_probs), abs=1e-5)
    table = {row["prompt"]: row for row in recorder.tables["samples/iteration-0001.json"]}
    assert len(recorder.tables["samples/iteration-0001.json"]) == 8
    assert table["2"]["response"] == "2 2 2"
    assert not table["2"]["ended"]
    assert table["4 4 1"]["tokens"] == 1
    assert table["1 2"]["reward"] == pytest.approx(sum(token_rewards[0]), abs=1e-5)


def test_one_iteration_of_algorithm_1_is_the_step_that_plain_torch_takes(toy: Callable[..., Any]) -> None:
    script = {(1, 2): (3, 0), (3,): (1, 2, 4), (4, 4, 1): (0,), (2,): (2, 2, 0)}
    config = _config(iterations=1, rollout_batch_size=4, batch_size=4, learning_rate=1e-3)
    method, recorder = _method(toy, config, lambda model: ScriptedEngine(script))
    method.run(PROMPTS)

    plain, sft, ref = toy(0), toy(0), toy(1)
    loss = torch.zeros(())
    for prompt, response in script.items():
        ids, part = torch.tensor([prompt + response]), slice(len(prompt) - 1, -1)
        own, log_sft, log_ref = (
            torch.log_softmax(m(ids).logits[0, part], -1)[range(len(response)), list(response)]
            for m in (plain, sft, ref)
        )
        rewards = (log_sft - log_ref).tolist()
        loss = loss - sum(own[t] * sum(rewards[t:]) for t in range(len(response)))
    loss = loss / 4
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    assert recorder.updates()[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert recorder.updates()[0]["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for (name, found), expected in zip(method.policy.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm1Config(),
        ReinforcePlusPlusConfig(kl_weight=0.3),
        PPOConfig(kl_weight=0.3, critic_learning_rate=1e-2, critic_warmup_iterations=1),
    ],
)
def test_one_update_is_the_same_without_a_pass_of_the_actor_before_it(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, algorithm: Any, temperature: float
) -> None:
    config = _config(algorithm=algorithm, temperature=temperature, learning_rate=1e-3)
    short, told = _method(toy, config)
    assert short.one_step_on_policy
    short.run(PROMPTS)
    long, expected = _method(toy, config)
    monkeypatch.setattr(ReinforceLoop, "one_step_on_policy", False)
    long.run(PROMPTS)
    # Of both, each at the same step.
    assert "scoring by the policy 8/8" in told.said
    assert told.said.count("scoring by the policy 8/8") < expected.said.count("scoring by the policy 8/8") == 4
    for found, plain in zip(told.rollouts(), expected.rollouts(), strict=True):
        assert found == pytest.approx(plain, abs=1e-5)
    speed = "train/tokens_per_second"
    for found, plain in zip(told.updates(), expected.updates(), strict=True):
        assert found == pytest.approx({**plain, speed: found[speed]}, abs=1e-5)
    for ours, theirs in zip(short.policy.parameters(), long.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_actor_has_a_pass_where_the_engine_may_differ_from_it_or_has_drawn_for_several_steps(
    toy: Callable[..., Any],
) -> None:
    def needs_none(**changes: Any) -> bool:
        return _method(toy, _config(algorithm=ReinforcePlusPlusConfig(), **changes))[0].one_step_on_policy

    assert needs_none()
    assert not needs_none(batch_size=4)
    loop, _ = _method(toy, _config(), lambda _: ScriptedEngine({}))
    assert not loop.one_step_on_policy
    loop, _ = _method(toy, _config())
    loop.policy.activations = torch.bfloat16
    assert not loop.one_step_on_policy
    loop, _ = _method(toy, _config())
    loop.policy.model.config.attention_dropout = 0.1
    assert not loop.one_step_on_policy


def test_a_run_is_repeatable_and_its_seed_matters(toy: Callable[..., Any]) -> None:
    def weights(seed: int) -> list[Tensor]:
        method, _ = _method(toy, _config(seed=seed, algorithm=ReinforcePlusPlusConfig(), batch_size=2))
        method.run(PROMPTS)
        return [p.detach() for p in method.policy.parameters()]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, other, strict=True))


def test_every_row_of_a_rollout_is_learned_from_once_with_its_own_credit(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mini-batches have other widths and orders than the rollout; unwhitened, a row can be checked alone."""
    algorithm = ReinforcePlusPlusConfig(whiten=False, kl_weight=0.0)
    config = _config(algorithm=algorithm, batch_size=3, rollout_batch_size=4, samples_per_prompt=2, iterations=1)
    method, _ = _method(toy, config)
    seen: list[TokenSequence] = []
    step = method.trainer.step

    def checked(rows: Sequence[TokenSequence], objective: Any, inputs: LossInputs, *more: Any) -> dict[str, float]:
        actor = score(Policy(toy(0)), rows, 1000).log_probs
        rewards = score(Policy(toy(0)), rows, 1000).log_probs - score(Policy(toy(1)), rows, 1000).log_probs
        assert inputs.advantages is not None
        assert inputs.old_log_probs is not None
        for i, row in enumerate(rows):
            length = len(row.response)
            returns = [rewards[i, t:length].sum().item() for t in range(length)]
            assert inputs.advantages[i, :length].tolist() == pytest.approx(returns, abs=1e-5)
            assert inputs.old_log_probs[i, :length].tolist() == pytest.approx(actor[i, :length].tolist(), abs=1e-5)
        seen.extend(rows)
        return step(rows, objective, inputs, *more)

    monkeypatch.setattr(method.trainer, "step", checked)
    method.run(PROMPTS)
    assert Counter(row.prompt for row in seen) == Counter(dict.fromkeys(PROMPTS, 2))
    assert len({row.response for row in seen}) > 2
    assert any(a.prompt != b.prompt for a, b in zip(seen[::2], seen[1::2], strict=True)), "not in the rollout's order"


@pytest.mark.parametrize("bound", [0.02, 0.1])
def test_the_guard_goes_back_to_exactly_the_last_policy_within_the_bound(toy: Callable[..., Any], bound: float) -> None:
    config = _config(iterations=40, rollout_batch_size=32, batch_size=32, guard=KLStopConfig(max_sequence_kl=bound))
    method, recorder = _method(toy, config)
    last = method.run(PROMPTS)
    stopped_at = last.pop("guard/stopped_at_iteration")
    assert last.pop("guard/kept_iteration") == stopped_at - 1
    assert 2 <= stopped_at <= 40
    *safe, over = recorder.rollouts()
    assert len(safe) == stopped_at - 1
    assert all(values["rollout/kl"] <= bound for values in safe)
    assert over["rollout/kl"] > bound
    assert last == safe[-1]
    assert all(p.equal(recorder.weights[-2][name]) for name, p in method.policy.model.named_parameters())
    assert method.trainer.steps_done == stopped_at - 1


def test_the_guard_also_looks_at_the_policy_after_the_last_update(toy: Callable[..., Any]) -> None:
    config = _config(
        iterations=1, rollout_batch_size=32, batch_size=32, learning_rate=0.3, guard=KLStopConfig(max_sequence_kl=0.1)
    )
    method, recorder = _method(toy, config)
    last = method.run(PROMPTS)
    assert last["guard/stopped_at_iteration"] == 2
    assert all(p.equal(recorder.weights[0][name]) for name, p in method.policy.model.named_parameters())


def test_a_run_of_which_nothing_is_worth_keeping_ends_where_it_began(toy: Callable[..., Any]) -> None:
    method, recorder = _method(toy, _config(guard=WitnessStopConfig(stop_beyond=1e9, gain_beyond=1e9)))
    last = method.run(PROMPTS)
    assert len(recorder.rollouts()) == 3 + 1, "it was not stopped"
    assert last == {**recorder.rollouts()[0], "guard/kept_iteration": 1}
    assert all(p.equal(recorder.weights[0][name]) for name, p in method.policy.model.named_parameters())
    assert list(recorder.tables)[-1] == "guard.json"


def test_a_guard_that_never_acts_changes_nothing(toy: Callable[..., Any]) -> None:
    plain, _ = _method(toy, _config())
    guarded, _ = _method(toy, _config(guard=KLStopConfig(max_sequence_kl=1e9)))
    assert plain.run(PROMPTS) == guarded.run(PROMPTS)
    assert all(a.equal(b) for a, b in zip(plain.policy.parameters(), guarded.policy.parameters(), strict=True))


@pytest.mark.parametrize("guard", [None, KLStopConfig(max_sequence_kl=0.1)])
def test_a_policy_is_kept_the_first_time_that_its_kl_reaches_each_value(
    toy: Callable[..., Any], guard: KLStopConfig | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = (0.02, 0.05, 0.0501, 0.1, 50.0)
    shots: dict[str, dict[str, Tensor]] = {}
    # One step an iteration, whose entropy is measured with the update.
    config = _config(iterations=12, rollout_batch_size=32, batch_size=32, keep_at_kl=values, guard=guard)

    def keep(folder: Path) -> None:
        folder.mkdir()
        shots[folder.name] = {name: p.detach().clone() for name, p in loop.policy.model.named_parameters()}

    loop, recorder = _method(toy, config)
    loop.keep, loop.kept = keep, tmp_path
    last = loop.run(PROMPTS)
    plain, bare = _method(toy, config.model_copy(update={"keep_at_kl": ()}))
    assert {name: last[name] for name in last if "kept/0" not in name and "kept/5" not in name} == plain.run(PROMPTS)
    assert recorder.rollouts() == bare.rollouts()
    kls = [each["rollout/kl"] for each in recorder.rollouts()]
    assert max(kls) > 0.1
    for value in values[:-1]:
        first = next(i for i, kl in enumerate(kls) if kl >= value)
        name = f"{value:g}"
        assert all(each.equal(recorder.weights[first][part]) for part, each in shots[name].items())
        told = json.loads((tmp_path / name / KEPT_FILE).read_text())
        measured = recorder.rollouts()[first]
        assert told == {"iteration": first + 1} | {each: measured[each] for each in KEPT_METRICS if each in measured}
        assert "rollout/entropy" in told or first + 1 == len(kls), "that of a stopped run's last policy may be unknown"
        assert (last[f"kept/{name}/reached"], last[f"kept/{name}/iteration"]) == (1, first + 1)
    assert "50" not in shots
    assert last["kept/50/reached"] == 0
    assert "no policy is kept at 50: the KL to SFT reached" in caplog.text


def test_a_long_run_keeps_a_bounded_number_of_sample_tables(toy: Callable[..., Any]) -> None:
    method, recorder = _method(toy, _config(iterations=90, rollout_batch_size=2, batch_size=2))
    method.run(PROMPTS)
    assert len(recorder.rollouts()) == 91
    assert 15 <= len(recorder.tables) <= 22
    assert {"samples/iteration-0001.json", "samples/iteration-0091.json"} <= set(recorder.tables)


def _all_responses(longest: int) -> list[tuple[int, ...]]:
    """Every response of up to `longest` tokens."""
    return [
        (*body, a)
        for n in range(longest)
        for body in itertools.product(range(1, 5), repeat=n)
        for a in range(5)
        if a == EOS or n == longest - 1
    ]


class WeightedStates(FullVocabulary):
    """Each state's objective counts as the advantages say."""

    def __call__(self, scores: Tensor, inputs: LossInputs) -> dict[str, Tensor]:
        return {"loss": super().__call__(scores, inputs)["loss"] * required(inputs.advantages)}


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    ("algorithm", "formula"),
    [
        (Algorithm1Config(), "baseline_relative"),
        (Algorithm1Config(), "with_value"),
        (ReinforcePlusPlusConfig(whiten=False, kl_weight=0.3), "baseline_relative"),
        (SequenceReinforceConfig(whiten=False, kl_weight=0.3), "baseline_relative"),
        (PPOConfig(whiten=False, kl_weight=0.3), "baseline_relative"),
        (ReinforcePlusPlusConfig(whiten="batch_mean", kl_weight=0.3), "baseline_relative"),
        (ReinforcePlusPlusConfig(whiten=False, kl_weight=0.3, baseline="expected"), "baseline_relative"),
        (ReinforcePlusPlusConfig(gamma=0, whiten="batch_mean", kl_weight=0.3), "baseline_relative"),
        (ReinforcePlusPlusConfig(gamma=0, whiten=False, kl_weight=0.3, baseline="expected"), "without_baseline"),
        (FullVocabularyConfig(kl_weight=0.3), "baseline_relative"),
        (FullVocabularyConfig(kl_weight=0.3), "without_baseline"),
    ],
)
def test_the_expected_update_is_the_exact_gradient_of_the_policy_that_draws(
    toy: Callable[..., Any], algorithm: Any, formula: str, temperature: float
) -> None:
    """Of E[sum of r] - beta KL(pi || pi_SFT), with both policies at the temperature and r at 1: every response of two
    tokens is a row, whose advantages are multiplied by its probability. At gamma 0 it is the sum over states of that of
    the next token, in the states as they are drawn."""
    rows = [TokenSequence(prompt, response) for prompt in PROMPTS for response in _all_responses(2)]
    config = _config(
        algorithm=algorithm,
        temperature=temperature,
        rollout_batch_size=len(rows),
        batch_size=len(rows),
        max_response_tokens=2,
        max_gradient_norm=0.0,
    )
    loop, _ = _method(toy, config)
    loop.reward.formula, loop.reward.scale, loop.reward.clip_above = formula, 0.5, 1.0
    with torch.no_grad():
        for weight, other in zip(loop.policy.parameters(), toy(2).parameters(), strict=True):
            weight.lerp_(other, 0.3)
    actor = copy.deepcopy(loop.policy.model)

    method = WeightedStates(algorithm) if algorithm.type == "full_vocabulary" else policy_gradient(algorithm)
    critic = CriticLearner(method.critic, loop.policy, config, 1) if method.critic else None
    if critic:
        torch.nn.init.normal_(critic.critic.head.weight, generator=torch.Generator().manual_seed(0))
    rollout = loop.score([Completion(row.prompt, row.response, (0.0,) * len(row.response)) for row in rows], critic)
    beta = getattr(algorithm, "kl_weight", 0.0)
    returns, advantages = method.credit(rollout.batch, beta)
    chances = masked_sum(rollout.old_log_probs, rollout.scored.mask).exp()
    assert float(chances.sum()) == pytest.approx(len(PROMPTS), abs=1e-4), "the old policy is the one that draws"
    found: list[Tensor] = []
    loop.trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in loop.policy.parameters())  # type: ignore[union-attr]
    )
    if isinstance(method, WeightedStates):
        advantages = torch.ones_like(advantages)
    weighted = Advantages(returns, advantages * chances[:, None])
    loop.update(Iteration(1, 1, 0, rollout, weighted, beta), [range(len(rows))], method, None)
    count = len(rows) if method.loss_reduction == "sequence" else int(rollout.scored.mask.sum())

    def whole(model: PreTrainedModel, row: TokenSequence, at: float) -> Tensor:
        ids, part = torch.tensor([row.prompt + row.response]), slice(len(row.prompt) - 1, -1)
        return torch.log_softmax(model(ids).logits[0, part].double() / at, -1)

    def along(model: PreTrainedModel, row: TokenSequence, at: float) -> Tensor:
        return whole(model, row, at)[range(len(row.response)), list(row.response)]

    objective = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(rows):
        with torch.no_grad():
            log_sft = whole(toy(0), row, temperature)
            at_1, log_ref = whole(toy(0), row, 1.0), whole(toy(1), row, 1.0)
        if algorithm.gamma == 0:
            log_policy = whole(actor, row, temperature)
            raw = at_1 - log_ref if formula == "baseline_relative" else at_1
            gains = (raw / 0.5).clamp(max=1.0) - beta * (log_policy - log_sft)
            objective = (
                objective + along(actor, row, temperature).sum().exp().detach() * (log_policy.exp() * gains).sum()
            )
            continue
        log_policy = along(actor, row, temperature).sum()
        total = rollout.scored.rewards[i].double().sum()
        log_sft_of_row = log_sft[range(len(row.response)), list(row.response)].sum()
        objective = objective + log_policy.exp() * (total - beta * (log_policy - log_sft_of_row))
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(actor.parameters()))])
    ours = -count * torch.cat([g.flatten() for g in found])
    assert float(torch.cosine_similarity(ours, exact, 0)) == pytest.approx(1, abs=1e-5)
    assert float(ours.norm() / exact.norm()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_what_is_reported_is_of_the_policy_that_draws_and_the_reward_stays_at_temperature_1(
    toy: Callable[..., Any], temperature: float
) -> None:
    """The KL at the start is 0, the engine's log-probs are the trainer's, and a scripted rollout has the rewards that
    it has at any temperature."""
    config = _config(algorithm=ReinforcePlusPlusConfig(), batch_size=4, temperature=temperature)
    loop, recorder = _method(toy, config)
    loop.run(PROMPTS)
    first, *_, last = recorder.rollouts()
    assert first["rollout/kl"] == pytest.approx(0, abs=1e-6)
    assert abs(last["rollout/kl"]) > 1e-3
    assert all(values["rollout/engine_log_prob_gap"] < 1e-5 for values in recorder.rollouts())
    assert recorder.updates()[0]["train/clip_fraction"] == 0

    script = {(1, 2): (3, 0), (3,): (1, 2, 4), (4, 4, 1): (0,), (2,): (2, 2, 2)}
    told = []
    for at in (1.0, temperature):
        settings = _config(iterations=1, rollout_batch_size=4, batch_size=4, temperature=at)
        loop, recorder = _method(toy, settings, lambda model: ScriptedEngine(script))
        loop.run(PROMPTS)
        told.append(recorder.rollouts()[0])
    for name in ("reward", "return", "log_sft", "contrast"):
        assert told[0][f"rollout/{name}"] == told[1][f"rollout/{name}"]
    sharper = temperature < 1
    assert (told[1]["rollout/entropy"] < told[0]["rollout/entropy"]) == sharper


def _exact_return(policy: PreTrainedModel, sft: PreTrainedModel, ref: PreTrainedModel, longest: int) -> float:
    """Expected return over all prompts, by enumerating every response of up to `longest` tokens."""
    rows = [TokenSequence(p, r) for p in PROMPTS for r in _all_responses(longest)]
    totals = [score(Policy(m), rows, 100_000).log_probs.double().sum(-1) for m in (policy, sft, ref)]
    probabilities = totals[0].exp()
    assert probabilities.sum().item() == pytest.approx(len(PROMPTS), abs=1e-4)
    return float((probabilities * (totals[1] - totals[2])).sum()) / len(PROMPTS)


@pytest.mark.parametrize(
    "algorithm",
    [
        Algorithm1Config(),
        ReinforcePlusPlusConfig(),
        PPOConfig(critic_learning_rate=1e-2),
        ReinforcePlusPlusConfig(baseline="position"),
        FullVocabularyConfig(),
    ],
)
def test_the_exact_expected_return_rises(toy: Callable[..., Any], algorithm: Any) -> None:
    """No sampling noise in the measurement: only the training is random."""
    config = _config(algorithm=algorithm, iterations=25, rollout_batch_size=64, batch_size=64, max_response_tokens=3)
    method, recorder = _method(toy, config)
    returns = [_exact_return(method.policy.model, toy(0), toy(1), 3)]
    method.run(PROMPTS)
    returns.append(_exact_return(method.policy.model, toy(0), toy(1), 3))
    assert returns[1] > returns[0] + 0.5, returns
    # At gamma 0 the return of the first token is that of no other.
    name = "return" if algorithm.gamma else "contrast"
    reported = [values[f"rollout/{name}"] for values in recorder.rollouts()]
    assert reported[0] == pytest.approx(returns[0], abs=0.8)
    assert reported[-1] == pytest.approx(returns[1], abs=0.8)


def test_ppo_learns_values_of_returns_far_from_1(toy: Callable[..., Any]) -> None:
    """Of a deviation near 90: what the critic knows of them SR does not. Held to 0.2 of its old values it learns little
    of it."""

    def trained(**changes: Any) -> tuple[list[float], list[float]]:
        algorithm = PPOConfig(critic_learning_rate=0.1, **changes)
        config = _config(algorithm=algorithm, iterations=12, rollout_batch_size=64, batch_size=16, learning_rate=1e-4)
        method, recorder = _method(toy, config)
        method.reward.scale = 0.05
        method.run(PROMPTS)
        assert recorder.rollouts()[0]["rollout/return_deviation"] > 50
        explained = [values["critic/explained_variance"] for values in recorder.rollouts()]
        return explained, [values["critic/loss"] for _, values in recorder.history if "critic/loss" in values]

    explained, losses = trained()
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert explained[-1] > 0.4
    assert statistics.fmean(losses[-4:]) < 0.5 * statistics.fmean(losses[:4])
    held, _ = trained(value_clip=0.2)
    assert held[-1] < 0.2


def test_a_critic_learns_beside_the_policy_and_is_reported(toy: Callable[..., Any]) -> None:
    algorithm = PPOConfig(critic_learning_rate=3e-2)
    config = _config(algorithm=algorithm, iterations=12, rollout_batch_size=64, batch_size=32, learning_rate=1e-3)
    method, recorder = _method(toy, config)
    method.run(PROMPTS)
    explained = [values["critic/explained_variance"] for values in recorder.rollouts()]
    assert explained[0] == pytest.approx(0, abs=1e-6), "it starts by expecting nothing"
    assert explained[-1] > 0.1
    steps = [(step, values) for step, values in recorder.history if "critic/loss" in values]
    assert [step for step, _ in steps] == list(range(1, 25))
    names = ("gradient_norm", "learning_rate", "loss", "tokens_per_second")
    assert all(sorted(values) == [f"critic/{name}" for name in names] for _, values in steps)
    assert steps[0][1]["critic/learning_rate"] == pytest.approx(3e-2)
    assert [step for step, values in recorder.history if "train/loss" in values] == list(range(1, 25))


def test_the_policy_waits_for_the_warm_up_of_its_critic(toy: Callable[..., Any]) -> None:
    config = _config(algorithm=PPOConfig(critic_warmup_iterations=2), iterations=4)
    method, recorder = _method(toy, config)
    method.run(PROMPTS)
    before = dict(toy(0).named_parameters())
    moved = [any(not p.equal(before[name]) for name, p in weights.items()) for weights in recorder.weights]
    assert moved == [False, False, False, True, True]
    assert [step for step, values in recorder.history if "critic/loss" in values] == [1, 2, 3, 4]
    assert [step for step, values in recorder.history if "train/loss" in values] == [3, 4]
    assert optimizer_steps(4, config) == 2
    assert optimizer_steps(4, _config(iterations=4)) == 4
    with pytest.raises(UsageError, match="critic_warmup_iterations"):
        optimizer_steps(4, _config(algorithm=PPOConfig(critic_warmup_iterations=4), iterations=4))


def test_the_first_update_of_ppo_is_that_of_sr(toy: Callable[..., Any]) -> None:
    """The critic expects nothing yet, and it learns from weights of its own."""
    weights = []
    for algorithm in (PPOConfig(), SequenceReinforceConfig()):
        method, _ = _method(toy, _config(algorithm=algorithm, iterations=1))
        method.run(PROMPTS)
        weights.append([p.detach() for p in method.policy.parameters()])
    assert all(a.equal(b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("schedule", [KLLinearConfig(final_weight=0.7), KLTargetConfig(sequence_kl=0.05, gain=0.2)])
def test_the_weight_of_the_kl_changes_from_iteration_to_iteration(toy: Callable[..., Any], schedule: Any) -> None:
    method, recorder = _method(toy, _config(algorithm=ReinforcePlusPlusConfig(kl_weight=0.1, kl_schedule=schedule)))
    method.run(PROMPTS)
    found = [values["rollout/kl_weight"] for values in recorder.rollouts()]
    expected = [0.1, 0.4, 0.7, 0.7]
    if isinstance(schedule, KLTargetConfig):
        expected = [0.1]
        for values in recorder.rollouts()[:-1]:
            error = values["rollout/kl"] / 0.05 - 1
            expected.append(expected[-1] * (1 + max(-0.2, min(0.2, error))))
    assert found == pytest.approx(expected)


def test_the_reported_return_has_the_kl_of_its_iterations_weight(toy: Callable[..., Any]) -> None:
    schedule = KLLinearConfig(final_weight=0.7)
    method, recorder = _method(toy, _config(algorithm=ReinforcePlusPlusConfig(kl_weight=0.1, kl_schedule=schedule)))
    method.run(PROMPTS)
    for values in recorder.rollouts():
        rewards = values["rollout/reward"] * values["rollout/length"]
        expected = rewards - values["rollout/kl_weight"] * values["rollout/kl"]
        assert values["rollout/return"] == pytest.approx(expected, abs=1e-5)


def test_the_frozen_models_stay_as_they_are(toy: Callable[..., Any]) -> None:
    method, _ = _method(toy, _config())
    method.run(PROMPTS)
    for policy, seed in ((method.reward.sft, 0), (method.reward.reference, 1)):
        assert all(a.equal(b) for a, b in zip(policy.model.parameters(), toy(seed).parameters(), strict=True))


@pytest.mark.parametrize("algorithm", [ReinforcePlusPlusConfig(baseline="expected", gamma=0), FullVocabularyConfig()])
def test_what_is_learned_from_the_whole_vocabulary_depends_on_no_chunks_or_micro_batches(
    toy: Callable[..., Any], algorithm: Any
) -> None:
    """Of adapters, at a temperature, with a reward in another arithmetic than the KL: two iterations of two steps."""
    weights, told = [], []
    for budget, logits in ((1000, 2**25), (1, 15), (7, 40)):
        config = _config(
            algorithm=algorithm.model_copy(update={"kl_weight": 0.3}),
            temperature=0.7,
            batch_size=4,
            iterations=2,
            lora=LoRAConfig(rank=2),
            learning_rate=1e-3,
            execution=ExecutionConfig(tokens_per_micro_batch=budget),
        )
        loop, recorder = _method(toy, config)
        add_adapters(loop.policy.model, LoRAConfig(rank=2), 0)
        loop.trainer = Trainer(loop.policy, config, 4, config.execution)
        loop.reward.arithmetic, loop.reward.tokens_per_micro_batch = "bfloat16", budget
        for policy in (loop.policy, loop.reward.sft, loop.reward.reference):
            policy.logits_per_chunk = logits
        loop.run(PROMPTS)
        weights.append([p.detach() for p in loop.policy.parameters() if p.requires_grad])
        told.append([values["train/gradient_norm"] for values in recorder.updates()])
    assert min(told[0]) > 1e-3
    for others, norms in zip(weights[1:], told[1:], strict=True):
        assert norms == pytest.approx(told[0], rel=1e-3)
        for ours, theirs in zip(weights[0], others, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("algorithm", [ReinforcePlusPlusConfig(baseline="expected"), FullVocabularyConfig()])
def test_a_reward_of_more_than_the_token_is_refused_before_anything_is_drawn(
    toy: Callable[..., Any], algorithm: Any
) -> None:
    loop, recorder = _method(toy, _config(algorithm=algorithm))
    loop.reward.formula = "with_value"
    with pytest.raises(UsageError, match=r"reward\.formula=with_value"):
        loop.run(PROMPTS)
    assert not recorder.said
