from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dpr_core.config.model import Family, PretrainedBackboneConfig
from dpr_core.lab.backbone import CLASSES
from dpr_core.planning.architecture import PUBLISHED, Architecture, architecture_from_config, known_positions

COUNTS = {
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "google/gemma-3-4b-pt": 3_880_263_168,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "google/gemma-3-270m": 268_098_176,
}


def _settings(a: Architecture) -> Any:
    return CLASSES[a.family][0](
        vocab_size=a.vocabulary,
        hidden_size=a.width,
        intermediate_size=a.feed_forward,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        num_key_value_heads=a.key_value_heads,
        head_dim=a.head_width,
        max_position_embeddings=a.positions,
        tie_word_embeddings=a.tied,
        sliding_window=a.window,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_backbones_have_as_many_parameters_as_transformers_builds(name: str) -> None:
    known = PUBLISHED[name]
    settings = _settings(known)
    with torch.device("meta"):
        model = CLASSES[known.family][1](settings)
    assert known.parameters == sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert architecture_from_config(settings) == known
    head: Any = model.get_output_embeddings()
    assert known.parameters - known.body == (0 if known.tied else head.weight.numel())


@pytest.mark.parametrize("family", get_args(Family))
def test_small_ones_of_every_family_are_counted_too(tiny: Callable[..., Any], family: Family) -> None:
    model, _ = tiny(family)
    found = architecture_from_config(model.config)
    assert found.family == family
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_sliding_layers_remember_their_window_alone() -> None:
    gemma = PUBLISHED["google/gemma-3-4b-pt"]
    assert gemma.cached_numbers(100) == 34 * 4 * 256 * 100
    assert gemma.cached_numbers(3000) == 34 * 4 * 256 * 3000


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ('{"max_position_embeddings": 512}', 512),
        ('{"model_type": "gemma3", "text_config": {"max_position_embeddings": 256}}', 256),
        ("[]", None),
        ("{", None),
        ('{"max_position_embeddings": "512"}', None),
    ],
)
def test_a_context_length_is_known_without_the_hub(tmp_path: Path, text: str, positions: int | None) -> None:
    (tmp_path / "config.json").write_text(text)
    assert known_positions(PretrainedBackboneConfig(name=str(tmp_path))) == positions
    assert known_positions(PretrainedBackboneConfig(name="Qwen/Qwen2.5-7B")) == 131_072
    assert known_positions(PretrainedBackboneConfig(name="org/unknown")) is None
