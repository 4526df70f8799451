"""The dense reward of texts: two checkpoints loaded, prompts and responses scored, and a reward function for TRL."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from dpr_core import distributed
from dpr_core.config.base import parse
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.data.encoding import TokenSequence, encode_response
from dpr_core.data.template import Message, conversation
from dpr_core.errors import UsageError
from dpr_core.files import expanded
from dpr_core.models.dense_reward import GivenText, ScoredText, ScoredTokens, TokenCredit, TokenReward, credit_of
from dpr_core.models.policy import Policy
from dpr_core.reporting import token_credit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DenseReward", "ScoredText", "TokenCredit", "UsageError"]

Messages = Sequence[Mapping[str, Any]]
"""A conversation as chat templates take it: `role` and `content` of each message."""


class DenseReward:
    """r = log pi_SFT - log pi_ref of every response token (Eq. 5), from two checkpoints of one SFT run.

    A prompt is a text, which is read as its tokenizer reads it, special tokens included, or messages, for the
    tokenizer's chat template. A response is a text or one message, which an end token follows.
    """

    def __init__(self, models: TokenReward, tokenizer: "PreTrainedTokenizerBase", sources: Mapping[str, str]) -> None:
        self._models = models
        self._tokenizer = tokenizer
        self._sources = dict(sources)

    @classmethod
    def from_pretrained(
        cls,
        sft: str | Path,
        reference: str | Path,
        *,
        sft_revision: str | None = None,
        reference_revision: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str | torch.device | None = None,
        tokens_per_micro_batch: int | None = None,
    ) -> Self:
        """Load both from folders or from the hub, safetensors only: `sft` is the end of the run, `reference` an earlier
        checkpoint of it. `device` is this process's GPU where there is one; `tokens_per_micro_batch` bounds memory."""
        from dpr_core.models.checkpoints import check_same_tokens, load_backbone, load_tokenizer

        ours = _checkpoint("sft", sft, sft_revision, dtype)
        theirs = _checkpoint("reference", reference, reference_revision, dtype)
        if (ours.name, ours.revision) == (theirs.name, theirs.revision):
            raise UsageError(f"sft and reference are both {ours.name}, so that the reward is 0 everywhere; name two")
        check_same_tokens(theirs, load_tokenizer(ours.name, revision=ours.revision), "reference")
        (sft_model, tokenizer), (reference_model, _) = load_backbone(ours), load_backbone(theirs)
        pi_sft, pi_ref = (
            Policy(model, activations=getattr(torch, dtype)).freeze().to(device or _own_device())
            for model in (sft_model, reference_model)
        )
        models = TokenReward(pi_sft, pi_ref, "baseline_relative", tokens_per_micro_batch)
        return cls(models, tokenizer, {"SFT": _shown(ours), "Reference": _shown(theirs)})

    def score(
        self, prompts: Sequence[str | Messages], responses: Sequence[str | Messages], *, gamma: float = 1.0
    ) -> list[ScoredText]:
        """Every response with its tokens, each with text, log-probs, reward and return, which `gamma` discounts. What
        is found of a response does not depend on the others."""
        if not 0 <= gamma <= 1:
            raise UsageError(f"gamma is {gamma}, where a number from 0 to 1 is expected")
        sequences = self._encoded(prompts, responses)
        texts = [
            GivenText(str(self._tokenizer.decode(list(sequence.prompt))), _text(response, i))
            for i, (sequence, response) in enumerate(zip(sequences, responses, strict=True), start=1)
        ]
        return credit_of(self._tokenizer, texts, sequences, self._scored(sequences), gamma)

    def page(self, scored: Sequence[ScoredText], title: str = "Token credit") -> str:
        """A self-contained HTML page that colours each token of what `score` found."""
        return token_credit.as_html(scored, title, self._sources)

    def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        """A reward function for `reward_funcs` of TRL: the sum of the token rewards of each completion.

        With TRL's `completion_ids` the very tokens are scored that the policy drew, so that a completion that was cut
        gets no end token; ids of another tokenizer are passed over for the text.
        """
        scored = self._scored(self._encoded(prompts, completions, completion_ids))
        return [float(total) for total in scored.rewards.sum(dim=1)]

    def _encoded(
        self,
        prompts: Sequence[str | Messages],
        responses: Sequence[str | Messages],
        response_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[TokenSequence]:
        if isinstance(prompts, str) or isinstance(responses, str) or len(prompts) != len(responses):
            raise UsageError("give a list of prompts, and a list of responses that is as long")
        drawn = response_ids or [()] * len(prompts)
        sequences = [
            TokenSequence(self._prompt(prompt, i), self._response(_text(response, i), ids))
            for i, (prompt, response, ids) in enumerate(zip(prompts, responses, drawn, strict=True), start=1)
        ]
        positions = min(self._models.sft.positions, self._models.reference.positions)
        for i, sequence in enumerate(sequences, start=1):
            if len(sequence) > positions:
                raise UsageError(f"text {i}: {len(sequence)} tokens are more than the models' {positions} positions")
        return sequences

    def _prompt(self, prompt: str | Messages, number: int) -> tuple[int, ...]:
        if isinstance(prompt, str):
            ids = self._tokenizer(prompt)["input_ids"]
        elif not self._tokenizer.chat_template:
            raise UsageError(
                f"prompt {number} is made of messages, and the tokenizer of {self._sources['SFT']} has no chat "
                "template; give prompts as texts, or save the tokenizer with a template"
            )
        else:
            try:
                ids = conversation(self._tokenizer, [_message(message) for message in prompt])
            except UsageError as error:
                raise UsageError(f"prompt {number}: {error}") from error
        if not ids:
            raise UsageError(f"prompt {number} is empty")
        return tuple(ids)

    def _response(self, text: str, drawn: Sequence[int]) -> tuple[int, ...]:
        if drawn and text.strip() in self._tokenizer.decode(list(drawn), skip_special_tokens=True):
            return tuple(drawn)
        return encode_response(self._tokenizer, text)

    def _scored(self, sequences: Sequence[TokenSequence]) -> ScoredTokens:
        # Where a trainer runs in several processes, each asks for the rewards of other texts.
        with distributed.alone(), torch.no_grad():
            return self._models(sequences)


def _checkpoint(role: str, name: str | Path, revision: str | None, dtype: str) -> PretrainedBackboneConfig:
    folder = expanded(str(name))
    if not folder.is_dir() and (isinstance(name, Path) or name.startswith(("/", ".", "~"))):
        raise UsageError(f"{role}: there is no folder {name}")
    values = {"name": str(folder.resolve()) if folder.is_dir() else str(name), "revision": revision, "dtype": dtype}
    return parse(PretrainedBackboneConfig, values, role)


def _shown(checkpoint: PretrainedBackboneConfig) -> str:
    return checkpoint.name if checkpoint.revision is None else f"{checkpoint.name} at {checkpoint.revision}"


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _message(message: Mapping[str, Any]) -> Message:
    match message:
        case {"role": str(role), "content": str(content)}:
            return role, content
    raise UsageError("a message has a role, and a text as content")


def _text(response: str | Messages, number: int) -> str:
    if isinstance(response, str):
        return response
    if len(response) != 1 or response[0].get("role") != "assistant" or not isinstance(response[0].get("content"), str):
        raise UsageError(f"response {number}: a text or one message of the assistant is expected, without tools")
    return str(response[0]["content"])
