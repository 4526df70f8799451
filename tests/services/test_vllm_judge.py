"""A real model server as judge: vLLM on the CPU, driven by the judge, by its client and by the command line."""

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError
from dpr_core.evaluation.ask import ChatJudge
from dpr_core.evaluation.official.layouts import LAYOUTS
from dpr_core.evaluation.pairwise import Answer, Comparison, Game, Judgment, Pair, Verdict, judge_pairs, summarise
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question
from flows.cli.__main__ import app
from tests.services.vllm import MODEL, Server, save_judge, serving

pytestmark = pytest.mark.services

KEY = "VLLM_TEST_KEY"
ENVIRONMENT = Path(os.environ.get("DENSE_PATH_VLLM") or Path(__file__).parents[2] / ".venv-vllm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (ENVIRONMENT / "bin" / "python").exists():
        pytest.skip(f"there is no vLLM in {ENVIRONMENT}: `make install-vllm` makes it, or set DENSE_PATH_VLLM")
    folder = tmp_path_factory.mktemp("vllm")
    save_judge(folder / "model", positions=8192)
    with serving(ENVIRONMENT, folder / "model", folder / "server.log") as running:
        print(f"vLLM answered after {running.seconds:.0f} s")
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "any")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge(server: Server, **changes: object) -> ChatJudge[Comparison, Judgment]:
    config = settings.OpenAIJudgeConfig.model_validate(
        {"model": MODEL, "base_url": server.url, "max_tokens": 64, **changes}
    )
    execution = settings.JudgeExecutionConfig(api_key_variable=KEY, retries=0, rounds=0)
    return ChatJudge(config, execution, PairwisePrompt(config.max_answer_characters))


def judged(by: ChatJudge[Comparison, Judgment], count: int = 1) -> list[Game]:
    pairs = [
        Pair(Question(f"q{i}", (f"What is {i} + 1?",)), Answer.of(f"{i + 1}"), Answer.of("?")) for i in range(count)
    ]
    return list(asyncio.run(judge_pairs(by, pairs, by.endpoint.execution, lambda done, total, note: None)))


def test_verdicts_come_as_json_of_the_schema(server: Server) -> None:
    by = judge(server)
    first, second = judged(by)
    for game in (first, second):
        assert json.loads(game.raw) == {"reasons": "", "verdict": "A"}
        assert game.verdict is Verdict.FIRST
        assert game.details["verdicts"] == "schema"
        assert game.details["length_limit"] == "max_completion_tokens"
        assert game.details["model"] == MODEL
        assert str(game.details["system_fingerprint"]).startswith("vllm-")
        assert game.details["finish_reason"] == "stop"
    assert (first.score, second.score) == (1.0, 0.0)


def test_the_meter_counts_the_tokens_that_the_server_counted(server: Server) -> None:
    by = judge(server)
    games = judged(by)
    assert by.endpoint.meter.requests == 2
    assert by.endpoint.meter.read == sum(int(game.details["prompt_tokens"]) for game in games) > 0
    assert by.endpoint.meter.written == sum(int(game.details["completion_tokens"]) for game in games) > 0


def test_without_a_schema_this_network_writes_nothing_that_can_be_read(server: Server) -> None:
    games = judged(judge(server, verdicts="text"))
    assert [game.verdict for game in games] == [Verdict.UNREADABLE] * 2
    assert games[0].raw == '"' * 64
    assert games[0].details["finish_reason"] == "length"


def test_a_model_that_is_not_served_is_one_line(server: Server) -> None:
    with pytest.raises(
        DensePathError, match=f"{server.url} refused a request for the model other: .*does not exist"
    ) as e:
        judged(judge(server, model="other"))
    assert "\n" not in str(e.value)


def test_a_request_longer_than_the_model_reads_is_a_game_without_a_verdict(server: Server) -> None:
    by = judge(server)
    pair = Pair(Question("q", ("word " * 20_000,)), Answer.of("a"), Answer.of("b"))
    games = asyncio.run(judge_pairs(by, [pair], by.endpoint.execution, lambda done, total, note: None))
    for game in games:
        assert game.verdict is Verdict.UNREADABLE
        assert re.search("refused a request .*maximum context length", str(game.details["refused"]))
        assert "\n" not in str(game.details["refused"])


def test_another_version_of_the_model_may_be_kept_out(server: Server) -> None:
    version = str(judged(judge(server))[0].details["system_fingerprint"])
    assert len(judged(judge(server, system_fingerprint=version))) == 2
    with pytest.raises(DensePathError, match=f"answers as {version}, not as judge.by.system_fingerprint=vllm-0"):
        judged(judge(server, system_fingerprint="vllm-0"))


def test_many_are_judged_at_once(server: Server) -> None:
    started = time.monotonic()
    games = judged(judge(server), count=64)
    print(f"{len(games) / (time.monotonic() - started):.1f} requests a second")
    result = summarise(games, bootstrap_samples=100, seed=0)
    assert (result.unreadable, result.win_rate, result.first_position_rate) == (0, 50.0, 1.0)
    assert [game.question_id for game in games] == [f"q{i}" for i in range(64) for _ in range(2)]


def test_the_command_line_judges_answer_files_with_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "home"))
    question = Question("81", ("Write.", "Rewrite."))
    (tmp_path / "question.jsonl").write_text('{"question_id": 81, "turns": ["Write.", "Rewrite."]}\n')
    for model in ("mine", "theirs"):
        written = LAYOUTS["mt-bench"].write(model, [(question, (f"The {model} text.", "Another."))])
        (tmp_path / f"{model}.jsonl").write_text(written)
    files = {"questions": "question.jsonl", "answers": "mine.jsonl", "baseline": "theirs.jsonl"}
    values = {"by.model": MODEL, "by.base_url": server.url, "execution.api_key_variable": KEY}
    command = ["benchmark", "judge", "--format", "mt-bench", "--json"]
    command += [part for name, file in files.items() for part in (f"--{name}", str(tmp_path / file))]
    command += [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["win_rate"], document["first_position_rate"], document["unreadable"]) == (50.0, 1.0, 0)
    assert document["warnings"] == [
        "The judge favours the first place: between two equal answers the first won 100% (50% expected).",
        "The judge is fooled by an answer that says nothing: it won 50% against real answers.",
    ]
    # An answer against itself is the same request in both orders; it is sent twice if both go at once.
    assert re.search("[56] requests", first.stderr)
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout) == document
    assert "6 from the cache" in again.stderr
