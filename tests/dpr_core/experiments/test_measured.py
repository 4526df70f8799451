import json
from pathlib import Path

import pytest

from dpr_core.errors import UsageError
from dpr_core.experiments import measured
from dpr_core.experiments.measured import Answers, Arm


def arm(seed: int = 1, name: str = "DPR", right: str = "0110", **measures: float) -> Arm:
    answers = Answers(
        temperature=0.7,
        prompts=len(right),
        questions="q",
        measures={f"answer/{each}": value for each, value in measures.items()},
        by_prompt={"right": right, "likelihood": [-0.5, None, -1.5, -1.0]},
    )
    return Arm(backbone="b", task="t", arm=name, seed=seed, recipe="r", benchmarks={"heldout": answers})


def test_what_is_written_is_read_again_and_small(tmp_path: Path) -> None:
    written = arm(kl_to_sft=0.25)
    (tmp_path / written.file).write_text(written.as_json())
    (tmp_path / "_references.json").write_text("{}")
    assert measured.read(tmp_path) == [written]
    assert json.loads(written.as_json())["benchmarks"]["heldout"]["by_prompt"]["right"] == "0110"


def test_means_are_those_of_the_prompts_or_what_the_stage_stored() -> None:
    answers = arm(kl_to_sft=0.25).benchmarks["heldout"]
    assert answers.mean("right") == 0.5
    assert answers.mean("likelihood") == -1.0
    assert answers.mean("kl_to_sft") == 0.25
    assert answers.mean("entropy") is None


def test_an_arm_is_found_by_its_name_with_every_seed() -> None:
    arms = [arm(2), arm(1), arm(1, "SFT"), arm(3).model_copy(update={"variant": "bfloat16"})]
    assert list(measured.seeds_of(arms, "b", "t", "DPR")) == [1, 2]
    assert list(measured.seeds_of(arms, "b", "t", "DPR bfloat16")) == [3]


def test_a_file_under_another_name_or_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b-t-dpr-seed2.json").write_text(arm(1).as_json())
    with pytest.raises(UsageError, match="b-t-dpr-seed2.json holds b-t-dpr-seed1.json"):
        measured.read(tmp_path)
    (tmp_path / "b-t-dpr-seed2.json").write_text("{}")
    with pytest.raises(UsageError, match="is no measured arm"):
        measured.read(tmp_path)


def test_values_of_prompts_are_digits_where_they_can_be() -> None:
    assert measured.by_prompt([True, 0, 1.0]) == "101"
    assert measured.by_prompt([True, None]) == [1.0, None]
    assert measured.by_prompt([0.12345678]) == [0.123457]
