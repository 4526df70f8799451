"""Conversations under the tokenizer's chat template, from the recipe of the documentation to the answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dpr_core.models.checkpoints import load_model, load_tokenizer
from flows import recipes, wiring
from flows.dispatch import dispatch
from flows.importing import import_request
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome
from tasks.stages.lineage import Lineage
from tests.docs.test_docs import ROOT, blocks
from tests.published import publish
from tests.trained_elsewhere import train

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHORT = """
sft.batch_size=4 sft.checkpoints=[0.5,1.0] reward.probe_demonstrations=4 diagnose=null answer.max_response_tokens=8
reinforce.rollout_batch_size=8 reinforce.batch_size=4 reinforce.iterations=1 reinforce.max_response_tokens=8
judge.by.type=openai
"""


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """Whose end token is that of documents, not of turns."""
    folder = publish("qwen2", tmp_path / "backbone")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHATML}))
    return folder


def conversations(folder: Path) -> Path:
    said = [["user", "add 1 <|im_end|>"], ["assistant", "The answer"], ["user", "add 2"], ["assistant", "is 3"]]
    talk = {"messages": [{"role": role, "content": content} for role, content in said]}
    rows = folder / "conversations.jsonl"
    rows.write_text(f"{json.dumps(talk)}\n" * 6)
    return rows


@pytest.mark.slow
@pytest.mark.integration
def test_what_is_imported_ends_turns_and_not_documents(
    tmp_path: Path, backbone: Path, open_store: Callable[[Path], Store], run_graph: Callable[..., dict[str, Outcome]]
) -> None:
    final, reference = train(load_model(backbone), load_tokenizer(backbone), tmp_path / "run")
    request = import_request(
        str(final),
        str(reference),
        data=str(conversations(tmp_path)),
        assignments=["subsample.template={type: chat}", "subsample.source.columns.messages=messages"],
    )
    store = open_store(tmp_path / "home")
    made = run_graph(store, dispatch(request, store).nodes)["sft"]
    assert made.metrics["data/demonstrations"] == 12
    for checkpoint in (store.fetch(made.id).path / "checkpoints").iterdir():
        tokenizer = load_tokenizer(checkpoint)
        assert tokenizer.eos_token == "<|im_end|>"
        generation = json.loads((checkpoint / "generation_config.json").read_text())
        assert generation["eos_token_id"] == tokenizer.eos_token_id


@pytest.mark.slow
@pytest.mark.integration
def test_a_recipe_of_conversations_runs_to_its_answers(
    tmp_path: Path, backbone: Path, open_store: Callable[[Path], Store], run_graph: Callable[..., dict[str, Outcome]]
) -> None:
    rows, questions = conversations(tmp_path), tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "math", "turns": ["add 3", "add 4"]}) + "\n")
    [recipe] = [block.text for block in blocks(ROOT / "docs" / "data.md") if block.language == "yaml"]
    mine = tmp_path / "mine.yaml"
    mine.write_text(recipe)
    asked = {"type": "mt_bench", "path": str(questions)}
    config = recipes.load(
        str(mine),
        [
            *SHORT.split(),
            f"backbone.name={backbone}",
            f"subsample.source.path={rows}",
            f"evaluation={yaml.safe_dump({'benchmarks': {'mt': asked}}, default_flow_style=True).strip()}",
        ],
    )
    store = open_store(tmp_path / "home")
    needed = ("subsample", "sft", "reward", "reinforce", "answer DPR on mt")
    made = run_graph(store, [node for node in wiring.nodes(config) if node.name in needed])
    assert made["sft"].metrics["data/demonstrations"] == 12
    lineage = Lineage(store)
    policy = store.fetch(made["reinforce"].id)
    tokenizer = lineage.tokenizer(policy)
    assert tokenizer.eos_token == "<|im_end|>"
    for file, name in (("config.json", "eos_token_id"), ("generation_config.json", "eos_token_id")):
        assert json.loads((policy.path / "policy" / file).read_text())[name] == tokenizer.eos_token_id
    [answer] = map(
        json.loads, (store.fetch(made["answer DPR on mt"].id).path / "answers.jsonl").read_text().splitlines()
    )
    assert len(answer["turns"]) == 2
