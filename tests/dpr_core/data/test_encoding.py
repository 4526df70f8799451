import random
from typing import get_args

import pytest
from tokenizers import processors

from dpr_core.config.data import AdditionsConfig, ShellGameConfig, TemplateConfig
from dpr_core.config.model import Family
from dpr_core.data.demonstrations import encode_demonstrations
from dpr_core.data.encoding import (
    TokenSequence,
    decode_response,
    encode_prompt,
    encode_response,
    end_token,
)
from dpr_core.data.rows import Demonstration
from dpr_core.data.template import TextRenderer
from dpr_core.errors import UsageError
from dpr_core.lab import programs
from dpr_core.lab.backbone import build_tokenizer

PLAIN = TextRenderer(TemplateConfig(text="{system}{prompt}"))
FAMILIES: tuple[Family, ...] = get_args(Family)
BOS = {"llama": "<|begin_of_text|>", "qwen2": None, "mistral": "<s>", "gemma3": "<bos>"}
EOS = {"llama": "<|end_of_text|>", "qwen2": "<|endoftext|>", "mistral": "</s>", "gemma3": "<eos>"}
SPELLED_OUT = "<s></s><bos><eos><pad><unk><|begin_of_text|><|end_of_text|><|endoftext|><|finetune_right_pad_id|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_ends_with_exactly_one_end_token_and_starts_with_no_bos(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    eos = tokenizer.convert_tokens_to_ids(EOS[family])
    assert end_token(tokenizer) == eos
    for text in ("The answer is 3.", "", SPELLED_OUT, f"The answer{EOS[family]}"):
        ids = encode_response(tokenizer, text)
        assert ids[-1] == eos
        assert ids.count(eos) == 1
        assert not set(ids[:-1]) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("begin_with_bos", [False, True])
def test_a_prompt_has_the_bos_of_its_family_once_and_no_end_token(family: Family, begin_with_bos: bool) -> None:
    tokenizer = build_tokenizer(family)
    bos = BOS[family]
    text = (bos or "") * begin_with_bos + "Start at 4, add 3.\n"
    ids = encode_prompt(tokenizer, text)
    specials = [token for token in ids if token in tokenizer.all_special_ids]
    if bos is None:
        assert specials == []
    else:
        assert specials == [ids[0]] == [tokenizer.convert_tokens_to_ids(bos)]


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_spelled_out_in_text_stay_text(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    assert decode_response(tokenizer, encode_response(tokenizer, SPELLED_OUT)) == SPELLED_OUT
    prompt = encode_prompt(tokenizer, SPELLED_OUT)
    assert decode_response(tokenizer, prompt) == SPELLED_OUT
    assert sum(token in tokenizer.all_special_ids for token in prompt) == (BOS[family] is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_leaves_the_tokenizer_as_it_was(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    before = tokenizer(EOS[family])["input_ids"]
    encode_response(tokenizer, SPELLED_OUT)
    assert tokenizer(EOS[family])["input_ids"] == before
    assert end_token(tokenizer) in before


def test_an_end_token_that_a_tokenizer_appends_by_itself_is_left_out_of_prompts() -> None:
    tokenizer = build_tokenizer("mistral")
    bos, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    prompt = encode_prompt(tokenizer, "add 3")
    assert prompt[0] == bos
    assert eos not in prompt
    assert encode_response(tokenizer, "add 3") == (*prompt[1:], eos)


@pytest.mark.parametrize("family", FAMILIES)
def test_lab_text_survives_the_round_trip(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    rng = random.Random(0)
    for _ in range(30):
        task = rng.choice((AdditionsConfig(modulus=10, largest_addend=9), ShellGameConfig(cups=9)))
        problem = programs.PROGRAMS[type(task)](task, rng)
        style = rng.choice(("careful", "bare", "jump"))
        for text in (problem.prompt, problem.answer(style, rng.random() < 0.5, rng)):
            assert decode_response(tokenizer, encode_response(tokenizer, text)) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text_survives_the_round_trip(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    for text in ("a  b\n\n\tc", "é 漢字 😀 \u200b", "trailing ", "1 , 2 . 3 n't", "▁Ġ"):
        found = decode_response(tokenizer, encode_response(tokenizer, text))
        # Metaspace cannot tell its own mark from a space, nor Mistral's its own space from the text's first.
        expected = text if family in ("llama", "qwen2") else text.replace("▁", " ")
        assert found == (expected.removeprefix(" ") if family == "mistral" else expected)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = build_tokenizer("llama")
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="eos_token"):
        encode_response(tokenizer, "text")


def test_length_limits_are_applied_and_counted() -> None:
    """The Qwen tokenizer adds nothing, and digits are one token each."""
    tokenizer = build_tokenizer("qwen2")
    eos = end_token(tokenizer)
    texts = [("1234", "12"), ("123456", "1"), ("12", "123"), ("1", "1234"), ("12345678", "12345678")]
    rows = (Demonstration(str(i), "", *text) for i, text in enumerate(texts))
    encoded = encode_demonstrations(tokenizer, PLAIN, rows, max_prompt_tokens=4, max_response_tokens=4)
    digit = {str(d): tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)}
    assert encoded.kept == [0, 2, 3]
    assert encoded.prompts_too_long == 2
    assert encoded.counts()["data/prompts_too_long"] == 2
    assert encoded.counts()["data/demonstrations"] == len(encoded.sequences)
    assert encoded.responses_cut == 1
    assert encoded.sequences == [
        TokenSequence(tuple(digit[d] for d in "1234"), (digit["1"], digit["2"], eos)),
        TokenSequence(tuple(digit[d] for d in "12"), (digit["1"], digit["2"], digit["3"], eos)),
        TokenSequence((digit["1"],), tuple(digit[d] for d in "1234")),
    ]
    assert [len(s) for s in encoded.sequences] == [7, 6, 5]


def test_nothing_left_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(UsageError, match="max_prompt_tokens=1"):
        encode_demonstrations(build_tokenizer("llama"), PLAIN, [Demonstration("a", "", "12", "1")], 1, 10)
