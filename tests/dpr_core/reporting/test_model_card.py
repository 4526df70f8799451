from typing import Any

import pytest
from huggingface_hub import ModelCard as Read

from dpr_core.reporting.model_card import Licence, ModelCard, Step, as_markdown
from dpr_core.reporting.report import GoldMeasure, ReportTable, Row

HOSTILE = (
    "x\n---\nlicense: mit\n---\n# Free <script>alert(1)</script> [here](http://evil) ![p](http://evil) | ``` \u202eabc"
)


def card(**changes: Any) -> ModelCard:
    step = Step("sft", "learned", "0" * 64, {"seed": 0, "betas": [0.9, 0.95]})
    values: dict[str, Any] = {
        "repository": "me/model",
        "what": "A model.",
        "licence": Licence("llama3.1", "of the backbone"),
        "facts": {"Data": "rows"},
        "steps": [step],
        "template": {"text": "{system}{prompt}\n", "system": "{system}\n"},
    }
    return ModelCard(**{**values, **changes})


def test_the_metadata_is_what_the_hub_reads() -> None:
    row = Row("DPR", "own", 40, 12.0, 0.0, win_rate=61.25, win_rate_interval=(52.0, 70.5))
    sft = Row("SFT", "own", 40, 12.0, 0.0, is_baseline=True)
    gold = Row("DPR", "e2e", 9, 2.0, 0.0, is_judged=False, gold={"bleu": GoldMeasure("BLEU", 0.5, 0.25, 0.75, True)})
    found = Read(
        as_markdown(card(base_model="meta-llama/Llama-3.1-8B", results=ReportTable("Results", (sft, row, gold))))
    ).data
    assert (found.license, found.base_model, found.library_name) == (
        "llama3.1",
        "meta-llama/Llama-3.1-8B",
        "transformers",
    )
    assert found.model_name == "model"
    assert [(each.metric_name, each.metric_value, each.dataset_name) for each in found.eval_results] == [
        ("DPR: win rate against SFT, % (95% interval 52.0 to 70.5)", 61.25, "own, 40 prompts"),
        ("DPR: BLEU (95% interval 25.0 to 75.0)", 50.0, "e2e, 9 prompts"),
    ]


@pytest.mark.parametrize("place", ["what", "facts", "steps", "template", "results", "datasets", "licence"])
def test_a_text_of_others_stays_a_text(place: str) -> None:
    given = {
        "what": HOSTILE,
        "facts": {HOSTILE: HOSTILE},
        "steps": [Step("sft", HOSTILE, "0" * 64, {HOSTILE: HOSTILE})],
        "template": {"text": HOSTILE, "system": HOSTILE},
        "results": ReportTable(HOSTILE, (Row(HOSTILE, HOSTILE, 1, 1.0, 0.0, accuracy=1.0),), notes=(HOSTILE,)),
        "datasets": [HOSTILE],
        "licence": Licence("other", HOSTILE, HOSTILE, HOSTILE),
    }
    found = Read(as_markdown(card(**{place: given[place]})))
    assert found.data.license == ("other" if place == "licence" else "llama3.1")
    assert "\u202e" not in found.content
    outside, fenced = [], ""
    for line in found.text.splitlines():
        if not fenced and line.startswith("```"):
            fenced = line.removesuffix("python")
        elif fenced and line == fenced:
            fenced = ""
        elif not fenced:
            outside.append(line)
    assert not fenced
    shown = "\n".join(outside)
    for words in ("<script", "[here]", "![p]"):
        assert words not in shown.replace("\\<", "").replace("\\[", "")
    assert "\n# Free" not in shown


@pytest.mark.parametrize(
    "template",
    [
        {"type": "chat", "system": "Be ``` brief."},
        {"text": "{prompt}", "system": "", "default_system": "Be ``` brief."},
    ],
)
def test_the_system_prompt_that_rows_had_by_default_is_said(template: dict[str, str]) -> None:
    assert "the system prompt was\n\n````\nBe ``` brief.\n````" in as_markdown(card(template=template))
    assert "the system prompt was" not in as_markdown(card())
