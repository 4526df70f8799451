"""Reward options, policies without training, and the position profile, on the tiny pipeline's models."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpr_core.config.evaluation import (
    AnswerConfig,
    BestOfNConfig,
    ContrastiveConfig,
    ExtrapolatedConfig,
    KeptConfig,
    SFTPolicyConfig,
)
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.reward import RewardConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError, UsageError
from flows import wiring
from flows.export import export_checkpoint
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.stages.answer import read_answers
from tasks.stages.lineage import Lineage
from tests.interruption import Interruptible, Killed

Tiny = Callable[..., Any]


@pytest.fixture
def store(made: Any, open_store: Callable[[Path], Store]) -> Store:
    return open_store(made.home)


@pytest.fixture
def sft(made: Any, store: Store, tiny: Tiny) -> str:
    """The tiny SFT run with its moving average kept."""
    inputs = {"data": made.id("subsample"), "backbone": made.id("backbone")}
    return run_stage(stage_named("sft"), tiny("sft.ema_decay=0.5").sft, inputs, store=store).id


def reward_of(store: Store, sft: str, **settings: Any) -> Outcome:
    config = RewardConfig(probe_demonstrations=4, **settings)
    return run_stage(stage_named("reward"), config, {"sft": sft}, store=store)


def answer(store: Store, source: str, tiny: Tiny, **settings: Any) -> Outcome:
    base = tiny()
    config = AnswerConfig(**{**dict(base.answer), "benchmark": base.evaluation.benchmarks["lab"], **settings})
    return run_stage(stage_named("answer"), config, {"policy": source}, store=store)


def definition(store: Store, outcome: Outcome) -> dict[str, Any]:
    text = (store.fetch(outcome.id).path / "reward.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def token_rewards(store: Store, outcome: Outcome) -> list[float]:
    lines = (store.fetch(outcome.id).path / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()
    return [token["reward"] for line in lines for token in json.loads(line)["tokens"]]


def test_a_plain_reward_is_equation_5_unscaled(store: Store, sft: str) -> None:
    plain = reward_of(store, sft)
    assert definition(store, plain) == {
        "formula": "baseline_relative", "reference": [0.5], "scale": 1.0, "clip_above": None, "seed": 0,
        "candidates": {},
    }  # fmt: skip
    assert plain.metrics["reward/value_gap_rms"] >= abs(plain.metrics["reward/value_gap_mean"]) > 0


def test_normalising_makes_the_deviation_one_and_a_clip_comes_after_it(store: Store, sft: str) -> None:
    plain = reward_of(store, sft)
    normal = reward_of(store, sft, normalise=True, clip_above=0.5)
    scale = definition(store, normal)["scale"]
    raw = token_rewards(store, plain)
    mean = sum(raw) / len(raw)
    assert scale == pytest.approx(math.sqrt(sum((r - mean) ** 2 for r in raw) / len(raw)), rel=1e-5)
    assert token_rewards(store, normal) == pytest.approx([min(r / scale, 0.5) for r in raw], rel=1e-5, abs=1e-6)
    assert max(raw) / scale > 0.5
    alone = reward_of(store, sft, normalise=True)
    assert alone.metrics["reward/token_deviation"] == pytest.approx(1, rel=1e-5)


def test_what_is_built_on_a_reward_uses_its_definition(store: Store, sft: str) -> None:
    made = reward_of(store, sft, normalise=True, clip_above=0.5, formula="random_sign", seed=3)
    reward = Lineage(store).dense_reward(store.fetch(made.id), ExecutionConfig())
    scale = definition(store, made)["scale"]
    found = reward.formula, reward.scale, reward.clip_above, reward.seed
    assert found == ("random_sign", scale, 0.5, 3)


def test_a_mean_of_checkpoints_is_computed_and_exported_and_never_stored(
    store: Store, made: Any, sft: str, dpr: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = reward_of(store, sft, reference=(0.5, 0.34))
    assert definition(store, outcome)["reference"] == [0.34, 0.5]
    folder = store.fetch(outcome.id).path
    assert not list(folder.rglob("*.safetensors"))
    written = dpr("export", outcome.id, tmp_path / "ref", "--part", "ref", "--json", home=made.home).json
    assert written["checkpoint"] == "reward 0.34 + 0.5"
    checkpoints = store.fetch(sft).path / "checkpoints"
    parts = [load_file(checkpoints / name / "model.safetensors") for name in ("0.34", "0.5")]
    for name, weight in load_file(tmp_path / "ref" / "model.safetensors").items():
        assert weight.allclose((parts[0][name] + parts[1][name]) / 2, atol=1e-6)


def test_the_moving_average_as_the_reference(
    store: Store, made: Any, sft: str, dpr: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = reward_of(store, sft, reference="ema")
    assert definition(store, outcome)["reference"] == ["ema"]
    weights = (store.fetch(sft).path / "checkpoints" / "ema" / "model.safetensors").read_bytes()
    for artifact, part in ((sft, "ema"), (outcome.id, "ref")):
        dpr("export", artifact, tmp_path / artifact, "--part", part, home=made.home)
        assert (tmp_path / artifact / "model.safetensors").read_bytes() == weights
    with pytest.raises(UsageError, match="keeps no moving average"):
        reward_of(store, made.id("sft"), reference="ema")


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_backbone_as_the_reference(
    store: Store, made: Any, tiny: Tiny, dpr: Callable[..., Any], tmp_path: Path, pretrained: bool
) -> None:
    """The lab's, and one in a folder, which has to be as it was when SFT read it."""
    backbone = store.fetch(made.id("backbone")).path / "model"
    folder, sft = tmp_path / "backbone", made.id("sft")
    if pretrained:
        shutil.copytree(backbone, folder)
        config = tiny().sft.model_copy(update={"backbone": PretrainedBackboneConfig(name=str(folder), dtype="float32")})
        sft = run_stage(stage_named("sft"), config, {"data": made.id("subsample")}, store=store).id
    outcome = reward_of(store, sft, reference=0.0)
    assert definition(store, outcome)["reference"] == [0.0]
    artifact = store.fetch(outcome.id)
    reward = Lineage(store).dense_reward(artifact, ExecutionConfig())
    sequence = TokenSequence((3, 4, 5), (6, 7, 2))
    scored = reward([sequence])
    logs = []
    for source in (store.fetch(sft).path / "checkpoints" / "1.0", backbone):
        logits = AutoModelForCausalLM.from_pretrained(source)(torch.tensor([[3, 4, 5, 6, 7, 2]])).logits.double()
        logs.append(logits.log_softmax(-1)[0, [2, 3, 4], [6, 7, 2]])
    assert scored.rewards[0].tolist() == pytest.approx((logs[0] - logs[1]).tolist(), abs=1e-5)
    dpr("export", outcome.id, tmp_path / "ref", "--part", "ref", home=made.home)
    exported = load_file(tmp_path / "ref" / "model.safetensors")
    assert all(weight.equal(exported[name]) for name, weight in load_file(backbone / "model.safetensors").items())
    if pretrained:
        (folder / "notes.txt").write_text("since")
        with pytest.raises(DensePathError, match="changed after its hash was noted"):
            Lineage(store).dense_reward(artifact, ExecutionConfig())
        shutil.rmtree(folder)
        with pytest.raises(UsageError, match="there is no such folder now"):
            Lineage(store).dense_reward(artifact, ExecutionConfig())


def test_a_teacher_in_the_place_of_sft(store: Store, made: Any, tiny: Tiny, tmp_path: Path) -> None:
    """The policy that REINFORCE made teaches; its own reward is then that of its log-ratio to SFT."""
    folder = tmp_path / "teacher"
    export_checkpoint(store, made.id("reinforce"), folder, None)
    teacher = PretrainedBackboneConfig(name=str(folder), dtype="float32")
    outcome = reward_of(store, made.id("sft"), reference=1.0, teacher=teacher)
    held = definition(store, outcome)
    assert (held["reference"], held["teacher"]["name"]) == ([1.0], str(folder))
    reward = Lineage(store).dense_reward(store.fetch(outcome.id), ExecutionConfig())
    assert reward.reference is reward.sft
    sequence = TokenSequence((3, 4, 5), (6, 7, 2))
    logs = []
    for source in (folder, store.fetch(made.id("sft")).path / "checkpoints" / "1.0"):
        logits = AutoModelForCausalLM.from_pretrained(source)(torch.tensor([[3, 4, 5, 6, 7, 2]])).logits.double()
        logs.append(logits.log_softmax(-1)[0, [2, 3, 4], [6, 7, 2]])
    assert reward([sequence]).rewards[0].tolist() == pytest.approx((logs[0] - logs[1]).tolist(), abs=1e-5)
    diagnosis = run_stage(stage_named("diagnose"), tiny().diagnose, {"reward": outcome.id}, store=store)
    assert diagnosis.metrics["diagnose/answers"] == 8
    with pytest.raises(UsageError, match="has a teacher; make it of a reward without one"):
        answer(store, outcome.id, tiny, policy=ContrastiveConfig(k=3))

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UsageError, match=r"another vocabulary than the SFT model: .* of which 2 differ"):
        reward_of(store, made.id("sft"), reference=1.0, teacher=teacher)


def test_a_reference_that_is_no_checkpoint_of_the_run_is_refused(store: Store, made: Any) -> None:
    with pytest.raises(UsageError, match=r"keeps the fractions 0.34, 0.5, 1, not 0.7 \(0 is its backbone\)"):
        reward_of(store, made.id("sft"), reference=(0.0, 0.7))


def test_prompts_of_their_own_are_an_artifact_and_their_overlaps_are_counted(
    store: Store, made: Any, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two of four prompts are SFT's, and one of these and of the others is a question of the benchmark."""
    learned = Lineage(store).demonstrations(store.fetch(made.id("sft")))
    asked = [row["question"]["turns"][0] for row in read_answers(store.fetch(made.id("answer SFT on lab")).path)]
    texts = [learned[0].prompt, learned[1].prompt, asked[0], "Start at 1, add 1, add 1, add 1."]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    source = f"prompts.source={{type: file, path: {file}, columns: {{response: null}}}}"
    nodes = {node.name: node for node in wiring.nodes(tiny(source))}
    drawn = run_stage(stage_named("prompts"), nodes["prompts"].config, {"data": made.id("subsample")}, store=store)
    assert drawn.metrics["data/prompt_overlap"] == 0.5
    assert nodes["reinforce"].inputs == {"reward": "@reward", "prompts": "@prompts"}
    inputs = {"reward": made.id("reward"), "prompts": drawn.id}
    trained = run_stage(stage_named("reinforce"), nodes["reinforce"].config, inputs, store=store)
    assert trained.metrics["data/prompt_overlap"] == 0.5
    assert trained.id != made.id("reinforce")
    outcome = answer(store, trained.id, tiny)
    assert outcome.metrics["answer/trained_on"] == 1
    assert "1 of the 12 questions of lab are prompts that this policy was trained on" in caplog.text
    assert "answer/trained_on" not in answer(store, made.id("reinforce"), tiny).metrics


def test_prompts_without_a_source_are_another_draw_from_that_of_the_demonstrations(
    store: Store, made: Any, tiny: Tiny
) -> None:
    config = tiny("prompts.overlap=0").prompts
    assert config is not None
    outcome = run_stage(stage_named("prompts"), config, {"data": made.id("subsample")}, store=store)
    assert store.fetch(outcome.id).config["source"] == store.fetch(made.id("subsample")).config["source"]
    assert outcome.metrics["data/prompt_overlap"] == 0
    assert outcome.metrics["data/rows_kept"] > 0


def test_the_validated_reference_is_the_candidate_with_the_best_score(store: Store, sft: str) -> None:
    outcome = reward_of(store, sft, reference="validated")
    found = definition(store, outcome)
    assert set(found["candidates"]) == {"0.34", "0.5"}
    best = max(found["candidates"], key=found["candidates"].get)
    assert found["reference"] == [float(best)]
    assert outcome.metrics["reward/chosen_reference"] == float(best)
    for name, score in found["candidates"].items():
        assert outcome.metrics[f"reward/detection_auroc/{name}"] == score
        assert 0 <= score <= 1


@pytest.mark.parametrize(
    ("policy", "has_kl"),
    [
        (ContrastiveConfig(k=3), True),
        (BestOfNConfig(n=3), False),
        (BestOfNConfig(n=3, by="log_sft"), False),
    ],
)
def test_policies_without_training_answer(
    store: Store, made: Any, tiny: Tiny, policy: ContrastiveConfig | BestOfNConfig, has_kl: bool
) -> None:
    outcome = answer(store, made.id("reward"), tiny, policy=policy)
    rows = read_answers(store.fetch(outcome.id).path)
    assert len(rows) == 12
    assert ("answer/kl_to_sft" in outcome.metrics) == has_kl
    assert all((row["kl_to_sft"] is not None) == has_kl for row in rows)
    bound = outcome.metrics.get("answer/kl_bound")
    assert bound is None if has_kl else bound == pytest.approx(math.log(3) - 2 / 3)
    with pytest.raises(UsageError, match="is made of a reward"):
        answer(store, made.id("sft"), tiny, policy=policy)


@pytest.mark.parametrize("source", ["reinforce", "reward"])
def test_the_profile_counts_the_answers_at_each_position_and_adds_up_to_the_mean_kl(
    store: Store, made: Any, tiny: Tiny, source: str
) -> None:
    settings = {"policy": ContrastiveConfig(k=3)} if source == "reward" else {}
    outcome = answer(store, made.id(source), tiny, **settings)
    folder = store.fetch(outcome.id).path
    profile, rows = json.loads((folder / "profile.json").read_text(encoding="utf-8")), read_answers(folder)
    assert [p["position"] for p in profile] == list(range(max(row["tokens"] for row in rows)))
    for p in profile:
        assert p["answers"] == sum(row["tokens"] > p["position"] for row in rows)
        assert p["kl_to_sft"] >= -1e-6
    total = sum(p["kl_to_sft"] * p["answers"] for p in profile)
    assert total / len(rows) == pytest.approx(outcome.metrics["answer/kl_to_sft"], abs=1e-5)


def test_answers_of_sft_have_no_profile(store: Store, made: Any) -> None:
    assert not (store.fetch(made.id("answer SFT on lab")).path / "profile.json").exists()
    assert (store.fetch(made.id("answer DPR on lab")).path / "profile.json").is_file()


def test_a_reward_of_an_earlier_version_says_how_to_make_it_again(
    store: Store, sft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = reward_of(store, sft)
    monkeypatch.setattr("tasks.stages.lineage.REWARD", "elsewhere.json")
    with pytest.raises(UsageError, match=f"dpr rerun {outcome.id[:8]}"):
        Lineage(store).definition(store.fetch(outcome.id))


@pytest.fixture
def kept(made: Any, store: Store, tiny: Tiny) -> Outcome:
    """A REINFORCE run that keeps a policy on its way, and one at a KL that it never reaches."""
    config = tiny("reinforce.learning_rate=1e-2", "reinforce.guard=null", "reinforce.keep_at_kl=[90, 1e-3]").reinforce
    return run_stage(stage_named("reinforce"), config, {"reward": made.id("reward")}, store=store)


@pytest.mark.integration
def test_a_policy_kept_on_the_way_is_a_checkpoint_that_can_be_exported(
    kept: Outcome, store: Store, made: Any, tiny: Tiny, tmp_path: Path
) -> None:
    folder = store.fetch(kept.id).path
    assert [path.name for path in (folder / "kept").iterdir()] == ["0.001"]
    assert kept.metrics["kept/0.001/reached"] == 1 > kept.metrics["kept/90/reached"] == 0
    told = json.loads((folder / "kept/0.001/rollout.json").read_text())
    assert told["rollout/kl"] == kept.metrics["kept/0.001/kl"] >= 1e-3
    ours, last = (load_file(folder / each / "model.safetensors") for each in ("kept/0.001", "policy"))
    assert any(not weight.equal(last[name]) for name, weight in ours.items())
    export_checkpoint(store, kept.id, tmp_path / "out", "0.001")
    assert all(w.equal(ours[name]) for name, w in load_file(tmp_path / "out/model.safetensors").items())
    for part, words in (
        ("90", "never reached 90"),
        ("0.5", "--set 'keep_at_kl=[0.001, 0.5, 90]'"),
        ("early", "--part early: the KL to SFT"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            export_checkpoint(store, kept.id, tmp_path / "none", part)


def test_keeping_no_policies_leaves_the_identity_as_it_was(tiny: Tiny) -> None:
    assert "keep_at_kl" not in tiny().reinforce.identity()
    assert tiny("reinforce.keep_at_kl=[0.2, 0.1]").reinforce.identity()["keep_at_kl"] == [0.1, 0.2]
    with pytest.raises(UsageError, match="0.1 stands here twice"):
        tiny("reinforce.keep_at_kl=[0.1, 0.1]")


def rows_of(store: Store, outcome: Outcome) -> list[dict[str, Any]]:
    return read_answers(store.fetch(outcome.id).path)


@pytest.mark.integration
def test_sft_has_its_own_temperature_and_an_entropy(store: Store, made: Any, tiny: Tiny) -> None:
    sft = made.id("sft")
    cooler = answer(store, sft, tiny, policy=SFTPolicyConfig(temperature=0.3))
    plain = answer(store, sft, tiny, temperature=0.3)
    assert rows_of(store, cooler) == rows_of(store, plain)
    assert cooler.metrics["answer/kl_to_sft"] == 0, "it is the same network"
    assert cooler.metrics["answers/entropy"] == pytest.approx(plain.metrics["answers/entropy"])
    greedy = answer(store, sft, tiny, policy=SFTPolicyConfig(temperature=0.0))
    assert greedy.metrics["answers/entropy"] == 0
    assert "answers/entropy" not in answer(store, made.id("reward"), tiny, policy=BestOfNConfig(n=2)).metrics
    far = answer(store, made.id("reward"), tiny, temperature=0.0, policy=ExtrapolatedConfig(k=2))
    assert far.metrics["answers/entropy"] == 0 < far.metrics["answers/entropy_at_1"]


@pytest.mark.integration
def test_a_kept_policy_answers_and_where_there_is_none_the_last_one_does(
    kept: Outcome, store: Store, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    early = answer(store, kept.id, tiny, policy=KeptConfig(kl=1e-3))
    last = answer(store, kept.id, tiny)
    absent = answer(store, kept.id, tiny, policy=KeptConfig(kl=90))
    assert early.metrics["answer/kept_reached"] == 1
    assert 0 < early.metrics["answer/kl_to_sft"] != last.metrics["answer/kl_to_sft"]
    assert absent.metrics["answer/kept_reached"] == 0
    assert rows_of(store, absent) == rows_of(store, last)
    assert "never reached 90; the policy that it ended with answers" in caplog.text
    with pytest.raises(UsageError, match="keeps no policy at a KL of 0.7"):
        answer(store, kept.id, tiny, policy=KeptConfig(kl=0.7))


@pytest.mark.slow
@pytest.mark.integration
def test_sft_is_matched_by_entropy_and_extrapolation_by_kl(
    kept: Outcome, store: Store, made: Any, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny()
    theirs = answer(store, kept.id, tiny)

    def matched(source: str, policy: Any, other: Outcome = theirs, **settings: Any) -> Outcome:
        config = AnswerConfig(
            **{**dict(base.answer), "benchmark": base.evaluation.benchmarks["lab"], "policy": policy, **settings}
        )
        return run_stage(stage_named("answer"), config, {"policy": source, "match": other.id}, store=store)

    cool = matched(made.id("sft"), SFTPolicyConfig(match="DPR"))
    found = cool.metrics
    assert found["match/target"] == pytest.approx(theirs.metrics["answers/entropy"], rel=1e-4), "of all the prompts"
    assert found["match/reached"] == pytest.approx(found["match/target"], rel=0.02)
    assert 1 <= found["match/trials"] <= 8
    same = answer(store, made.id("sft"), tiny, policy=SFTPolicyConfig(temperature=found["match/temperature"]))
    assert rows_of(store, same) == rows_of(store, cool), "as if it had been set"
    # Log-probs of what is drawn estimate what the match measures exactly.
    assert found["match/reached"] == pytest.approx(found["answers/entropy"], rel=0.3)

    far = matched(made.id("reward"), ExtrapolatedConfig(match="DPR", match_tolerance=0.2))
    assert far.metrics["match/target"] == pytest.approx(theirs.metrics["answer/kl_to_sft"])
    assert far.metrics["match/reached"] == pytest.approx(far.metrics["answer/kl_to_sft"]), "all prompts are tried"
    assert abs(far.metrics["match/reached"] / far.metrics["match/target"] - 1) <= 0.2 or "brings the KL" in caplog.text
    same = answer(store, made.id("reward"), tiny, policy=ExtrapolatedConfig(k=far.metrics["match/k"]))
    assert rows_of(store, same) == rows_of(store, far)

    hot = answer(store, made.id("reward"), tiny, temperature=50.0, policy=ContrastiveConfig(k=1))
    ended = matched(made.id("sft"), SFTPolicyConfig(match="DPR"), hot)
    assert ended.metrics["match/temperature"] == 2
    assert "brings the entropy to" in caplog.text
    greedy = matched(made.id("sft"), SFTPolicyConfig(match="DPR"), answer(store, kept.id, tiny, temperature=0.0))
    assert (greedy.metrics["match/temperature"], greedy.metrics["match/trials"]) == (0, 0)

    for other, words in (
        (cool, "is matched itself"),
        (
            answer(store, kept.id, tiny, benchmark=base.evaluation.benchmarks["lab"].model_copy(update={"prompts": 5})),
            "another benchmark",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            matched(made.id("sft"), SFTPolicyConfig(match="DPR"), other)
    with pytest.raises(UsageError, match="go together"):
        matched(made.id("sft"), SFTPolicyConfig(temperature=1.0))


@pytest.mark.slow
@pytest.mark.integration
def test_a_match_that_is_interrupted_goes_on_with_what_was_tried(
    kept: Outcome, store: Store, made: Any, tiny: Tiny, tmp_path: Path
) -> None:
    settings = AnswerConfig(
        **{
            **dict(tiny().answer),
            "benchmark": tiny().evaluation.benchmarks["lab"],
            "policy": SFTPolicyConfig(match="DPR"),
        }
    )
    inputs = {"policy": made.id("sft"), "match": answer(store, kept.id, tiny).id}

    class Tried(Interruptible):
        inputs: dict[str, str]
        output: Path
        scratch: Path

        def input(self, role: str) -> Any:
            return store.fetch(self.inputs[role])

        def file(self, *_: Any) -> None: ...

    def run(recorder: Tried) -> Any:
        recorder.inputs, recorder.store, recorder.output = inputs, store, recorder.folder.with_name("out")
        recorder.scratch = recorder.output
        recorder.output.mkdir(exist_ok=True)
        return stage_named("answer").body(settings, recorder)

    whole = run(Tried(tmp_path / "whole"))
    for last in (1, 2, 3):
        with pytest.raises(Killed):
            run(Tried(tmp_path / str(last), last))
        resumed = Tried(tmp_path / str(last))
        assert run(resumed) == whole
