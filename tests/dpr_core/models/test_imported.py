import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.config.training import CheckpointConfig, ImportedConfig
from dpr_core.errors import UsageError
from dpr_core.lab.backbone import untrained
from dpr_core.models.imported import Pair, base_of, examine, folder_of, load
from tests.trained_elsewhere import ROWS, train

LAB = LabBackboneConfig(width=16, layers=2, heads=2, feed_forward=32)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs by HF's Trainer from one start, which differ in their learning rate alone."""
    folder = tmp_path_factory.mktemp("trained")
    for name, rate in {"run": 1e-3, "other": 2e-3}.items():
        torch.manual_seed(0)
        train(*untrained(LAB), folder / name, learning_rate=rate)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the first run, to be changed."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def of(final: Path, reference: Path) -> ImportedConfig:
    return ImportedConfig(final=CheckpointConfig(name=str(final)), reference=CheckpointConfig(name=str(reference)))


def examined(final: Path, reference: Path) -> Pair:
    return examine(of(final, reference), PretrainedBackboneConfig(name=str(final), dtype="float32"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_two_checkpoints_of_a_run_are_told_by_what_its_trainer_wrote(trained: Path) -> None:
    final, reference = trained / "run" / "checkpoint-4", trained / "run" / "checkpoint-2"
    assert examined(final, reference) == Pair(0.5, ())
    with pytest.raises(UsageError, match="is at step 4, and .* at step 2: it has to be an earlier checkpoint"):
        examined(reference, final)
    with pytest.raises(
        UsageError, match="are of two runs: at step 1 the log of the first has grad_norm=|learning_rate="
    ):
        examined(final, trained / "other" / "checkpoint-2")
    with pytest.raises(UsageError, match="hold the same weights"):
        examined(final, final)


def test_what_no_trainer_says_is_told_as_not_verified(run: Path) -> None:
    final, reference = run / "checkpoint-4", run / "checkpoint-2"
    (final / "trainer_state.json").unlink()
    one = examined(final, reference)
    assert one.fraction == 0.5
    assert "cannot be verified" in one.doubts[0]
    assert "is taken for the end, step 4" in one.doubts[0]
    (reference / "trainer_state.json").unlink()
    neither = examined(final, reference)
    assert neither.fraction is None
    assert "cannot be verified" in neither.doubts[0]


def test_a_log_that_holds_nan_equals_itself(run: Path) -> None:
    for name in ("checkpoint-2", "checkpoint-4"):
        state = json.loads((run / name / "trainer_state.json").read_text())
        state["log_history"][0]["grad_norm"] = float("nan")
        change(run / name / "trainer_state.json", **state)
    assert examined(run / "checkpoint-4", run / "checkpoint-2") == Pair(0.5, ())


def _no_steps(folder: Path) -> None:
    change(folder / "trainer_state.json", max_steps=8)


def _other_rope(folder: Path) -> None:
    change(folder / "config.json", max_position_embeddings=99)


def _other_type(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({n: w.bfloat16() for n, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def _other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def _other_vocabulary(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["zebra"] = vocabulary.pop(last)
    content["model"]["merges"] = [m for m in content["model"].get("merges", []) if "".join(m) != last]
    change(folder / "tokenizer.json", **content)


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _fsdp(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model_fsdp_0").mkdir()


def _deepspeed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "zero_to_fp32.py").touch()


def _nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_steps, "are of two runs: one was to take 4 steps, the other 8"),
        (_other_rope, "max_position_embeddings of config.json is 1024 in the first and 99 in the second"),
        (_other_type, "lost by rounding .* save both in one type"),
        (_other_template, "have two tokenizers, with other chat templates"),
        (_other_vocabulary, "have two tokenizers, with other vocabularies of .* tokens, of which 2 differ"),
        (_pickle, "a pickle, .* never opened here. Convert it where you trust it: python -c .import transformers"),
        (_fsdp, "accelerate merge-weights .*/pytorch_model_fsdp_0 .*checkpoint-2"),
        (_deepspeed, "python zero_to_fp32.py . . --safe_serialization"),
        (_nothing, "holds no model"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_in_a_sentence(
    run: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(run / "checkpoint-2")
    with pytest.raises(UsageError, match=said):
        examined(run / "checkpoint-4", run / "checkpoint-2")


def test_the_folder_above_checkpoints_names_them(trained: Path) -> None:
    with pytest.raises(UsageError, match="name one of its checkpoints: checkpoint-2, checkpoint-4"):
        examined(trained / "run", trained / "run" / "checkpoint-2")


def test_shards_are_read_as_one_file_is(run: Path) -> None:
    whole = load_file(run / "checkpoint-4" / "model.safetensors")
    for name in ("checkpoint-2", "checkpoint-4"):
        model = AutoModelForCausalLM.from_pretrained(run / name)
        (run / name / "model.safetensors").unlink()
        model.save_pretrained(run / name, max_shard_size="20KB")
        assert (run / name / "model.safetensors.index.json").is_file()
    assert examined(run / "checkpoint-4", run / "checkpoint-2") == Pair(0.5, ())
    backbone = PretrainedBackboneConfig(name=str(run / "checkpoint-4"))
    model, kept = load(CheckpointConfig(name=str(run / "checkpoint-4")), backbone, 4)
    assert kept == torch.float32
    assert all(torch.equal(weight, whole[name]) for name, weight in model.named_parameters())


def test_adapters_are_merged_into_their_base(trained: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = trained / "run" / "checkpoint-2"
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for step, name in ((2, "half"), (4, "end")):
        with torch.no_grad():
            for parameter_name, weight in adapted.named_parameters():
                if "lora_" in parameter_name:
                    weight.normal_(generator=torch.Generator().manual_seed(step))
        adapted.save_pretrained(tmp_path / name)
    imported, backbone = of(tmp_path / "end", tmp_path / "half"), PretrainedBackboneConfig(name=str(base))
    assert examine(imported, backbone).fraction is None
    ids = torch.tensor([[1, 30, 31, 40]])
    merged, kept = load(imported.final, backbone, 4)
    assert kept == torch.float32
    assert torch.allclose(merged(ids).logits, adapted.eval()(ids).logits, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with pytest.raises(UsageError, match="holds adapters and .* a whole model"):
        examine(of(base, tmp_path / "half"), backbone)
    change(tmp_path / "end" / "adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity")
    with pytest.raises(UsageError, match="cannot be merged .*a module that is to be imported"):
        load(imported.final, backbone, 4)
    change(tmp_path / "end" / "adapter_config.json", init_lora_weights="pissa")
    with pytest.raises(UsageError, match="cannot be merged .* 'pissa'; merge them where they were trained"):
        load(imported.final, backbone, 4)


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_checkpoints_of_trl_are_taken(adapters: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from datasets import Dataset

    model, tokenizer = untrained(LAB)
    tokenizer.pad_token = tokenizer.eos_token
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trl.SFTTrainer(
        model=str(tmp_path / "base"),
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            max_steps=4,
            save_steps=2,
            logging_steps=1,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": f"{row['question']}\n", "completion": row["response"]} for row in ROWS]
        ),
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if adapters else None,
    ).train()
    imported = of(tmp_path / "checkpoint-4", tmp_path / "checkpoint-2")
    base = PretrainedBackboneConfig(name=str(tmp_path / ("base" if adapters else "checkpoint-4")), dtype="float32")
    assert examine(imported, base) == Pair(0.5, ())
    assert base_of(tmp_path / "checkpoint-4") == ((str(tmp_path / "base"), None) if adapters else None)
    final, reference = (load(each, base, len(tokenizer))[0] for each in (imported.final, imported.reference))
    pairs = zip(final.parameters(), reference.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_a_model_of_the_hub_is_fetched_by_its_commit(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(trained / "run" / "checkpoint-4")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert folder_of(CheckpointConfig(name="a/model", revision="12ab")) == trained / "run" / "checkpoint-4"
    assert asked == [("a/model", "12ab")]
    with pytest.raises(UsageError, match="there is no folder ./nowhere"):
        folder_of(CheckpointConfig(name="./nowhere"))
