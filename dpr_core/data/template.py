"""Prompt templates, a text or the tokenizer's chat template: one renderer for SFT, rollouts, scoring and evaluation."""

import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.config.base import parse
from dpr_core.config.data import ChatTemplateConfig, PromptTemplate, TemplateConfig
from dpr_core.data.encoding import (
    TokenSequence,
    control_tokens,
    encode_later_turn,
    encode_prompt,
    encode_response,
    end_token,
)
from dpr_core.data.rows import ROLES, Exchange
from dpr_core.errors import DensePathError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATE_FILE = "template.json"
BETWEEN_TURNS = "\n\n"

Message = tuple[str, str]
"""A role, and what it says."""

_MARKER = re.compile(r"\{(prompt|system)\}")


class Renderer(ABC):
    """Makes token ids of prompts and of responses to them."""

    @abstractmethod
    def prompt(
        self, tokenizer: "PreTrainedTokenizerBase", prompt: str, system: str = "", history: Sequence[Exchange] = ()
    ) -> tuple[int, ...]:
        """The ids in front of a response; a system prompt of nothing but spaces counts as none."""

    @abstractmethod
    def demonstration(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: str,
        response: str,
        system: str = "",
        history: Sequence[Exchange] = (),
    ) -> TokenSequence:
        """They, and the ids of the response, the end token among them."""

    @abstractmethod
    def end_turns(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Make what ends a response here the end token of a backbone that is to be trained."""

    @classmethod
    def load(cls, folder: Path) -> "Renderer":
        template = load_template(folder)
        return ChatRenderer(template) if isinstance(template, ChatTemplateConfig) else TextRenderer(template)


class TextRenderer(Renderer):
    """Fills a text in one pass, so that a marker inside a prompt stays plain text."""

    def __init__(self, template: TemplateConfig) -> None:
        self.template = template

    def render(self, prompt: str, system: str = "") -> str:
        """The text of a prompt; a system prompt of nothing but spaces counts as none."""
        system = system if system.strip() else self.template.default_system
        heading = _fill(self.template.system, {"system": system}) if system else ""
        return _fill(self.template.text, {"prompt": prompt, "system": heading})

    def render_later(self, prompt: str) -> str:
        """A later turn of a conversation: after an empty line the template again, without a system prompt."""
        return BETWEEN_TURNS + _fill(self.template.text, {"prompt": prompt, "system": ""})

    def prompt(
        self, tokenizer: "PreTrainedTokenizerBase", prompt: str, system: str = "", history: Sequence[Exchange] = ()
    ) -> tuple[int, ...]:
        asked = [*(user for user, _ in history), prompt]
        ids = encode_prompt(tokenizer, self.render(asked[0], system))
        for (_, answer), later in zip(history, asked[1:], strict=True):
            ids += encode_response(tokenizer, answer) + encode_later_turn(tokenizer, self.render_later(later))
        return ids

    def demonstration(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: str,
        response: str,
        system: str = "",
        history: Sequence[Exchange] = (),
    ) -> TokenSequence:
        return TokenSequence(self.prompt(tokenizer, prompt, system, history), encode_response(tokenizer, response))

    def end_turns(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """It is the tokenizer's own."""


SAME_DAY = (
    "{%- macro strftime_now(format) -%}"
    "{{ format | replace('%d', '26') | replace('%m', '07') | replace('%b', 'Jul') | replace('%B', 'July') "
    "| replace('%Y', '2024') }}{%- endmacro %}"
)
"""For templates that write today's date, which would make other prompts of the same rows every day."""


class ChatRenderer(Renderer):
    """Renders conversations with the tokenizer's chat template. The control tokens in its own text alone are tokens;
    spelled out in a message they stay text.

    The response is what the template writes after the generation prompt, to the token that ends the turn.
    """

    def __init__(self, template: ChatTemplateConfig) -> None:
        self.template = template

    def prompt(
        self, tokenizer: "PreTrainedTokenizerBase", prompt: str, system: str = "", history: Sequence[Exchange] = ()
    ) -> tuple[int, ...]:
        return conversation(tokenizer, self._messages(prompt, system, history))

    def demonstration(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt: str,
        response: str,
        system: str = "",
        history: Sequence[Exchange] = (),
    ) -> TokenSequence:
        asked, answer = self._split(tokenizer, self._messages(prompt, system, history), response)
        ids, whole = _encoded(tokenizer, asked), _encoded(tokenizer, asked + answer)
        # Where a token lies across the border, the policy that answers the prompt could not have drawn it.
        rest = whole[len(ids) :] if whole[: len(ids)] == ids else _encoded(tokenizer, answer)
        end = end_token(tokenizer)
        if end not in rest:
            raise UsageError(
                f"the chat template ends this answer without {tokenizer.convert_ids_to_tokens(end)}, the end token"
            )
        return TokenSequence(ids, rest[: rest.index(end) + 1])

    def end_turns(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """The first control token behind the text of an answer, such as <|im_end|>, <|eot_id|> or <end_of_turn>."""
        word = "Yes"
        _, answer = self._split(tokenizer, self._messages("Is it?", "", ()), word)
        found = control_tokens(tokenizer).search(answer, answer.find(word) + len(word))
        if word not in answer or found is None:
            raise UsageError(
                "the chat template of this tokenizer ends an answer with no special token, so that nothing could stop "
                "one; take a template that has one, or a text as `subsample.template`"
            )
        tokenizer.eos_token = found[0]
        model.config.eos_token_id = end_token(tokenizer)
        if model.generation_config is not None:
            model.generation_config.eos_token_id = end_token(tokenizer)

    def _messages(self, prompt: str, system: str, history: Sequence[Exchange]) -> list[Message]:
        system = system if system.strip() else self.template.system
        said = [text for exchange in history for text in exchange]
        turns = list(zip(itertools.cycle(ROLES), [*said, prompt]))
        return [("system", system), *turns] if system else turns

    def _split(self, tokenizer: "PreTrainedTokenizerBase", messages: list[Message], response: str) -> tuple[str, str]:
        """What stands in front of a response, and what from there on."""
        asked = _rendered(tokenizer, messages)
        whole = _rendered(tokenizer, [*messages, ("assistant", response)], ask=False)
        if not whole.startswith(asked):
            raise UsageError(
                "the chat template writes a conversation otherwise once it is answered, so that no response can be "
                "told from its prompt (its generation prompt may open a thought); take another template, or a text as "
                "`subsample.template`"
            )
        return asked, whole.removeprefix(asked)


def conversation(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> tuple[int, ...]:
    """The ids of a conversation that waits for an answer, by the tokenizer's chat template."""
    return _encoded(tokenizer, _rendered(tokenizer, messages))


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], ask: bool = True) -> str:
    """A conversation as text, with the control tokens in its messages marked; `ask` for an answer to it."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    if not tokenizer.chat_template:
        raise UsageError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; take the instruction-tuned model's, or a "
            "text as `subsample.template`"
        )
    try:
        template = tokenizer.get_chat_template()
        # Tokens that are not special, such as <think>, are the assistant's to use.
        of_others, of_assistant = control_tokens(tokenizer, template), control_tokens(tokenizer)
        marked = [
            {"role": role, "content": mark_control_tokens(text, of_assistant if role == "assistant" else of_others)}
            for role, text in messages
        ]
        if "strftime_now" in template:
            template = SAME_DAY + template
        return str(
            tokenizer.apply_chat_template(marked, chat_template=template, tokenize=False, add_generation_prompt=ask)
        )
    # What a template raises for messages that it does not take cannot be listed.
    except Exception as error:
        raise UsageError(f"the chat template of the tokenizer does not take it: {error}") from error


def _encoded(tokenizer: "PreTrainedTokenizerBase", rendered: str) -> tuple[int, ...]:
    from transformers.utils.chat_template_utils import encode_marked_chat

    return tuple(encode_marked_chat(tokenizer, rendered))


def save_template(template: PromptTemplate, folder: Path) -> None:
    text = json.dumps(template.model_dump(mode="json"), ensure_ascii=False, sort_keys=True, indent=2)
    (folder / TEMPLATE_FILE).write_bytes(f"{text}\n".encode())


def load_template(folder: Path) -> PromptTemplate:
    path = folder / TEMPLATE_FILE
    try:
        values = json.loads(path.read_bytes())
        chat = values.get("type") == "chat"
    except (OSError, ValueError, AttributeError) as error:
        raise DensePathError(f"cannot read the prompt template {path}: {error}") from error
    return parse(ChatTemplateConfig, values, str(path)) if chat else parse(TemplateConfig, values, str(path))


def _fill(text: str, contents: dict[str, str]) -> str:
    return _MARKER.sub(lambda marker: contents.get(marker[1], marker[0]), text)
