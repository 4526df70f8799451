import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from dpr_core.config.reinforce import KLStopConfig, ReinforceConfig, WitnessStopConfig
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training.guard import GUARDS, GuardVerdict, KLBound, RollBack, Witnesses


class Tables(InMemoryRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.tables[path] = rows


class Scripted:
    """A guard that says what it was told to."""

    def __init__(self, verdicts: Sequence[GuardVerdict]) -> None:
        self.verdicts = iter(verdicts)

    def watch(self, signals: object) -> GuardVerdict:
        return next(self.verdicts)


def _set(policy: Policy, value: float) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(value)


def _is(policy: Policy, value: float) -> bool:
    return all(p.eq(value).all() for p in policy.parameters())


def _signals(log_sft: float, contrast: float, error: float = 0.3, contrast_error: float = 0.4) -> dict[str, float]:
    """The error of a difference of two such values is 0.42 for the one and 0.57 for the other."""
    return {
        "rollout/log_sft": log_sft,
        "rollout/log_sft_error": error,
        "rollout/contrast": contrast,
        "rollout/contrast_error": contrast_error,
    }


def _watched(settings: WitnessStopConfig, series: Sequence[tuple[float, float]]) -> list[GuardVerdict]:
    guard, verdicts = Witnesses(settings), []
    for values in series:
        verdicts.append(guard.watch(_signals(*values)))
        if verdicts[-1].stop:
            break
    return verdicts


def test_the_kl_bound_keeps_what_is_within_it_and_stops_at_the_first_beyond() -> None:
    guard = KLBound(KLStopConfig(max_sequence_kl=0.5))
    assert [guard.watch({"rollout/kl": kl}) for kl in (0.0, 0.5, -0.1)] == [GuardVerdict(True)] * 3
    assert guard.watch({"rollout/kl": 0.51}) == GuardVerdict(False, "the KL to SFT, 0.51, passed the bound of 0.5")
    assert guard.watch({"rollout/kl": math.nan}).stop


HEALTHY = [(-5.0, 0.0), (-4.5, 0.5), (-3.5, 1.5), (-3.6, 1.4), (-3.2, 2.0), (-3.4, 2.3), (-3.3, 2.2), (-3.5, 2.3)]


def test_a_healthy_series_goes_on_and_is_kept_once_it_has_gained() -> None:
    """Means of the contrast over four: 0, 0.25, 0.67, 0.85, 1.35; the last is 3.02 standard errors above the start."""
    verdicts = _watched(WitnessStopConfig(), HEALTHY)
    assert [v.keep for v in verdicts] == [True, False, False, False, True, True, True, True]
    assert not any(v.stop for v in verdicts)
    assert all(v.keep for v in _watched(WitnessStopConfig(gain_beyond=0), HEALTHY))


def test_a_run_that_gains_nothing_keeps_its_start() -> None:
    verdicts = _watched(WitnessStopConfig(), [(-3.0, 0.1 * (-1) ** i) for i in range(20)])
    assert [v.keep for v in verdicts] == [True] + [False] * 19
    assert not any(v.stop for v in verdicts)


def test_a_fall_of_the_mean_over_the_window_ends_the_run() -> None:
    """Means over two iterations: -5, -4, -3, -3.25, -4.5; the error of such a mean is 0.3 / sqrt(2) from the second."""
    verdicts = _watched(WitnessStopConfig(window=2), [(-5, 0), (-3, 5), (-3, 6), (-3.5, 7), (-5.5, 8), (-9, 9)])
    assert [v.keep for v in verdicts] == [True, True, True, True, False]
    assert [v.stop for v in verdicts[:-1]] == [None] * 4
    assert verdicts[-1].stop == (
        "how likely SFT finds the responses fell from -3.000 to -4.500, 5.0 standard errors below its best"
    )


def test_the_contrast_to_the_reference_is_a_witness_of_its_own() -> None:
    """A policy that collapses onto what SFT finds likely, short answers say, gives itself away there."""
    verdicts = _watched(WitnessStopConfig(window=1), [(-5, 0), (-4, 5), (-3, 4), (-2, 2)])
    assert [v.keep for v in verdicts] == [True, True, False, False]
    assert verdicts[-1].stop == (
        "how much more SFT likes the responses than the reference does "
        "fell from 5.000 to 2.000, 5.3 standard errors below its best"
    )


def test_one_bad_rollout_among_good_ones_is_not_kept_but_ends_nothing() -> None:
    """5 standard errors below the best alone, 2.8 in the mean over four with its smaller error."""
    alone = [(-3.0, 0.0), (-3.0, 5.0), (-3.0, 5.0), (-5.1, 5.0), (-3.0, 5.0)]
    assert [v.keep for v in _watched(WitnessStopConfig(), alone)] == [True, True, True, False, True]
    assert not any(v.stop for v in _watched(WitnessStopConfig(), alone))
    assert _watched(WitnessStopConfig(window=1), alone)[3].stop


def test_a_fall_right_after_a_rise_is_not_kept_though_the_mean_has_not_caught_up() -> None:
    """-4 is the best mean so far, and 2.4 standard errors below the value just before."""
    verdicts = _watched(WitnessStopConfig(), [(-5, 0), (-4, 5), (-3, 5), (-4, 5)])
    assert [v.keep for v in verdicts] == [True, True, True, False]


def test_a_slow_decline_ends_the_run_too() -> None:
    verdicts = _watched(WitnessStopConfig(), [(-3 - 0.15 * i, 0) for i in range(20)])
    assert 6 <= len(verdicts) < 15
    assert verdicts[-1].stop


def test_the_settings_decide() -> None:
    series = [(-3.0, 0.0), (-4.0, 9.0)]
    assert not _watched(WitnessStopConfig(window=1), series)[1].stop
    assert _watched(WitnessStopConfig(window=1, stop_beyond=2.3), series)[1].stop
    assert not _watched(WitnessStopConfig(window=2, stop_beyond=2.3), series)[1].stop
    assert not _watched(WitnessStopConfig(window=1), series)[1].keep
    assert _watched(WitnessStopConfig(window=1, keep_within=2.4), series)[1].keep
    assert not _watched(WitnessStopConfig(window=1, keep_within=2.4, gain_beyond=16), series)[1].keep


def test_more_responses_make_a_smaller_fall_clear() -> None:
    for error, ends in ((0.3, False), (0.1, True)):
        guard = Witnesses(WitnessStopConfig(window=1))
        guard.watch(_signals(-3, 0, error))
        assert bool(guard.watch(_signals(-3.9, 0, error)).stop) is ends


def test_a_plateau_of_noise_is_seldom_ended() -> None:
    noise, stopped = random.Random(0), 0
    for _ in range(40):
        series = [(noise.gauss(0, 0.3), noise.gauss(0, 0.4)) for _ in range(100)]
        stopped += _watched(WitnessStopConfig(), series)[-1].stop is not None
    assert stopped <= 8


@pytest.mark.parametrize("broken", [(math.nan, 0.0), (-3.0, math.nan), (-math.inf, 0.0)])
def test_a_witness_that_is_no_number_ends_the_run_at_once(broken: tuple[float, float]) -> None:
    verdicts = _watched(WitnessStopConfig(), [(-3.0, 0.0), broken])
    assert not verdicts[-1].keep
    assert "no longer a number" in (verdicts[-1].stop or "")


def test_every_kind_of_settings_has_its_guard_and_a_guard_without_a_type_is_the_kl_stop() -> None:
    kinds = [ReinforceConfig.model_validate({"guard": {"type": kind}}).guard for kind in ("kl_stop", "witness_stop")]
    assert [GUARDS[type(settings)] for settings in kinds if settings] == [KLBound, Witnesses]
    assert ReinforceConfig.model_validate({"guard": {"max_sequence_kl": 0.2}}).guard == KLStopConfig(
        max_sequence_kl=0.2
    )
    assert ReinforceConfig.model_validate({"guard": {"type": "witness_stop"}}).guard == WitnessStopConfig()


def _rolled_back(policy: Policy, verdicts: Sequence[GuardVerdict]) -> RollBack:
    rollback = RollBack(KLStopConfig(), policy)
    rollback.guard = Scripted(verdicts)
    return rollback


def test_it_goes_back_to_exactly_the_newest_policy_that_was_kept(tiny: Callable[..., Any]) -> None:
    policy, recorder = Policy(tiny("gemma3")[0]), Tables()  # with tied weights
    keep, leave = GuardVerdict(True), GuardVerdict(False)
    rollback = _rolled_back(policy, [keep, keep, leave, GuardVerdict(False, "enough")])
    for iteration in range(1, 5):
        _set(policy, float(iteration))
        rollback.watch(iteration, {})
        assert _is(policy, float(iteration)), "watching changes nothing"
        assert rollback.reason == ("enough" if iteration == 4 else None)
    told = rollback.finish(recorder)
    assert told == {"guard/kept_iteration": 2, "guard/stopped_at_iteration": 4}
    assert recorder.tables == {"guard.json": [{**told, "reason": "enough"}]}
    assert _is(policy, 2.0)
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight


def test_a_run_that_ends_by_itself_also_ends_with_a_policy_that_was_kept(tiny: Callable[..., Any]) -> None:
    policy, recorder = Policy(tiny("llama")[0]), Tables()
    rollback = _rolled_back(policy, [GuardVerdict(True), GuardVerdict(False)])
    for iteration in (1, 2):
        _set(policy, float(iteration))
        rollback.watch(iteration, {})
    assert rollback.finish(recorder) == {"guard/kept_iteration": 1}
    assert _is(policy, 1.0)
    assert [row["reason"] for row in recorder.tables["guard.json"]] == ["the last policies were not worth keeping"]


def test_where_the_last_policy_is_kept_nothing_is_changed_or_said(tiny: Callable[..., Any]) -> None:
    policy, recorder = Policy(tiny("llama")[0]), Tables()
    rollback = _rolled_back(policy, [GuardVerdict(False), GuardVerdict(True)])
    rollback.watch(1, {})
    _set(policy, 2.0)
    rollback.watch(2, {})
    assert rollback.finish(recorder) == {}
    assert _is(policy, 2.0)
    assert not recorder.tables


def test_with_nothing_kept_it_goes_back_to_the_start(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0])
    _set(policy, 1.0)
    rollback = _rolled_back(policy, [GuardVerdict(False, "bad from the start")])
    rollback.watch(1, {})
    assert rollback.finish(InMemoryRecorder()) == {"guard/kept_iteration": 1, "guard/stopped_at_iteration": 1}
    assert _is(policy, 1.0)


def test_weights_that_are_no_numbers_are_replaced(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0])
    _set(policy, 1.0)
    rollback = RollBack(KLStopConfig(), policy)
    rollback.watch(1, {"rollout/kl": 0.0})
    _set(policy, math.nan)
    rollback.watch(2, {"rollout/kl": math.nan})
    rollback.finish(InMemoryRecorder())
    assert _is(policy, 1.0)


def test_there_is_never_more_than_one_copy_of_the_weights(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("gemma3")[0])
    rollback = _rolled_back(policy, [GuardVerdict(True)] * 3)
    held = {name: values.data_ptr() for name, values in rollback._kept.items()}
    assert sum(v.numel() for v in rollback._kept.values()) == sum(p.numel() for p in policy.parameters())
    for iteration in (1, 2, 3):
        rollback.watch(iteration, {})
    assert {name: values.data_ptr() for name, values in rollback._kept.items()} == held
