import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import PreTrainedTokenizerBase

from dpr_core.config.data import TemplateConfig
from dpr_core.config.model import Family
from dpr_core.data.encoding import encode_response
from dpr_core.data.template import TextRenderer
from dpr_core.lab.backbone import build_tokenizer
from dpr_core.models.dense_reward import GivenText, TokenReward, assign_credit, token_texts
from dpr_core.models.policy import Policy

ROOT = Path(__file__).parents[3]
FAMILIES: tuple[Family, ...] = get_args(Family)
ENDS = {"llama": "<|end_of_text|>", "qwen2": "<|endoftext|>", "mistral": "</s>", "gemma3": "<eos>"}
TEXTS = (
    "Steps: 4+3=2. The answer is 2.",
    "Größe: 東京 \U0001f600\U0001f469\u200d\U0001f467 e\u0301.",
    " two  spaces \n\tand a tab ",
    "\ufffd broken \ufffd\ufffd already \ufffd",
    "</s> <eos> <|endoftext|> spelled out",
)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_together_the_decoded_response(family: Family, text: str) -> None:
    tokenizer = build_tokenizer(family)
    ids = encode_response(tokenizer, text)
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == decoded(tokenizer, ids)
    assert pieces[-1] == ENDS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_spaces_stay_with_their_words(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    pieces = token_texts(tokenizer, encode_response(tokenizer, "Steps: 4+3=2. The answer is 2."))
    digits = [" ", "4", "+", "3", "=", "2", "."]
    assert pieces[:-1] == ["Steps", ":", *digits, " The", " answer", " is", " ", "2", "."]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_character_of_several_tokens_is_shown_at_the_last_of_them(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    pieces = token_texts(tokenizer, encode_response(tokenizer, "1\u20ac\U0001f6002"))
    start = 1 if family == "mistral" else 0
    assert pieces[start:-1] == ["1", "", "", "\u20ac", "", "", "", "\U0001f600", "2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_character_and_special_tokens_in_between(family: Family) -> None:
    tokenizer = build_tokenizer(family)
    *half, end = encode_response(tokenizer, "a\u20ac")
    ids = [*half[:-1], end, *half, end]
    pieces = token_texts(tokenizer, ids)
    assert "".join(pieces) == decoded(tokenizer, ids)
    assert (pieces.count(ENDS[family]), pieces[-2]) == (2, "\u20ac")
    assert token_texts(tokenizer, []) == []


def test_a_long_response_is_decoded_in_short_windows() -> None:
    class Counting:
        all_special_ids = all_special_tokens = ()
        tokens = 0

        def decode(self, ids: list[int], **_: Any) -> str:
            self.tokens += len(ids)
            return "".join(chr(i) for i in ids)

    tokenizer: Any = Counting()
    assert token_texts(tokenizer, [97] * 1000) == ["a"] * 1000
    assert tokenizer.tokens < 10_000


def test_the_credit_of_a_text_shows_its_tokens_as_they_stand_in_it(tiny: Callable[..., Any]) -> None:
    model, tokenizer = tiny("mistral")
    reward = TokenReward(Policy(model), Policy(tiny("mistral", seed=1)[0]), "baseline_relative")
    [scored] = assign_credit(
        reward, tokenizer, TextRenderer(TemplateConfig()), [GivenText("Why?", "The answer is \u20ac.")]
    )
    assert "".join(token.token for token in scored.tokens) == "The answer is \u20ac.</s>"
    assert [token.position for token in scored.tokens] == list(range(len(scored.tokens)))
    assert scored.tokens[0].return_ == pytest.approx(sum(token.reward for token in scored.tokens), abs=1e-5)


def test_models_import_no_reporting() -> None:
    code = (
        "import sys, dpr_core.models.dense_reward\n"
        "sys.exit(any(name.startswith('dpr_core.reporting') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
