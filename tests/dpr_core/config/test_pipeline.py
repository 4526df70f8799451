import re
from typing import Any

import pytest

from dpr_core.config.base import commented_yaml, override, parse, read_yaml
from dpr_core.config.data import FileSourceConfig, HubSourceConfig, LabSourceConfig, PromptsConfig, SubsampleConfig
from dpr_core.config.evaluation import (
    AnsweringConfig,
    ExtrapolatedConfig,
    FileBenchmarkConfig,
    JudgeConfig,
    LabBenchmarkConfig,
    OpenAIJudgeConfig,
    VerifiableJudgeConfig,
)
from dpr_core.config.execution import LaunchConfig
from dpr_core.config.imitation import ContinuedSFTConfig, GsilConfig, SelfPlayConfig, SpinConfig
from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.config.pipeline import PipelineConfig, VariantConfig
from dpr_core.config.reinforce import (
    Algorithm1Config,
    FullVocabularyConfig,
    KLStopConfig,
    ReinforceConfig,
    ReinforcePlusPlusConfig,
)
from dpr_core.config.reward import RewardConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import UsageError

LAB: dict[str, Any] = {"backbone": {"type": "lab"}}


def test_sft_defaults_are_the_papers() -> None:
    """Table 3."""
    sft = SFTConfig()
    assert sft.learning_rate == 5e-6
    assert sft.batch_size == 256
    assert sft.warmup_ratio == 0.03
    assert (sft.max_prompt_tokens, sft.max_response_tokens) == (1024, 1024)
    assert sft.checkpoints == (0.5, 1.0)
    assert sft.epochs == 1


def test_reinforce_defaults_are_the_papers() -> None:
    """Table 4, with OpenRLHF's REINFORCE++ where the paper is silent."""
    reinforce = ReinforceConfig()
    assert reinforce.learning_rate == 5e-7
    assert (reinforce.batch_size, reinforce.rollout_batch_size) == (128, 1024)
    assert reinforce.warmup_ratio == 0.03
    assert (reinforce.max_prompt_tokens, reinforce.max_response_tokens) == (1024, 1024)
    assert reinforce.temperature == 1
    assert reinforce.samples_per_prompt == 1
    assert reinforce.guard is None
    method = reinforce.algorithm
    assert isinstance(method, ReinforcePlusPlusConfig)
    assert (method.kl_weight, method.gamma, method.ratio_clip) == (1e-5, 1, 0.2)
    assert (method.kl_bound, method.whiten) == (10, True)
    assert reinforce.adam_betas == (0.9, 0.95)
    assert reinforce.max_gradient_norm == 1
    assert reinforce.final_learning_rate_share == 0.1
    assert Algorithm1Config().gamma == 1


def test_reward_data_and_evaluation_defaults_are_the_papers() -> None:
    assert RewardConfig().formula == "baseline_relative"
    assert RewardConfig().reference == 0.5
    data = SubsampleConfig()
    assert isinstance(data.source, HubSourceConfig)
    assert (data.source.name, data.size) == ("Open-Orca/OpenOrca", 100_000)
    assert AnsweringConfig().temperature == 0.7
    judge = JudgeConfig().by
    assert isinstance(judge, OpenAIJudgeConfig)
    assert (judge.model, judge.temperature) == ("gpt-4o-2024-08-06", 0)


def test_only_the_backbone_has_to_be_named() -> None:
    assert isinstance(parse(PipelineConfig, LAB, "x").backbone, LabBackboneConfig)
    with pytest.raises(UsageError, match="backbone: this field is required"):
        parse(PipelineConfig, {}, "x")


def test_one_seed_for_every_stage_that_does_not_set_its_own() -> None:
    config = parse(PipelineConfig, {**LAB, "seed": 7, "sft": {"seed": 3, "epochs": 2}}, "x")
    stages = (config.backbone, config.subsample, config.sft, config.reward, config.reinforce, config.answer)
    assert [getattr(stage, "seed") for stage in (*stages, config.judge, config.report)] == [7, 7, 3, 7, 7, 7, 7, 7]  # noqa: B009
    assert config.sft.epochs == 2


def test_a_pretrained_backbone_takes_no_seed() -> None:
    config = parse(PipelineConfig, {"seed": 7, "backbone": {"type": "pretrained", "name": "some/model"}}, "x")
    assert isinstance(config.backbone, PretrainedBackboneConfig)
    assert config.sft.seed == 7


def test_the_reference_must_be_kept() -> None:
    with pytest.raises(UsageError, match=r"reward\.reference is 0\.3.*sft\.checkpoints=\[0\.3, 0\.5, 1\]"):
        parse(PipelineConfig, {**LAB, "reward": {"reference": 0.3}}, "x")
    kept = {**LAB, "reward": {"reference": 0.3}, "sft": {"checkpoints": [0.3]}}
    assert parse(PipelineConfig, kept, "x").sft.checkpoints == (0.3, 1.0)


def test_the_proposed_mend_works() -> None:
    values = override({**LAB, "reward": {"reference": 0.3}}, ["sft.checkpoints=[0.3, 0.5, 1]"])
    assert parse(PipelineConfig, values, "x").sft.checkpoints == (0.3, 0.5, 1.0)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_checkpoints_are_fractions_of_the_run(fraction: float) -> None:
    with pytest.raises(UsageError, match=r"sft\.checkpoints"):
        parse(PipelineConfig, {**LAB, "sft": {"checkpoints": [fraction]}}, "x")


def test_algorithm_1_takes_one_step_on_each_rollout_batch() -> None:
    wrong = {"algorithm": {"type": "algorithm1"}, "rollout_batch_size": 64, "samples_per_prompt": 2, "batch_size": 64}
    with pytest.raises(UsageError, match=r"reinforce: .*batch_size \(64\).*\(128\)"):
        parse(PipelineConfig, {**LAB, "reinforce": wrong}, "x")
    config = parse(PipelineConfig, {**LAB, "reinforce": {**wrong, "batch_size": 128}}, "x")
    assert config.reinforce.algorithm == Algorithm1Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sft": {"lerning_rate": 1}}, "sft.lerning_rate: no such field; did you mean learning_rate?"),
        ({"sfl": {}}, "sfl: no such field; did you mean sft?"),
        ({"sfl": {"batch_size": 1}}, "sfl: no such field; did you mean sft.batch_size?"),
        ({"gamma": 1}, "gamma: no such field; did you mean reinforce.algorithm.gamma?"),
        ({"algorithm": {"gamma": 1}}, "algorithm: no such field; did you mean reinforce.algorithm.gamma?"),
        ({"reinforce": {"gamma": 1}}, "reinforce.gamma: no such field; did you mean reinforce.algorithm.gamma?"),
        ({"batch_size": 1}, "batch_size: no such field; did you mean sft.batch_size or reinforce.batch_size?"),
        ({"backbone": {"type": "lab", "widht": 3}}, "backbone.widht: no such field; did you mean width?"),
        (
            {"subsample": {"source": {"type": "lab", "task": {"modulo": 3}}}},
            "subsample.source.task.modulo: no such field; did you mean modulus?",
        ),
        (
            {"reinforce": {"algorithm": {"type": "reinforce_plus_plus", "kl_wieght": 0}}},
            "reinforce.algorithm.kl_wieght: no such field; did you mean kl_weight?",
        ),
        (
            {"reinforce": {"guard": {"max_kl": 1}}},
            "reinforce.guard.max_kl: no such field; did you mean max_sequence_kl?",
        ),
        ({"name": "a b"}, "name: string should match pattern"),
    ],
)
def test_a_mistake_anywhere_is_named_as_the_user_wrote_it(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(PipelineConfig, {**LAB, **values}, "recipe.yaml")
    assert str(error.value).startswith(f"recipe.yaml: {message}")
    assert len(str(error.value).splitlines()) == 1


def test_a_wrong_seed_is_reported_where_it_was_written() -> None:
    with pytest.raises(UsageError) as error:
        parse(PipelineConfig, {**LAB, "seed": "abc"}, "x")
    assert str(error.value).startswith("x: seed: ")
    assert len(str(error.value).splitlines()) == 1


FULL = PipelineConfig(
    name="full",
    description="Everything that can be set: 'quotes', \"quotes\" and # marks.",
    seed=3,
    backbone=PretrainedBackboneConfig(name="some/model", revision="0123456", dtype="float32"),
    subsample=SubsampleConfig(source=FileSourceConfig(path="/a b/c.jsonl"), seed=1, max_bad_share=0),
    sft=SFTConfig(learning_rate=5e-7, checkpoints=(0.29, 1e-5), adam_betas=(0.9, 1e-9)),
    reward=RewardConfig(reference=0.29, formula="with_value"),
    reinforce=ReinforceConfig(guard=KLStopConfig(), iterations=3, algorithm=ReinforcePlusPlusConfig(kl_weight=1e-22)),
    evaluation={  # type: ignore[arg-type]
        "benchmarks": {"held-out": LabBenchmarkConfig(), "true": FileBenchmarkConfig(path="b.jsonl")},
        "controls": {"1.5x": ExtrapolatedConfig(k=0.5)},
    },
    judge=JudgeConfig(by=VerifiableJudgeConfig()),
)


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        PipelineConfig(backbone=LabBackboneConfig()),
        PipelineConfig(backbone=LabBackboneConfig(), subsample=SubsampleConfig(source=LabSourceConfig(rows=10))),
        PipelineConfig(
            backbone=LabBackboneConfig(),
            reinforce=ReinforceConfig(algorithm=Algorithm1Config(), rollout_batch_size=128),
        ),
    ],
)
def test_commented_yaml_reads_back_as_the_same_config(config: PipelineConfig) -> None:
    again = parse(PipelineConfig, read_yaml(commented_yaml(config), "x"), "x")
    assert again == config
    assert commented_yaml(again) == commented_yaml(config)


def test_one_launch_for_every_stage_that_can_be_shared_and_does_not_set_its_own() -> None:
    methods = {"more": {"type": "continued_sft"}, "other": {"changes": ["reward.formula=with_value"]}}
    config = _load(
        {**LAB, "methods": methods}, "launch.processes=8", "launch.strategy=fsdp", "reward.execution.launch.processes=2"
    )
    eight, two = LaunchConfig(processes=8, strategy="fsdp"), LaunchConfig(processes=2, strategy="fsdp")
    sections = (config.sft, config.diagnose, config.reinforce, config.answer, config.methods["more"])
    assert [section.execution.launch for section in sections] == [eight] * 5  # type: ignore[union-attr]
    assert config.reward.execution.launch == two
    assert [part.execution.launch for part in config.variants()["other"][:2]] == [two, eight]
    assert isinstance(config.backbone, LabBackboneConfig)
    assert config.backbone.execution == LabBackboneConfig().execution

    printed = read_yaml(commented_yaml(config), "x")
    assert "launch" not in printed["sft"]["execution"]
    assert _load(printed) == config
    assert _load(printed, "launch.processes=4").sft.execution.launch == LaunchConfig(processes=4, strategy="fsdp")
    assert _load(LAB, "launch.processes=8", "diagnose=null").diagnose is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("launch.processes=0", "x: launch.processes: input should be greater than or equal to 1 (got 0)"),
        ("launch.strategy=mpi", "x: launch.strategy: input should be 'ddp' or 'fsdp' (got 'mpi')"),
        ("launch.cpu_offload=true", "x: launch: cpu_offload is a setting of strategy=fsdp, and the strategy is ddp"),
    ],
)
def test_a_wrong_launch_is_told_of_once_and_where_it_was_written(assignment: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        _load(LAB, assignment)
    assert str(error.value) == message


def test_every_setting_of_a_printed_recipe_can_be_overridden() -> None:
    values = read_yaml(commented_yaml(FULL), "x")
    changed = override(
        values, ["reinforce.algorithm.type=algorithm1", "reinforce.rollout_batch_size=128", "sft.learning_rate=5e-6"]
    )
    config = parse(PipelineConfig, changed, "x")
    assert config.reinforce.algorithm == Algorithm1Config()
    assert config.sft.learning_rate == 5e-6
    assert config.reinforce.guard == KLStopConfig()


def test_how_the_work_is_done_is_no_part_of_a_stages_identity() -> None:
    plain = parse(PipelineConfig, LAB, "x")
    hurried = parse(
        PipelineConfig, override(LAB, ["sft.execution.tokens_per_micro_batch=64", "judge.execution.retries=0"]), "x"
    )
    assert hurried != plain
    assert hurried.sft.identity() == plain.sft.identity()
    assert hurried.judge.identity() == plain.judge.identity()
    assert parse(PipelineConfig, override(LAB, ["sft.weight_decay=0.1"]), "x").sft.identity() != plain.sft.identity()


@pytest.mark.parametrize("config", [SFTConfig, ContinuedSFTConfig])
def test_the_loss_of_sft_is_part_of_identity_where_it_is_not_what_it_was_before_there_was_a_choice(config: Any) -> None:
    assert "loss" not in config().identity() == config(loss="nll").identity()
    assert config(loss="dft").identity() == {**config().identity(), "loss": "dft"}


@pytest.mark.parametrize("algorithm", ["baseline=expected", "type=full_vocabulary"])
def test_rewards_over_the_vocabulary_are_made_of_the_tokens_log_probs(algorithm: str) -> None:
    change = f"reinforce.algorithm.{algorithm}"
    for formula in ("baseline_relative", "without_baseline"):
        assert _load(LAB, change, f"reward.formula={formula}").reinforce.over_vocabulary
    with pytest.raises(UsageError, match=r"reward\.formula=with_value .*choose baseline_relative or without_baseline"):
        _load(LAB, change, "reward.formula=with_value")
    variant = {"type": "variant", "changes": (change, "reward.formula=random_sign")}
    with pytest.raises(UsageError, match=r"reward\.formula=random_sign"):
        parse(PipelineConfig, {**LAB, "methods": {"a": variant}}, "x")
    assert not _load(LAB).reinforce.over_vocabulary


def test_the_full_vocabulary_is_of_gamma_0_alone() -> None:
    full = "reinforce.algorithm.type=full_vocabulary"
    assert _load(LAB, full).reinforce.algorithm == FullVocabularyConfig(gamma=0.0)
    with pytest.raises(UsageError, match=r"exact at gamma 0 alone \(got 0\.9\).*baseline=expected"):
        _load(LAB, full, "reinforce.algorithm.gamma=0.9")
    with pytest.raises(UsageError, match="whiten: no such field"):
        _load(LAB, full, "reinforce.algorithm.whiten=on")
    schedule = "reinforce.algorithm.kl_schedule"
    with pytest.raises(UsageError, match="above 0"):
        _load(LAB, full, "reinforce.algorithm.kl_weight=0", f"{schedule}.type=target", f"{schedule}.sequence_kl=1.0")


@pytest.mark.parametrize(("given", "kept"), [("on", True), ("off", False), ("true", True), ("batch_mean",) * 2])
def test_whitening_is_named_or_true_or_false_with_one_identity(given: str, kept: Any) -> None:
    config = _load(LAB, f"reinforce.algorithm.whiten={given}").reinforce
    assert config.identity()["algorithm"]["whiten"] == kept
    assert config.algorithm == ReinforcePlusPlusConfig(whiten=kept)


def test_another_whitening_is_refused() -> None:
    with pytest.raises(UsageError, match=r"reinforce\.algorithm\.whiten: on, off or batch_mean .*'maybe'"):
        _load(LAB, "reinforce.algorithm.whiten=maybe")


def _load(values: dict[str, Any], *assignments: str) -> PipelineConfig:
    return parse(PipelineConfig, override(values, assignments), "x")


def test_a_seed_changed_in_what_was_printed_changes_every_stage() -> None:
    printed = read_yaml(commented_yaml(_load({"backbone": {"type": "lab"}, "sft": {"seed": 7}})), "x")
    changed = _load(printed, "seed=3")
    assert (changed.backbone.seed, changed.reinforce.seed, changed.judge.seed) == (3, 3, 3)
    assert changed.sft.seed == 7
    assert _load(_load(printed).model_dump(mode="json"), "seed=3") == changed


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("reinforce.algorithm.gamma=0.9", lambda c: c.reinforce.algorithm.gamma == 0.9),
        ("judge.by.model=other", lambda c: (c.judge.by.type, c.judge.by.model) == ("openai", "other")),
        ("subsample.source.columns.prompt=q", lambda c: c.subsample.source.columns.prompt == "q"),
    ],
)
def test_part_of_a_default_can_be_changed_without_naming_its_type(assignment: str, value: Any) -> None:
    assert value(_load({"backbone": {"type": "lab"}}, assignment))


def test_a_type_may_come_after_its_own_settings() -> None:
    values = {"backbone": {"type": "lab"}, "judge": {"by": {"type": "verifiable"}}}
    changed = _load(values, "judge.by.model=other", "judge.by.type=openai")
    assert changed.judge.by.model_dump()["model"] == "other"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("evaluation.controls={DPR: {k: 3}}", "a control cannot be called DPR"),
        ("evaluation.controls={sft: {k: 3}}", "a control cannot be called SFT"),
        ("evaluation.controls={'a b': {k: 3}}", "evaluation.controls"),
        ("evaluation.benchmarks={'../x': {type: lab}}", "evaluation.benchmarks"),
        (
            "subsample.source={type: lab, task: {evaluation_share: 0.01}}",
            "must be equal, or prompts kept for evaluation",
        ),
        ("reinforce.seed=-1", "reinforce.seed"),
        ("sft.adam_betas=[0.9, 1.5]", "sft.adam_betas"),
        ("backbone.blend_careful=0.9", "together at most 1"),
    ],
)
def test_what_would_fail_or_mislead_later_is_refused_now(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        _load({"backbone": {"type": "lab"}}, assignment)


def test_what_of_spin_and_gsil_the_defaults_have_of_their_authors() -> None:
    spin = SelfPlayConfig()
    assert spin.method == SpinConfig(beta=0.1)
    assert (spin.learning_rate, spin.later_learning_rate, spin.decay) == (5e-7, 1e-7, "linear")
    assert (spin.warmup_ratio, spin.final_learning_rate_share, spin.batch_size) == (0.1, 0, 64)
    assert (spin.temperature, spin.mix_previous) == (1, True)
    assert GsilConfig() == GsilConfig(loss="bernoulli", scale=0.01, shift=2)


def test_a_method_without_a_type_is_a_variant() -> None:
    methods = {
        "w-V": {"changes": ["reward.formula=with_value"]},
        "SPIN": {"type": "self_play", "rounds": 2},
        "more": {"type": "continued_sft"},
    }
    config = _load({"backbone": {"type": "lab"}, "methods": methods})
    assert [type(method) for method in config.methods.values()] == [VariantConfig, SelfPlayConfig, ContinuedSFTConfig]
    assert list(config.variants()) == ["w-V"]


def test_a_variant_is_the_pipelines_own_settings_changed() -> None:
    values = {
        "backbone": {"type": "lab"},
        "seed": 4,
        "reward": {"probe_demonstrations": 9},
        "reinforce": {"learning_rate": 1e-5, "algorithm": {"kl_weight": 0.1}},
        "methods": {
            "low": {"changes": ["reinforce.algorithm.gamma=0.95"]},
            "SR": {"changes": ["reinforce.algorithm.type=sequence_reinforce", "reward.formula=with_value"]},
        },
    }
    config = _load(values)
    reward, reinforce, prompts = config.variants()["low"]
    assert reward == config.reward
    assert reinforce == config.reinforce.model_copy(
        update={"algorithm": ReinforcePlusPlusConfig(kl_weight=0.1, gamma=0.95)}
    )
    assert prompts is None
    reward, reinforce, _ = config.variants()["SR"]
    assert reward == RewardConfig(formula="with_value", probe_demonstrations=9, seed=4)
    assert (reinforce.algorithm.type, reinforce.learning_rate, reinforce.seed) == ("sequence_reinforce", 1e-5, 4)


def test_methods_take_the_common_seed_and_it_is_said_once() -> None:
    methods = {
        "a": {"type": "self_play"},
        "b": {"type": "continued_sft", "seed": 9},
        "c": {"changes": ["reward.seed=3"]},
    }
    config = _load({"backbone": {"type": "lab"}, "seed": 5, "methods": methods})
    printed = config.model_dump(mode="json")["methods"]
    assert (config.methods["a"].seed, config.methods["b"].seed) == (5, 9)  # type: ignore[union-attr]
    assert ("seed" in printed["a"], printed["b"]["seed"]) == (False, 9)
    assert config.variants()["c"][0].seed == 3
    assert _load(config.model_dump(mode="json"), "seed=6").methods["a"].seed == 6  # type: ignore[union-attr]
    again = parse(PipelineConfig, read_yaml(commented_yaml(config), "x"), "x")
    assert (again, commented_yaml(again)) == (config, commented_yaml(config))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("methods={DPR: {type: self_play}}", "two policies cannot both be called DPR"),
        ("methods={sft: {type: self_play}}", "two policies cannot both be called SFT"),
        ("methods={Extra: {type: self_play}}", "two policies cannot both be called EXTRA"),
        (
            "methods={reward: {type: self_play}}",
            "a method cannot be called reward: the pipeline has a stage of that name",
        ),
        ("methods={'a b': {type: self_play}}", "methods"),
        ("methods={x: {type: spin}}", "methods.x.type: unknown type 'spin'"),
        ("methods={x: {type: self_play, method: {type: gsil, los: hinge}}}", "did you mean loss?"),
        ("methods={x: {changes: []}}", "methods.x.changes"),
        ("methods={x: {changes: [sft.epochs=2]}}", "methods.x.changes: sft.epochs=2: a variant changes fields of"),
        ("methods={x: {changes: [reward.formul=with_value]}}", "methods.x.changes: reward: formul: no such field"),
        ("methods={x: {changes: [reward.reference=0.3]}}", "reward.reference is 0.3, but sft.checkpoints keeps only"),
    ],
)
def test_a_method_that_cannot_be_is_refused(assignment: str, message: str) -> None:
    values = {"backbone": {"type": "lab"}, "evaluation": {"controls": {"extra": {"k": 1}}}}
    with pytest.raises(UsageError, match=re.escape(message)):
        _load(values, assignment)


def test_the_backbone_is_a_reference_of_two_names() -> None:
    for written in ("0", "backbone"):
        assert _load(LAB, f"reward.reference={written}").reward.reference == 0
    mean = _load(LAB, "reward.reference=[0.5, backbone]").reward
    assert mean.fractions() == (0.0, 0.5)
    with pytest.raises(UsageError, match=re.escape("keeps only 0.5, 1 (0 is the backbone)")):
        _load(LAB, "reward.reference=[0, 0.3]")


def test_prompts_have_the_common_seed_and_may_be_a_variants_own() -> None:
    own = "methods={one: {changes: [prompts.overlap=0]}, two: {changes: [reward.formula=with_value]}}"
    config = _load(LAB, own, "seed=4")
    assert config.prompts is None
    assert config.variants()["one"].prompts == PromptsConfig(overlap=0, seed=4)
    assert config.variants()["two"].prompts is None
    common = _load(LAB, own, "seed=4", "prompts.size=7")
    assert common.prompts == common.variants()["two"].prompts == PromptsConfig(size=7, seed=4)
    assert common.variants()["one"].prompts == PromptsConfig(size=7, overlap=0, seed=4)
    without = _load(LAB, "methods={sfts: {changes: [prompts=null]}}", "prompts.size=7")
    assert without.variants()["sfts"].prompts is None
    assert _load(common.model_dump(mode="json")) == common
    with pytest.raises(UsageError, match="must be equal, or prompts kept for evaluation"):
        _load(LAB, "prompts.source={type: lab, task: {operations: 3}}", "subsample.source={type: lab}")


def test_rows_without_responses_are_no_demonstrations() -> None:
    source = "{type: file, path: x, columns: {response: null}}"
    assert _load(LAB, f"prompts.source={source}").prompts
    with pytest.raises(UsageError, match="demonstrations need columns.response"):
        _load(LAB, f"subsample.source={source}")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("{type: sft}", "SFT needs a temperature, or the name of a policy to match"),
        ("{type: sft, temperature: 1, match: DPR}", "one of them"),
        ("{type: extrapolated}", "extrapolation needs a k, or the name of a policy to match"),
        ("{type: sft, temperature: 0.001}", "a temperature is at least 0.01, or 0"),
        ("{match: dpr}", "evaluation.controls.x.match is dpr, but there is no policy of that name; there is DPR, SR"),
        ("{match: x}", "whose own match is this one"),
        ("{match: other}", "match is other, which is itself matched; name what that is matched to: DPR"),
        ("{match: best}", "match is best, a choice among samples"),
        ("{type: kept, of: other, kl: 0.1}", "of is other, which is no policy of this pipeline that REINFORCE trains"),
        ("{type: kept, kl: 0.3}", "kl is 0.3, at which DPR keeps no policy; add it: reinforce.keep_at_kl=[0.1, 0.3]"),
        ("{type: kept, of: SR, kl: 0.1}", "add it: reinforce.keep_at_kl=[0.1, 0.2] in methods.SR.changes"),
    ],
)
def test_a_policy_of_evaluation_that_cannot_be_is_refused(control: str, message: str) -> None:
    values = {
        "backbone": {"type": "lab"},
        "reinforce": {"keep_at_kl": [0.1]},
        "methods": {"SR": {"changes": ["reinforce.keep_at_kl=[0.2]"]}},
    }
    others = "other: {type: sft, match: DPR}, best: {type: best_of_n}"
    with pytest.raises(UsageError, match=re.escape(message)):
        _load(values, f"evaluation.controls={{x: {control}, {others}}}")


def test_two_controls_that_are_each_others_match_are_refused() -> None:
    with pytest.raises(UsageError, match="neither could be found first"):
        _load({"backbone": {"type": "lab"}}, "evaluation.controls={x: {match: y}, y: {type: sft, match: x}}")


def test_diagnosing_the_reward_can_be_left_out() -> None:
    config = _load({"backbone": {"type": "lab"}, "seed": 3}, "diagnose=null")
    assert config.diagnose is None
    assert _load(config.model_dump(mode="json")) == config
    assert _load({"backbone": {"type": "lab"}, "seed": 3}).diagnose.seed == 3  # type: ignore[union-attr]


def test_what_draws_counts_and_where_it_runs_does_not() -> None:
    plain = _load(LAB)
    assert "rollouts" not in plain.reinforce.identity(), (
        "artifacts from before there were other engines keep their keys"
    )
    vllm = _load(LAB, "reinforce.rollouts.type=vllm")
    elsewhere = _load(LAB, "reinforce.rollouts.type=vllm", "reinforce.rollouts.execution.url=http://127.0.0.1:8000")
    assert vllm.reinforce.identity() == elsewhere.reinforce.identity()
    assert vllm.reinforce.identity()["rollouts"] == {
        "type": "vllm",
        "importance_cap": 2.0,
        "importance_per": "token",
        "overlap": False,
    }
    assert ReinforceConfig.identity_in(vllm.reinforce.model_dump(mode="json")) == vllm.reinforce.identity()
    with pytest.raises(UsageError, match="set one of them"):
        _load(LAB, "reinforce.rollouts.type=vllm", "reinforce.rollouts.execution={python: /p, url: 'http://x'}")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("url", "http://me:SECRET@127.0.0.1:8000", "an address must not hold a name, a password or a key"),
        ("url", "http://127.0.0.1:8000/?key=SECRET", "an address must not hold a name, a password or a key"),
        ("api_key_variable", "sk-SECRET", "this is the name of an environment variable"),
    ],
)
def test_a_secret_in_the_settings_of_a_server_is_refused_and_not_repeated(field: str, value: str, said: str) -> None:
    where = {"url": "http://127.0.0.1:8000", field: value}
    with pytest.raises(UsageError, match=said) as raised:
        _load(LAB, "reinforce.rollouts.type=vllm", f"reinforce.rollouts.execution={where}")
    assert "SECRET" not in str(raised.value)
