import json

import pytest
import transformers

from dpr_core.data.encoding import TokenSequence
from perf.rollouts import drawn_up, main, markdown
from perf.sizes import PROMPTS, RESPONSES, ragged, share_of_tokens


def test_a_row_says_how_fast_both_sides_are() -> None:
    row = {
        "size": "tiny",
        "parameters": 430_000,
        "rows": 32,
        "tokens_per_second": {"engine": 5000.4, "generate": 2000.0, "continuous": 1000.0},
        "ratio": {"generate": 2.5, "continuous": 5.0},
        "ratios": {"generate": [2.4, 2.75, 2.5], "continuous": [5.0, 4.0, 5.5]},
        "cpu_ratio": {"generate": 2.25, "continuous": 4.5},
    }
    assert markdown([row]).splitlines() == [
        "| network | parameters | rows | engine, tokens/s | next to | tokens/s | ratio | of single repeats "
        "| of CPU time |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
        "| tiny | 0.4M | 32 | 5,000 | `generate` | 2,000 | 2.50 | 2.40 to 2.75 | 2.25 |",
        "| tiny | 0.4M | 32 | 5,000 | continuous batching | 1,000 | 5.00 | 4.00 to 5.50 | 4.50 |",
    ]


def test_the_work_is_ragged() -> None:
    work = drawn_up(500, 512)
    assert {min(map(len, work.prompts)), max(map(len, work.prompts))} == set(PROMPTS)
    assert {min(work.lengths), max(work.lengths)} == set(RESPONSES)
    assert work.prompts != sorted(work.prompts, key=len), "nobody sorted them for `generate`"


def test_half_of_what_is_padded_is_padding() -> None:
    assert share_of_tokens([TokenSequence((3,), (4,)), TokenSequence((3, 3), (4, 4))], batch=2) == 6 / 8
    assert share_of_tokens([TokenSequence((3,), (4,)), TokenSequence((3, 3), (4, 4))], batch=1) == 1
    assert share_of_tokens(ragged(3200, "tiny"), batch=32) == pytest.approx(0.48, abs=0.02)


@pytest.mark.slow
def test_all_sides_draw_responses_of_the_lengths_they_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark itself fails where they do not."""
    words = ["rollouts.py", "--sizes", "toy", "--prompts", "7", "--rows", "3", "--repeats", "2", "--json"]
    monkeypatch.setattr("sys.argv", words)
    main()
    results = json.loads(capsys.readouterr().out)
    (row,) = results["rows"]
    assert results["ratios"] == {
        "rollout_vs_generate_toy": row["cpu_ratio"]["generate"],
        "rollout_vs_continuous_toy": row["cpu_ratio"]["continuous"],
    }
    assert results["machine"]["transformers"] == transformers.__version__
    assert row["tokens"] == sum(drawn_up(7, 512).lengths)
    assert row["parameters"] == 512 * 32 + 4 * 32**2 + 3 * 32 * 64 + 3 * 32
    speed = row["tokens_per_second"]
    for other in ("generate", "continuous"):
        assert row["ratio"][other] == pytest.approx(speed["engine"] / speed[other])
        assert len(row["ratios"][other]) == 2
