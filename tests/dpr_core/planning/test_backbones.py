import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.models.checkpoints import load_backbone, save
from dpr_core.planning.architecture import config_of


def test_what_another_family_takes_is_not_known(tiny: Callable[..., Any], tmp_path: Path) -> None:
    save(*tiny("llama"), tmp_path)
    assert config_of(tmp_path).model_type == "llama"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    with pytest.raises(UsageError, match="type 'qwen3'; what the shapes of llama"):
        config_of(tmp_path)


def test_a_missing_shard_is_named_before_the_others_are_read(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    load_backbone(PretrainedBackboneConfig(name=str(tmp_path)))
    lost = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    lost.unlink()
    with pytest.raises(UsageError, match=rf"1 of \d+ files .*{lost.name}"):
        load_backbone(PretrainedBackboneConfig(name=str(tmp_path)))
