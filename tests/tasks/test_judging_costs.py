"""What the judging of a pipeline would cost, before anything is there."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from dpr_core.config.evaluation import AnswerConfig, FileBenchmarkConfig
from dpr_core.config.official import AlpacaEvalConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.spending import BILLION, SPENDING, Spending
from dpr_core.experiments.points import Study
from flows import recipes, wiring
from flows.cli.costs import costs as show_costs
from flows.cli.costs_view import views
from flows.judging_costs import QUESTION_TOKENS, BudgetLeft, Costs, judging_costs
from flows.merging import MergedStudies
from tasks.graph import Planned, obstacles
from tasks.registry import stage_named

PROMPTS = {"alpaca_eval": 805, "arena_hard": 500, "lima": 300, "mt_bench": 80}


@pytest.fixture(autouse=True)
def _nothing_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names, **where: None)


def costs(*changes: str, recipe: str = "paper-table1") -> Costs:
    nodes = wiring.nodes(recipes.load(recipe, changes))
    planned = [Planned(node.name, node.stage, "run", None, "") for node in nodes]
    nothing: Any = None
    return judging_costs(nodes, planned, nothing)


def test_every_method_is_judged_in_both_orders_on_every_benchmark_and_rated_on_mt_bench() -> None:
    found = costs()
    lines = {(line.stage, line.benchmark): line for line in found.lines}
    for name, prompts in PROMPTS.items():
        line = lines.pop(("judge", name))
        # DPR, seven methods and six controls, and once two canaries of two kinds, all in both orders.
        assert (line.judgments, line.prompts, line.cost.requests) == (14, prompts, 14 * 2 * prompts + 8)
        assert line.cost.tokens_written_at_most == 512 * line.cost.requests
    rated = lines.pop(("rate", "mt_bench"))
    # These fourteen and SFT, two turns each, and once two canaries' two turns.
    assert (rated.judgments, rated.prompts, rated.cost.requests) == (15, 80, 15 * 160 + 4)
    assert lines == {}
    assert found.total.requests == 14 * 2 * 1685 + 32 + 2404
    assert found.reused == 0


def test_the_most_that_is_read_is_the_longest_question_and_two_of_the_longest_answers() -> None:
    sizes = [(1024, 1024), (1024, 512), (512, 512)]
    found = [
        costs(
            f"answer.max_prompt_tokens={prompt}", f"answer.max_response_tokens={response}", "judge.execution.canaries=0"
        )
        for prompt, response in sizes
    ]
    alpaca = [each.lines[0].cost for each in found]
    assert alpaca[0].requests == 14 * 2 * 805
    for more, fewer, tokens in ((0, 1, 2 * 512), (1, 2, 512)):
        added = alpaca[more].tokens_read_at_most - alpaca[fewer].tokens_read_at_most
        assert added == pytest.approx(alpaca[0].requests * tokens, rel=0.002)
    # About: half of the longest answers, and a question of an average length.
    assert alpaca[0].tokens_read_about - alpaca[1].tokens_read_about == pytest.approx(
        alpaca[0].requests * 512, rel=0.002
    )
    assert alpaca[1].tokens_read_about == alpaca[2].tokens_read_about


def test_dollars_are_those_of_the_tokens_and_half_of_them_in_a_batch() -> None:
    lima = "evaluation.benchmarks={lima: {}}"
    whole = costs(lima).total
    assert whole.dollars_at_most == pytest.approx(
        whole.tokens_read_at_most * 2.5e-6 + whole.tokens_written_at_most * 1e-5
    )
    assert whole.dollars_about == pytest.approx(whole.tokens_read_about * 2.5e-6 + whole.tokens_written_about * 1e-5)
    half = costs(lima, "judge.by.type=openai-batch").total
    assert half.dollars_at_most == pytest.approx(whole.dollars_at_most / 2)


def test_a_file_that_is_here_is_counted_as_it_is(tmp_path: Path) -> None:
    rows = [{"question_id": n, "category": "writing", "turns": ["Why?", "Why not?"]} for n in range(3)]
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    only = f"evaluation.benchmarks={{mt_bench: {{path: {file}}}}}"
    found = costs(only, "methods={}", "evaluation.controls={}")
    assert [(line.stage, line.judgments, line.prompts, line.cost.requests) for line in found.lines] == [
        ("judge", 1, 3, 6 + 8),
        ("rate", 2, 3, 2 * 6 + 4),
    ]
    assert not any("not on this machine" in line for line in found.assumed)


def test_what_the_numbers_rest_on_is_said() -> None:
    said = " ".join(costs("answer.max_response_tokens=900").assumed)
    assert "The questions of alpaca_eval, arena_hard, lima, mt_bench are not on this machine" in said
    assert f"{QUESTION_TOKENS} tokens" in said
    assert "at most 900 tokens a turn, and about 50% of that" in said


def test_a_judge_that_is_not_paid_costs_nothing() -> None:
    assert costs(recipe="demo") == Costs((), 0, ())


def test_a_plan_does_not_fetch_and_a_run_finds_out_before_it_trains() -> None:
    answer = stage_named("answer")
    there = answer.missing(AnswerConfig(benchmark=AlpacaEvalConfig()))
    assert there == "alpaca_eval.json of the dataset tatsu-lab/alpaca_eval is not on this machine yet"
    assert answer.missing(AnswerConfig(benchmark=AlpacaEvalConfig(path="here.json"))) is None
    with pytest.raises(UsageError, match="there is no such benchmark file"):
        answer.preflight([AnswerConfig(benchmark=FileBenchmarkConfig(path="nowhere.jsonl"))])


def test_the_cost_of_the_papers_table_is_as_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "judging.md").read_text(encoding="utf-8")
    backbones = re.search(r"dpr sweep paper-table1 --over backbone.name=(\S+) --dry-run", page)
    assert backbones is not None
    over = {"backbone.name": backbones[1].split(",")}
    merged = MergedStudies.of([Study(title="", config=recipes.load("paper-table1"), over=over)]).graph
    planned = [Planned(node.name, node.stage, "run", None, "") for node in merged.nodes]
    nothing: Any = None
    cost = judging_costs(merged.nodes, planned, nothing).total
    dollars = [f"{round(amount, -1):,.0f}" for amount in (cost.dollars_about or 0, cost.dollars_at_most or 0)]
    assert f"That is {cost.requests:,} calls: about {dollars[0]} dollars, and at most {dollars[1]}." in page


PAID = ("judge.by.type=openai", "judge.execution.budget_dollars=5")


def test_a_plan_says_what_the_ledger_has_left_and_the_command_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPR_HOME", str(tmp_path))
    nodes = wiring.nodes(recipes.load("demo", PAID))
    planned = [Planned(node.name, node.stage, "run", None, "") for node in nodes]
    home: Any = SimpleNamespace(home=tmp_path)
    assert judging_costs(nodes, planned, home).budgets == (BudgetLeft("judging", 5.0, 5.0),)
    show_costs()
    assert "Nothing has been judged for money" in capsys.readouterr().out
    ledger = Spending(tmp_path / SPENDING)
    paid, _ = (ledger.charge("judging", "gpt-4o", 2 * BILLION, None) for _ in range(2))
    assert paid is not None
    ledger.answer(paid, BILLION, 7, 3)
    ledger.flush()
    found = judging_costs(nodes, planned, home)
    assert found.budgets == (BudgetLeft("judging", 5.0, 2.0),)
    shown = [str(view) for view in views(found)]
    assert "The budget of judging has $2.00 left of $5.00: that may not be enough." in shown
    show_costs(as_json=True)
    assert json.loads(capsys.readouterr().out)["spent"] == [
        {
            "account": "judging",
            "model": "gpt-4o",
            "requests": 1,
            "read": 7,
            "written": 3,
            "dollars": 1.0,
            "without_price": 0,
            "without_answer": 1,
            "set_aside": 2.0,
        }
    ]
    show_costs()
    assert "gpt-4o" in capsys.readouterr().out


def test_a_budget_is_refused_where_another_machine_would_have_a_ledger_of_its_own() -> None:
    nodes = wiring.nodes(recipes.load("demo", PAID))
    planned = [Planned(node.name, node.stage, "run", None, "") for node in nodes]
    placed = {node.name for node in nodes if node.stage == "judge"}
    refused = [each for each in obstacles(nodes, planned, placed) if "--place judge=here" in each]
    assert len(refused) == len(placed) > 0
    assert not any("--place" in each for each in obstacles(nodes, planned))
