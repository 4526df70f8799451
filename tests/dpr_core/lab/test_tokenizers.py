from typing import get_args

import pytest

from dpr_core.config.model import Family
from dpr_core.lab.backbone import WORDS, build_tokenizer

FAMILIES: tuple[Family, ...] = get_args(Family)


@pytest.mark.parametrize(
    ("family", "bos", "eos", "pad", "adds_bos"),
    [
        ("llama", "<|begin_of_text|>", "<|end_of_text|>", None, True),
        ("qwen2", None, "<|endoftext|>", "<|endoftext|>", False),
        ("mistral", "<s>", "</s>", None, True),
        ("gemma3", "<bos>", "<eos>", "<pad>", True),
    ],
)
def test_each_has_the_special_tokens_of_its_family(
    family: Family, bos: str | None, eos: str, pad: str | None, adds_bos: bool
) -> None:
    tokenizer = build_tokenizer(family)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (bos, eos, pad)
    assert tokenizer("")["input_ids"] == ([tokenizer.bos_token_id] if adds_bos else [])
    assert tokenizer("1", add_special_tokens=True)["input_ids"][-1] != tokenizer.eos_token_id
    assert tokenizer(eos, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_the_ids_that_families_are_known_for() -> None:
    assert [build_tokenizer("gemma3").convert_tokens_to_ids(t) for t in ("<pad>", "<eos>", "<bos>")] == [0, 1, 2]
    assert [build_tokenizer("mistral").convert_tokens_to_ids(t) for t in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert (
        build_tokenizer("llama").convert_tokens_to_ids("<|finetune_right_pad_id|>")
        != build_tokenizer("llama").unk_token_id
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_labs_text_is_one_token_a_word_digit_or_mark(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    pieces = tokenizer.tokenize("Steps: 4+3=2. The answer is 2.")
    mark = "Ġ" if family in ("llama", "qwen2") else "▁"
    digits = [mark, "4", "+", "3", "=", "2", "."]
    first = "▁Steps" if family == "mistral" else "Steps"
    assert pieces == [first, ":", *digits, f"{mark}The", f"{mark}answer", f"{mark}is", mark, "2", "."]
    pieces = tokenizer.tokenize("Ball at 2. Swap 1-3, swap 2-3.")
    first = "▁Ball" if family == "mistral" else "Ball"
    swaps = [f"{mark}Swap", mark, "1", "-", "3", ",", f"{mark}swap", mark, "2", "-", "3", "."]
    assert pieces == [first, f"{mark}at", mark, "2", ".", *swaps]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_has_a_token_with_and_without_a_space(family: Family) -> None:
    vocabulary = build_tokenizer(family).get_vocab()
    mark = "Ġ" if family in ("llama", "qwen2") else "▁"
    assert all(word in vocabulary and mark + word in vocabulary for word in WORDS)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_joint_and_split_tokenisation_differ_for_mistral_alone() -> None:
    for family in FAMILIES:
        tokenizer = build_tokenizer(family)
        joint, left, right = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in ("Start at 1.Steps", "Start at 1.", "Steps")
        )
        assert (joint == left + right) == (family != "mistral"), family


@pytest.mark.parametrize("family", FAMILIES)
def test_building_is_deterministic(family: Family) -> None:
    assert build_tokenizer(family).backend_tokenizer.to_str() == build_tokenizer(family).backend_tokenizer.to_str()
