import json
import subprocess

import pytest
import transformers

from dpr_core.data.encoding import TokenSequence
from perf import rollouts
from perf.rollouts import drawn_up, main
from perf.sizes import PROMPTS, RESPONSES, ragged, share_of_tokens


def test_the_work_is_ragged() -> None:
    work = drawn_up(500, 512)
    assert {min(map(len, work.prompts)), max(map(len, work.prompts))} == set(PROMPTS)
    assert {min(work.lengths), max(work.lengths)} == set(RESPONSES)
    assert work.prompts != sorted(work.prompts, key=len), "nobody sorted them for `generate`"


def test_half_of_what_is_padded_is_padding() -> None:
    assert share_of_tokens([TokenSequence((3,), (4,)), TokenSequence((3, 3), (4, 4))], batch=2) == 6 / 8
    assert share_of_tokens([TokenSequence((3,), (4,)), TokenSequence((3, 3), (4, 4))], batch=1) == 1
    assert share_of_tokens(ragged(3200, "tiny"), batch=32) == pytest.approx(0.48, abs=0.02)


def test_a_vllm_that_ends_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", "read line; exit 3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ending:
        monkeypatch.setattr(rollouts, "vllm", lambda *_: ending)
        with pytest.raises(SystemExit, match=r"^vLLM has ended, with status 3"):
            rollouts.by_vllm("toy", drawn_up(1, 512), 1, "float32")


@pytest.mark.slow
def test_all_sides_draw_responses_of_the_lengths_they_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark itself fails where they do not."""
    words = ["rollouts.py", "--sizes", "toy", "--prompts", "7", "--rows", "3", "--repeats", "2", "--json"]
    monkeypatch.setattr("sys.argv", words)
    main()
    results = json.loads(capsys.readouterr().out)
    ours, generate, continuous = results["rows"]
    assert results["ratios"] == {
        "rollout_vs_generate_toy_3": generate["ours_over_it"],
        "rollout_vs_continuous_toy_3": continuous["ours_over_it"],
    }
    assert results["machine"]["transformers"] == transformers.__version__
    assert ours["tokens"] == sum(drawn_up(7, 512).lengths)
    for other in (generate, continuous):
        assert other["ours_over_it"] == pytest.approx(ours["tokens_per_second"] / other["tokens_per_second"])
        assert len(other["seconds_per_token"]) == 2
