"""Gold measures in a pipeline: answers that a program checks, and the report's table of them."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.base import parse, read_yaml
from dpr_core.config.evaluation import (
    AnswerConfig,
    BestOfNConfig,
    ContrastiveConfig,
    ExtrapolatedConfig,
    JudgeConfig,
    ReportConfig,
    VerifiableJudgeConfig,
)
from dpr_core.config.gold import LikelihoodConfig, WordProblemsConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.data.template import TextRenderer
from dpr_core.errors import UsageError
from flows.wiring import nodes
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.stages.answer import read_answers
from tasks.stages.lineage import Lineage
from tasks.stages.report import DOCUMENT, TABLE
from tests.flows.conftest import TINY

pytestmark = pytest.mark.integration

PROBLEMS = [{"id": str(n), "question": f"Start at {n}, add 1, add 1, add 1.", "answer": (n + 3) % 5} for n in range(4)]


@pytest.fixture
def store(made: Any, open_store: Callable[[Path], Store]) -> Store:
    return open_store(made.home)


def answer(store: Store, source: str, **settings: Any) -> Outcome:
    config = AnswerConfig(**{"max_response_tokens": 12, **settings})
    return run_stage(stage_named("answer"), config, {"policy": source}, store=store)


def test_word_problems_are_measured_and_reported(
    store: Store, made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "problems.jsonl"
    learned = Lineage(store).demonstrations(store.fetch(made.id("sft")))[0].prompt
    problems = [*PROBLEMS[:3], {**PROBLEMS[3], "question": f" {learned.upper()}"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in problems))
    benchmark = WordProblemsConfig(path=str(path))
    with caplog.at_level(logging.WARNING, "dense_path"):
        ours, theirs = (answer(store, made.id(name), benchmark=benchmark) for name in ("reinforce", "sft"))
    rows = read_answers(store.fetch(ours.id).path)
    assert [row["gold"]["right"] for row in rows] == [float(row["right"]) for row in rows]
    metrics = ours.metrics
    assert metrics["gold/right"] == metrics["answer/accuracy"] == sum(row["right"] for row in rows) / 4
    cut = sum(row["cut"] for row in rows)
    assert metrics["gold/cut"] == cut
    assert (f"word_problems: {cut} of the 4 answers were cut" in caplog.text) == bool(cut)
    judge = JudgeConfig(by=VerifiableJudgeConfig(), bootstrap_samples=100)
    sides = {"candidate": ours.id, "baseline": theirs.id}
    judged = run_stage(stage_named("judge"), judge, sides, store=store)
    reported = run_stage(stage_named("report"), ReportConfig(), {"DPR on problems": judged.id}, store=store)
    folder = store.fetch(reported.id).path
    document = json.loads((folder / TABLE).read_text())
    by_policy = {row["policy"]: row["gold"] for row in document["rows"]}
    assert by_policy["DPR"]["right"]["value"] == metrics["gold/right"]
    assert by_policy["SFT"]["right"]["value"] == theirs.metrics["gold/right"]
    assert any("DPR on problems" in note for note in document["notes"]) == bool(cut)
    assert ours.metrics["answer/trained_on"] == 1
    assert "1 of the 4 questions of word_problems are prompts that this policy was trained on" in caplog.text
    assert "1 of the 4 prompts of problems are among those that SFT, DPR learned from." in document["notes"]
    assert "### Gold measures" in (folder / DOCUMENT).read_text()
    of_lab = json.loads((store.fetch(made.id("report")).path / TABLE).read_text())
    assert all("gold" not in row for row in of_lab["rows"])


HELD_OUT = [
    {"id": "a", "question": "Start at 2, add 3.", "response": "Steps: 2+3=0. The answer is 0."},
    {"id": "b", "question": "Start at 1, add 2.", "response": "The answer is 3."},
]


def naive(store: Store, made: Any, policy: str, k: float | None = None) -> list[float]:
    """Of each held-out response, -log p a token in float64, one token after the other."""
    lineage = Lineage(store)
    sft = store.fetch(made.id("sft"))
    tokenizer, renderer = lineage.tokenizer(sft), lineage.renderer(sft)
    folder = store.fetch(made.id(policy)).path / "policy" if policy == "reinforce" else lineage.sft_folder(sft)
    model = lineage.load(folder, like=sft, execution=AnswerConfig.model_fields["execution"].default).model.double()
    definition = lineage.definition(store.fetch(made.id("reward")))
    reference = lineage.load(
        lineage.reference_folders(sft, definition), like=sft, execution=AnswerConfig.model_fields["execution"].default
    ).model.double()
    values = []
    for row in HELD_OUT:
        assert isinstance(renderer, TextRenderer)
        prompt = tokenizer(renderer.render(row["question"], ""))["input_ids"]
        response = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([prompt + response])
        logits = [torch.log_softmax(each(ids).logits[0].detach(), dim=-1) for each in (model, reference)]
        mixed = logits[0] if k is None else torch.log_softmax(logits[0] + k * (logits[0] - logits[1]), dim=-1)
        scores = [float(mixed[len(prompt) + t - 1, token]) for t, token in enumerate(response)]
        values.append(-sum(scores) / len(scores))
    return values


@pytest.mark.slow
def test_held_out_responses_are_scored_by_every_policy_that_is_a_distribution(
    store: Store, made: Any, tmp_path: Path
) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    settings = {"benchmark": LikelihoodConfig(path=str(path)), "max_response_tokens": 64}
    sft, trained = (answer(store, made.id(name), **settings) for name in ("sft", "reinforce"))
    contrast = answer(store, made.id("reward"), policy=ContrastiveConfig(k=2.0), **settings)
    assert answer(store, made.id("reward"), policy=ExtrapolatedConfig(k=2.0), **settings).metrics["gold/perplexity"] > 1
    for outcome, expected in (
        (sft, naive(store, made, "sft")),
        (trained, naive(store, made, "reinforce")),
        (contrast, naive(store, made, "sft", k=2.0)),
    ):
        rows = read_answers(store.fetch(outcome.id).path)
        assert [row["gold"]["nats_per_token"] for row in rows] == pytest.approx(expected, abs=1e-4)
        tokens = [row["tokens"] for row in rows]
        pooled = sum(e * n for e, n in zip(expected, tokens, strict=True)) / sum(tokens)
        assert outcome.metrics["gold/nats_per_token"] == pytest.approx(pooled, abs=1e-4)
        assert outcome.metrics["gold/perplexity"] == pytest.approx(math.exp(pooled), rel=1e-3)
    inputs = {"SFT on held out": sft.id, "DPR on held out": trained.id, "DPR on lab": made.id("judge DPR on lab")}
    reported = run_stage(stage_named("report"), ReportConfig(), inputs, store=store)
    document = json.loads((store.fetch(reported.id).path / TABLE).read_text())
    found = {(row["policy"], row["benchmark"]): row for row in document["rows"]}
    assert found["DPR", "held out"]["gold"]["nats_per_token"]["value"] == trained.metrics["gold/nats_per_token"]
    assert found["DPR", "held out"]["win_rate"] is None
    assert found["SFT", "held out"]["is_baseline"]
    assert "gold" not in found["DPR", "lab"]
    assert reported.metrics["held out/DPR/gold_nats_per_token"] == trained.metrics["gold/nats_per_token"]
    with pytest.raises(UsageError, match="no likelihood is known of it"):
        answer(store, made.id("reward"), policy=BestOfNConfig(n=2), **settings)
    short = answer(store, made.id("sft"), benchmark=settings["benchmark"], max_response_tokens=4)
    assert short.metrics["gold/cut"] == 2


def test_a_pipeline_scores_likelihoods_without_a_judge(tmp_path: Path) -> None:
    values = read_yaml(TINY.read_text(), "tiny.yaml")
    values.pop("name"), values.pop("description")
    values["evaluation"]["benchmarks"]["likelihood"] = {"path": "held_out.jsonl"}
    values["evaluation"]["controls"]["best"] = {"type": "best_of_n", "n": 2}
    found = {node.name: node for node in nodes(parse(PipelineConfig, values, "tiny"))}
    assert {name for name in found if name.endswith("on likelihood")} == {
        f"answer {policy} on likelihood" for policy in ("SFT", "DPR", "extrapolated")
    }
    assert found["report"].inputs["SFT on likelihood"] == "@answer SFT on likelihood"


def test_a_pipeline_checks_the_diagnosis_by_what_demonstrations_state_unless_they_are_the_labs() -> None:
    values = read_yaml(TINY.read_text(), "tiny.yaml")
    values.pop("name"), values.pop("description")

    def diagnosed(**source: Any) -> Any:
        config = parse(PipelineConfig, values | {"subsample": values["subsample"] | source}, "tiny")
        return next(node.config for node in nodes(config) if node.stage == "diagnose")

    assert "stated_results" not in diagnosed().identity()
    assert diagnosed(source={"type": "file", "path": "rows.jsonl"}).identity()["stated_results"] is True
