import json
from pathlib import Path

import pytest

from dpr_core.config.reinforce import KLStopConfig, WitnessStopConfig
from perf.guards import Curve, as_rows, main, replay


def curve(*points: tuple[float, float, float]) -> Curve:
    """(accuracy, KL, log pi_SFT a token) of each iteration; the contrast grows with the KL."""
    return [
        {
            "accuracy": accuracy,
            "rollout/kl": kl,
            "rollout/log_sft": log_sft,
            "rollout/log_sft_error": 0.1,
            "rollout/contrast": 10 * kl,
            "rollout/contrast_error": 0.1,
        }
        for accuracy, kl, log_sft in points
    ]


BAD = curve((0.5, 0.0, -1.0), (0.75, 0.4, -1.0), (0.25, 0.8, -3.0), (0.0, 3.0, -4.0))


def test_a_guard_is_replayed_up_to_its_stop() -> None:
    assert replay(None, BAD) == (4, None)
    assert replay(KLStopConfig(), BAD) == (2, 3)
    assert replay(KLStopConfig(max_sequence_kl=1.0), BAD) == (3, 4)
    assert replay(WitnessStopConfig(), BAD) == (2, 3)
    assert replay(KLStopConfig(max_sequence_kl=5.0), BAD) == (4, None)


def test_a_row_holds_the_accuracy_of_what_each_guard_leaves() -> None:
    (row,) = as_rows({"bad": BAD})
    assert (row["run"], row["sft"], row["best"]) == ("bad", 0.5, 0.75)
    assert row["guards"]["none"] == {"accuracy": 0.0, "kept": 4, "stopped": None}
    assert row["guards"]["kl_stop 0.5"] == {"accuracy": 0.75, "kept": 2, "stopped": 3}
    assert row["guards"]["kl_stop 1"] == {"accuracy": 0.25, "kept": 3, "stopped": 4}
    assert row["guards"]["witness_stop"] == {"accuracy": 0.75, "kept": 2, "stopped": 3}


def test_kept_curves_are_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "curves.json"
    file.write_text(json.dumps({"bad": BAD}))
    main(["--from", str(file)])
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "| bad | 50 | 75 | 0 (4) | 75 (2 of 3) | 25 (3 of 4) | 75 (2 of 3) |"
    )
    main(["--from", str(file), "--json"])
    assert json.loads(capsys.readouterr().out) == as_rows({"bad": BAD})


@pytest.mark.parametrize("rollouts", ["2", "6", "0"])
def test_four_steps_need_four_equal_batches(rollouts: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reward", "--rollouts", rollouts])
    assert "multiple of four" in capsys.readouterr().err
