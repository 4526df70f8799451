"""A finished pipeline as the files of its arms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr_core.config.execution import ExecutionConfig
from dpr_core.errors import UsageError
from dpr_core.experiments import measured
from dpr_core.models.dense_reward import encode_texts
from perf import evidence, reference_correlation
from tasks.artifacts.store import Store
from tasks.stages.lineage import Lineage
from tasks.stages.reward import probes

LABELS = {"backbone": "lab", "backbone_says": "", "task": "tiny", "variant": ""}


@pytest.fixture
def store(made: Any, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DPR_HOME", str(made.home))
    return Store.open()


def test_every_arm_of_a_run_is_a_file_with_what_was_measured(made: Any, store: Store, tmp_path: Path) -> None:
    found = evidence.record_run(store, made.result.json["run_id"], LABELS)
    rows = {row["policy"]: row for row in made.result.json["results"]["rows"]}
    assert {each.arm for each in found} == set(rows)
    for arm in found:
        (answers,) = arm.benchmarks.values()
        assert answers.mean("right") == pytest.approx(rows[arm.arm]["accuracy"])
        assert answers.measures["answer/response_tokens"] == pytest.approx(rows[arm.arm]["response_tokens"], rel=1e-5)
        assert len(str(answers.by_prompt["right"])) == answers.prompts == rows[arm.arm]["prompts"]
    assert len({next(iter(arm.benchmarks.values())).questions for arm in found}) == 1

    trained = next(each for each in found if each.arm == "DPR")
    last = {name: values[-1] for name, values in trained.training["rollout"].items()}
    assert last["return"] == trained.results["rollout/return"]
    assert trained.digests["reinforce"] == store.record(made.id("reinforce")).digest
    assert trained.seconds["sft"] > 0

    files = list(evidence.write(found, tmp_path))
    assert measured.read(tmp_path) == sorted(found, key=lambda each: each.file)
    assert str(made.home) not in "".join(file.read_text() for file in files)


def test_what_is_there_is_not_made_again_nor_overwritten(
    made: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = evidence.record_run(store, made.result.json["run_id"], LABELS)
    list(evidence.write(found, tmp_path))
    list(evidence.write(found, tmp_path))
    with pytest.raises(UsageError, match="give the run a --variant"):
        list(evidence.write([found[0].model_copy(update={"digests": {"sft": "0"}})], tmp_path))
    more = found[0].model_copy(update={"digests": {**found[0].digests, "answers likelihood": "1"}})
    assert [measured.read_file(file) for file in evidence.write([more], tmp_path)] == [more]
    with pytest.raises(UsageError, match=r"\(answers likelihood: 1, not none\): give the run a --variant"):
        list(evidence.write([found[0]], tmp_path))
    list(evidence.write([more], tmp_path))

    monkeypatch.setattr(evidence, "_run", lambda values: pytest.fail("it runs what is there"))
    recipe = Path(__file__).with_name("tiny.yaml")
    seed = str(found[0].seed)
    command = ["run", str(recipe), "--backbone", "lab", "--task", "tiny", "--out", str(tmp_path), "--seeds", seed]
    monkeypatch.setattr("sys.argv", ["evidence.py", *command])
    evidence.main()


def test_only_a_pipeline_that_has_ended_is_measured(made: Any, store: Store) -> None:
    with pytest.raises(UsageError, match="is no run of a pipeline"):
        evidence.record_run(store, made.id("sft"), LABELS)


def test_names_of_folders_stay_out() -> None:
    assert evidence._without_folders({"name": "/home/me/smollm2", "execution": {"threads": 1}, "k": [1]}) == {
        "name": "smollm2",
        "k": [1],
    }
    assert json.dumps(evidence.changes({"name": "none of the recipes"})) == "{}"


def test_rewards_of_all_references_are_correlated(made: Any, store: Store) -> None:
    lineage = Lineage(store)
    sft = store.fetch(made.id("sft"))
    found = reference_correlation.measured(lineage, sft, 6)
    assert found["references"] == [0.0, 0.34, 0.5]
    for kind in ("demonstrations", "answers"):
        matrix = np.array(found[kind]["token_correlation"])
        assert np.diag(matrix) == pytest.approx(1)
        assert matrix == pytest.approx(matrix.T)
        assert reference_correlation.lowest(found, kind) == matrix.min()

    artifact = store.fetch(made.id("reward"))
    texts = encode_texts(lineage.tokenizer(artifact), lineage.renderer(artifact), probes(lineage, sft, 6))
    scored = lineage.dense_reward(artifact, ExecutionConfig())(texts)
    deviation = np.std([float(each) for each in scored.rewards[scored.mask]])
    assert found["demonstrations"]["token_deviation"][2] == pytest.approx(deviation, rel=1e-4)
    assert found["demonstrations"]["tokens"] == int(scored.mask.sum())
