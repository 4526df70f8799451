"""Sequences in one row, one behind the other: scored and learned from as if each were alone."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as flash

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import Family
from dpr_core.config.training import SFTConfig
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.models import packed_attention, policy
from dpr_core.models.critic import Critic
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score, score_values, score_with_kl
from dpr_core.training.trainer import Trainer

FAMILIES: tuple[Family, ...] = get_args(Family)
WINDOW = 4
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
}
ROWS = [
    TokenSequence((1, 30, 31, 32), (40, 41, 42, 43, 44, 2)),
    TokenSequence((1, 33), (0, 0, 45, 46, 47, 48, 49, 50, 51)),
    TokenSequence((1,), (2,)),
    TokenSequence((1, 60, 61, 62, 63, 64, 65), (66, 67, 68, 2)),
]
"""All but one are longer than the window; one has tokens of the padding's number."""


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, **settings: Any) -> Tensor:
    """(tokens, heads, width): attention within each of the sequences that begin and end at `cu_seqlens_q`."""
    edges = cu_seqlens_q.tolist()
    assert edges[-1] == len(q)
    parts = [slice(*pair) for pair in pairwise(edges)]
    return torch.cat([dense(q[None, part], k[None, part], v[None, part], **settings)[0] for part in parts])


def dense(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, window_size: Any = None, **_: Any) -> Tensor:
    """(B, tokens, heads, width): causal attention to at most `window_size[0]` tokens back, by its definition."""
    k, v = (each.repeat_interleave(q.shape[2] // each.shape[2], dim=2) for each in (k, v))
    back = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    seen = back >= 0 if window_size is None else (back >= 0) & (back <= window_size[0])
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
    return torch.einsum("bhqk,bkhd->bqhd", weights.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.fixture
def model_of(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., PreTrainedModel]:
    """`model_of(family, attention)`, in float64. In place of flash attention's kernels, which need a GPU, stands what
    they compute."""
    supported: Any = defaultdict(bool, window_size=True)
    arguments = partial(flash._process_flash_attention_kwargs, supports_mapping=supported)
    kernels = (dense, varlen, None, None, None), (arguments, None)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_: kernels)

    def build(family: Family, attention: str = "sdpa", **changes: Any) -> PreTrainedModel:
        model: PreTrainedModel = tiny(family, **SLIDING.get(family, {}), **changes)[0].double()
        if attention == packed_attention.NAME:
            packed_attention.enable_packing(model)
        else:
            # As on a GPU, where sdpa takes a packed row with a mask of all pairs.
            monkeypatch.setattr(policy, "enable_packing", lambda _: None)
            model.config._attn_implementation = attention
        return model

    return build


@pytest.mark.parametrize("attention", ["sdpa", "sdpa_by_sequence", "eager", "flash_attention_2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_scores_are_those_of_each_sequence_alone(
    model_of: Callable[..., PreTrainedModel], family: Family, attention: str
) -> None:
    model = model_of(family, attention)
    packed, padded = Policy(model, packing=True), Policy(model, packing=False)
    together = collate(ROWS, packed=True)
    assert together.input_ids.shape == (1, sum(map(len, ROWS)))
    with torch.no_grad():
        found = packed(together, entropy=True)
        apart = [padded(collate([row]), entropy=True) for row in ROWS]
        beside = padded(collate(ROWS), entropy=True)
        for column, alone, rows in zip(found, zip(*apart, strict=True), beside, strict=True):
            torch.testing.assert_close(column, torch.cat(list(alone)), atol=1e-6, rtol=0)
            torch.testing.assert_close(column, rows, atol=1e-6, rtol=0)
        # The test would see it: positions that run on let every sequence look at those before it.
        run_on = torch.arange(together.input_ids.shape[1])[None]
        wrong = packed(replace(together, positions=run_on)).log_probs - found.log_probs
    assert wrong[: len(ROWS[0].response)].abs().max() < 1e-6
    assert wrong[len(ROWS[0].response) :].abs().max() > 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "sdpa_by_sequence", "flash_attention_2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_step_has_the_loss_and_the_gradients_of_sequences_alone(
    model_of: Callable[..., PreTrainedModel], family: Family, attention: str, checkpointing: bool
) -> None:
    def learned(packing: bool, tokens: int) -> tuple[float, dict[str, Tensor]]:
        execution = ExecutionConfig(
            packing=packing, tokens_per_micro_batch=tokens, gradient_checkpointing=checkpointing, skipped_steps=0
        )
        model = model_of(family, attention)
        trainer = Trainer(Policy(model, packing=packing), SFTConfig(learning_rate=1e-3), 10, execution)
        kept: dict[str, Tensor] = {}
        clip = trainer.accelerator.clip_grad_norm_

        def seen(*arguments: Any) -> Any:
            kept.update((name, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None)
            return clip(*arguments)

        trainer.accelerator.clip_grad_norm_ = seen  # type: ignore[method-assign]
        return trainer.step(ROWS, SupervisedFineTuning())["train/loss"], kept

    loss, gradients = learned(packing=False, tokens=1)
    for packing, tokens in ((True, 10_000), (True, 14), (False, 10_000)):
        other, found = learned(packing, tokens)
        assert other == pytest.approx(loss, abs=1e-6)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_scores_kl_and_values_go_through_packed_rows(model_of: Callable[..., PreTrainedModel]) -> None:
    """In float32, whatever the budget, and where the row has more tokens than the model has positions."""
    model, other = (model_of("llama", seed=seed, max_position_embeddings=12).float() for seed in (0, 1))
    packed, padded = (Policy(model, packing=choice) for choice in (True, False))
    packed.check_length(max(map(len, ROWS)))
    assert sum(map(len, ROWS)) > packed.positions
    reference = Policy(other, packing=False)
    critics = [Critic(policy) for policy in (packed, padded)]
    for critic in critics:
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    for budget in (1, 14, 10_000):
        for ours, theirs in zip(score(packed, ROWS, budget), score(padded, ROWS, 1), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        kls = (score_with_kl(policy, [reference], ROWS, budget)[1] for policy in (packed, padded))
        torch.testing.assert_close(*kls, atol=1e-5, rtol=0)
        torch.testing.assert_close(*(score_values(critic, ROWS, budget) for critic in critics), atol=1e-5, rtol=0)


def test_adapters_learn_from_packed_rows(model_of: Callable[..., PreTrainedModel]) -> None:
    losses = []
    for packing in (True, False):
        model = model_of("qwen2").float()
        add_adapters(model, SFTConfig(lora={"rank": 2}).lora, seed=0)  # type: ignore[arg-type]
        trainer = Trainer(Policy(model, packing=packing), SFTConfig(learning_rate=1e-2), 10, ExecutionConfig())
        losses.append([trainer.step(ROWS, SupervisedFineTuning())["train/loss"] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][2] < losses[0][0] - 1e-3


@pytest.mark.parametrize(
    ("attention", "setting", "packs"),
    [
        ("sdpa", None, True),
        ("sdpa", False, False),
        ("eager", None, False),
        ("flash_attention_2", None, False),
        ("sdpa", True, True),
        ("flash_attention_2", True, True),
        ("flash_attention_2", False, False),
    ],
)
def test_unset_packs_with_sdpa_on_a_cpu(
    tiny: Callable[..., Any], attention: str, setting: bool | None, packs: bool
) -> None:
    model, _ = tiny("llama")
    model.config._attn_implementation_internal = attention
    assert Policy(model, packing=setting).packed is packs
    assert Policy(model, packing=setting).packed is packs  # also the second one around the same model


def test_sdpa_packs_on_a_cpu_alone(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    assert not Policy(model.to("meta")).packed
    assert model.config._attn_implementation == "sdpa"


def test_what_is_saved_names_no_attention_of_our_own(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = tiny("llama")
    assert Policy(model).packed
    model.save_pretrained(tmp_path)
    assert "by_sequence" not in (tmp_path / "config.json").read_text()
