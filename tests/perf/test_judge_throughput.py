import json

import pytest

from perf import judge_throughput
from perf.judge_throughput import KEY, compare, limit, main, pairs_of, timed


def side(client: float, server: float) -> dict[str, float]:
    return {"per_second": 1.0, "client_busy": client, "server_busy": server}


def test_who_limits() -> None:
    assert [limit(side(*busy)) for busy in ((0.95, 0.2), (0.3, 0.99), (0.5, 0.5))] == ["client", "server", "waiting"]


def test_all_requests_differ() -> None:
    pairs = pairs_of(3, 50)
    texts = [answer.turns[0] for pair in pairs for answer in (pair.candidate, pair.baseline)]
    assert (len(set(texts)), {len(text) for text in texts}) == (6, {50})


@pytest.mark.integration
def test_both_sides_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY, "any")
    monkeypatch.setattr("sys.argv", ["judge_throughput", "--requests", "8", "--concurrency", "2", "--repeats", "1"])
    main()
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["concurrency"] == 2
    for other in (row["bare"], row["post"]):
        ratio = row["ours"]["per_second"] / other["per_second"]
        assert other["ratio"] == pytest.approx(ratio, rel=1e-3, abs=1e-3)
    monkeypatch.setattr("perf.judge_throughput.timed", lambda url, work, expected: timed(url, work, 9))
    with pytest.raises(RuntimeError, match="8 of 9 verdicts"):
        compare(pairs_of(4, 20), 2, 1)


@pytest.mark.integration
def test_kept_verdicts_are_read_without_an_endpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv(KEY, "any")
    monkeypatch.setattr("sys.argv", ["judge_throughput", "--games", "6", "2", "--characters", "9"])
    main()
    found = json.loads(capsys.readouterr().out)
    for kind in ("kept", "rule"):
        few, many = found[kind]["rows"]
        assert (few["games"], many["games"]) == (2, 6)
        assert many["seconds"] > 0
        more = many["megabytes_more"] - few["megabytes_more"]
        assert found[kind]["bytes_a_game"] == pytest.approx(2**20 * more / 4, abs=0.1)


def test_the_page_has_what_was_measured() -> None:
    page, results = judge_throughput.PAGE.read_text("utf-8"), json.loads(judge_throughput.RESULTS.read_text("utf-8"))
    assert judge_throughput.with_section(page, results) == page
