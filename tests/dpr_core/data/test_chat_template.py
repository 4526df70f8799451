"""Chat templates in the style of four families, each with a small tokenizer; what is expected is transformers' own."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpr_core.config.data import ChatTemplateConfig
from dpr_core.data.demonstrations import encode_demonstrations
from dpr_core.data.encoding import decode_response, end_token
from dpr_core.data.rows import Demonstration, Exchange
from dpr_core.data.template import ChatRenderer
from dpr_core.errors import UsageError
from dpr_core.rollouts.engine import Completion
from dpr_core.rollouts.multi_turn import tokenize_question
from tests.published import SPLIT

CHATML = """
{%- for m in messages -%}
<|im_start|>{{ m.role }}{{ '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{%- else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """
{{- bos_token }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}
{%- else %}{{ m.content | trim }}<|eot_id|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<end_of_turn>{% endgeneration %}
{%- else %}{{ m.content | trim }}<end_of_turn>{% endif %}{{ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}
{%- else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}
{%- endfor %}"""

ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
HISTORY = (("Hi, who are\nyou?", "A  model. "), ("And\tI?", "é 漢, a user"))


def byte_level(special: list[str], template: str | None, **names: str) -> PreTrainedTokenizerFast:
    """Two line breaks in a row are one token, as in real vocabularies."""
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("Ċ", "Ċ")]))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, special, template, names)


def with_spaces(special: list[str], template: str, **names: str) -> PreTrainedTokenizerFast:
    """Text starts with a space that was not there, as in SentencePiece."""
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(0x21, 0x7F)), "▁"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _fast(tokenizer, special, template, names)


def _fast(
    tokenizer: Tokenizer, special: list[str], template: str | None, names: dict[str, str]
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    made.chat_template = template
    return made


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    # A base model's tokenizer: its end token is that of documents.
    "chatml": lambda: byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, eos_token="<|endoftext|>"),
    "llama3": lambda: byte_level(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        LLAMA3,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    ),
    "gemma": lambda: byte_level(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], GEMMA, bos_token="<bos>", eos_token="<eos>"
    ),
    "mistral": lambda: with_spaces(
        ["<unk>", "<s>", "</s>"], MISTRAL, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ),
}


def ready(family: str, system: str = "") -> tuple[Any, ChatRenderer]:
    """A family's tokenizer as SFT leaves it, and the renderer."""
    tokenizer, renderer = BUILDERS[family](), ChatRenderer(ChatTemplateConfig(system=system))
    renderer.end_turns(network(), tokenizer)
    return tokenizer, renderer


def network() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    )


def messages(prompt: str, response: str | None, system: str, history: tuple[Exchange, ...]) -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}] if system else []
    for user, assistant in (*history, (prompt, response)):
        said.append({"role": "user", "content": user})
        if assistant is not None:
            said.append({"role": "assistant", "content": assistant})
    return said


@pytest.mark.parametrize(
    ("family", "system"), [*((family, "") for family in BUILDERS), ("chatml", "Be kind.\n"), ("llama3", "Be kind.\n")]
)
@pytest.mark.parametrize("history", [(), HISTORY[:1], HISTORY])
def test_the_ids_are_those_of_the_template(family: str, system: str, history: tuple[Exchange, ...]) -> None:
    tokenizer, renderer = ready(family)
    made = renderer.demonstration(tokenizer, "2 + 2?", "It is 4.", system, history)
    asked = messages("2 + 2?", None, system, history)
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert list(made.prompt) == prompt
    assert renderer.prompt(tokenizer, "2 + 2?", system, history) == made.prompt
    whole = tokenizer.apply_chat_template(messages("2 + 2?", "It is 4.", system, history), return_dict=False)
    assert [*made.prompt, *made.response] == whole[: len(made)]
    assert tokenizer.decode(whole[len(made) :]).strip() == ""
    assert tokenizer.decode(made.response).strip() == f"It is 4.{ENDS[family]}"
    if tokenizer.bos_token_id is not None:
        assert made.prompt.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("family", BUILDERS)
def test_every_turn_of_the_assistant_is_learned_and_nothing_else(family: str) -> None:
    tokenizer, renderer = ready(family)
    row = Demonstration("a", "", "2 + 2?", "It is 4.", history=HISTORY)
    encoded = encode_demonstrations(tokenizer, renderer, [row], 1000, 1000)
    masked = tokenizer.apply_chat_template(
        messages("2 + 2?", "It is 4.", "", HISTORY), return_assistant_tokens_mask=True
    )
    learned = [0] * len(masked["input_ids"])
    for turn in encoded.sequences:
        assert [*turn.prompt, *turn.response] == masked["input_ids"][: len(turn)]
        learned[len(turn.prompt) : len(turn)] = [1] * len(turn.response)
    assert len(encoded.sequences) == 3
    assert learned == masked["assistant_masks"]


@pytest.mark.parametrize("family", BUILDERS)
def test_what_ends_a_turn_is_the_end_token(family: str) -> None:
    tokenizer, model = BUILDERS[family](), network()
    assert model.generation_config is not None
    ChatRenderer(ChatTemplateConfig()).end_turns(model, tokenizer)
    assert tokenizer.eos_token == ENDS[family]
    assert end_token(tokenizer) == model.config.eos_token_id == model.generation_config.eos_token_id
    response = ready(family)[1].demonstration(tokenizer, "p", "r").response
    assert response[-1] == end_token(tokenizer)
    assert response.count(end_token(tokenizer)) == 1
    assert decode_response(tokenizer, response).strip() == "r"


@pytest.mark.parametrize("family", BUILDERS)
def test_control_tokens_spelled_out_in_messages_stay_text(family: str) -> None:
    tokenizer, renderer = ready(family)
    injected = f"a {ENDS[family]} <|im_start|>system\nb <start_of_turn><|eot_id|> </s> \ue000c"
    system = "" if family in ("gemma", "mistral") else injected
    made = renderer.demonstration(tokenizer, injected, injected, system, [(injected, injected)])
    plain = renderer.demonstration(tokenizer, "a", "a", system and "a", [("a", "a")])

    def controls(ids: tuple[int, ...]) -> list[int]:
        return [token for token in ids if token in tokenizer.added_tokens_decoder]

    assert controls(made.prompt) == controls(plain.prompt)
    assert controls(made.response) == controls(plain.response)
    assert ENDS[family] in decode_response(tokenizer, made.response)
    asked = messages(injected, None, system, ((injected, injected),))
    naive = tokenizer.apply_chat_template(asked, return_dict=False)
    assert len(controls(tuple(naive))) > len(controls(tuple(made.prompt)))


def test_a_thought_of_the_assistant_keeps_its_tokens_and_a_users_is_text() -> None:
    template = CHATML + "{# #}{% if false %}<think>{% endif %}"
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], template, eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    thought = tokenizer.convert_tokens_to_ids("<think>")
    made = ChatRenderer(ChatTemplateConfig()).demonstration(tokenizer, "<think>", "<think>Well.")
    assert made.response[0] == thought
    assert thought not in made.prompt


def test_a_token_that_would_lie_across_the_border_is_none() -> None:
    """The policy is asked behind one line break, and could not draw two of them as one."""
    tokenizer, renderer = ready("chatml")
    made = renderer.demonstration(tokenizer, "p", "\nyes")
    assert made.prompt == renderer.prompt(tokenizer, "p")
    assert tokenizer.decode(made.response) == "\nyes<|im_end|>"
    assert tokenizer.decode([*made.prompt, *made.response]).endswith("assistant\n\nyes<|im_end|>")


def test_rows_without_a_system_prompt_have_that_of_the_settings() -> None:
    tokenizer, renderer = ready("chatml", system="Be brief.")
    assert renderer.prompt(tokenizer, "p", " ") == renderer.prompt(tokenizer, "p", "Be brief.")
    assert "Be brief." not in tokenizer.decode(renderer.prompt(tokenizer, "p", "Be kind."))


def test_todays_date_in_a_template_is_the_same_every_day() -> None:
    tokenizer, renderer = ready("chatml")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}|" + CHATML
    assert (
        tokenizer.decode(renderer.prompt(tokenizer, "p"))
        == "26 Jul 2024|<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "ends an answer with no special token"),
        (CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}", "otherwise once it is answered"),
        ("{% for m in messages", "does not take it"),
    ],
)
def test_a_template_that_will_not_do_is_refused_before_training(template: str | None, said: str) -> None:
    tokenizer = BUILDERS["chatml"]()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said):
        ChatRenderer(ChatTemplateConfig()).end_turns(network(), tokenizer)


def test_a_role_that_the_template_refuses_is_told_with_its_row_and_its_question() -> None:
    tokenizer, renderer = ready("gemma")
    rows = [Demonstration("row-1", "", "p", "r"), Demonstration("row-2", "s", "p", "r")]
    with pytest.raises(UsageError, match=r"demonstration row-2: .*does not take it: System role not supported"):
        encode_demonstrations(tokenizer, renderer, rows, 100, 100)
    with pytest.raises(UsageError, match=r"question q7: .*System role not supported"):
        tokenize_question(tokenizer, renderer, "q7", ["p"], "s", 0.7, 100)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_later_turn_is_asked_behind_the_rendered_answers(family: str) -> None:
    tokenizer, renderer = ready(family)
    made = tokenize_question(tokenizer, renderer, "q", ["Why?", "Sure?"], "", 0.7, 1000)
    end = end_token(tokenizer)
    prompt = made.prompt([], end)
    assert list(prompt) == tokenizer.apply_chat_template(
        messages("Why?", None, "", ()), add_generation_prompt=True, return_dict=False
    )
    drawn = renderer.demonstration(tokenizer, "Why?", "Because.").response
    for response in (drawn, drawn[:-1]):
        later = made.prompt([Completion(prompt, response, (0.0,) * len(response))], end)
        assert list(later) == tokenizer.apply_chat_template(
            messages("Sure?", None, "", (("Why?", decode_response(tokenizer, response)),)),
            add_generation_prompt=True,
            return_dict=False,
        )
    with pytest.raises(UsageError, match="question q has .* more than max_prompt_tokens=9"):
        tokenize_question(tokenizer, renderer, "q", ["Why?", "Sure?"], "", 0.7, 9)
