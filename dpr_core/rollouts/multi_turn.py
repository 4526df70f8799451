"""Multi-turn generation: each later turn follows the policy's own answers to the earlier ones.

Under a text template token ids are kept end to end: the prompt of a later answer is the exact ids of the conversation
so far, every answer closed by one end token, and then the next turn in the same template. A chat template renders the
whole conversation again, as it does when it is served: it may trim an answer, or leave out a thought.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from dpr_core.data.encoding import decode_response, encode_later_turn
from dpr_core.data.rows import Exchange
from dpr_core.data.template import Renderer, TextRenderer
from dpr_core.errors import UsageError, naming
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Completion, OnProgress, Sampling, completions_from_state, completions_state
from dpr_core.state import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST = "."
"""An answer, where the length of the turns alone is wanted; some templates take none that is empty."""

Sample = Callable[[Sequence[tuple[int, ...]], Sampling, int, OnProgress, dict[int, Completion]], list[Completion]]
"""One completion per prompt: prompts, sampling, seed, progress, and finished completions; see `Engine.generate`."""


@dataclass(frozen=True)
class Conversation:
    """A question as token ids: those in front of the first answer, and those in front of each later one."""

    id: str
    turns: tuple[tuple[int, ...], ...]
    temperature: float

    def prompt(self, answers: Sequence[Completion], end: int) -> tuple[int, ...]:
        """The ids of the whole conversation in front of the next answer."""
        if not answers:
            return self.turns[0]
        last = answers[-1]
        closing = () if last.ended(end) else (end,)
        return last.prompt + last.response + closing + self.turns[len(answers)]


@dataclass(frozen=True)
class RenderedConversation:
    """A question as texts, rendered with the answers to its earlier turns."""

    id: str
    turns: tuple[str, ...]
    temperature: float
    render: Callable[[str, Sequence[Exchange]], tuple[int, ...]]
    """The ids of a turn, behind those that were answered before it."""
    decode: Callable[[tuple[int, ...]], str]

    def prompt(self, answers: Sequence[Completion], end: int) -> tuple[int, ...]:
        """The ids of the whole conversation in front of the next answer."""
        texts = (self.decode(answer.response) for answer in answers)
        return self.render(self.turns[len(answers)], list(zip(self.turns, texts, strict=False)))


def tokenize_question(
    tokenizer: "PreTrainedTokenizerBase",
    renderer: Renderer,
    id: str,
    turns: Sequence[str],
    system: str,
    temperature: float,
    max_tokens: int,
) -> Conversation | RenderedConversation:
    """A question to be asked; UsageError where all its turns together have more than `max_tokens`."""

    def render(turn: str, history: Sequence[Exchange]) -> tuple[int, ...]:
        with naming(f"question {id}"):
            return renderer.prompt(tokenizer, turn, system, history)

    made: Conversation | RenderedConversation
    if isinstance(renderer, TextRenderer):
        later = (encode_later_turn(tokenizer, renderer.render_later(turn)) for turn in turns[1:])
        made = Conversation(id, (render(turns[0], ()), *later), temperature)
        count = sum(map(len, made.turns))
    else:
        made = RenderedConversation(id, tuple(turns), temperature, render, partial(decode_response, tokenizer))
        count = len(render(turns[-1], [(turn, SHORTEST) for turn in turns[:-1]]))
    if count > max_tokens:
        raise UsageError(f"question {id} has {count} tokens, more than max_prompt_tokens={max_tokens}")
    return made


def answer_questions(
    conversations: Sequence[Conversation | RenderedConversation],
    sample: Sample,
    sampling: Sampling,
    seed: int,
    positions: int,
    recorder: Recorder,
) -> list[list[Completion]]:
    """The answers to every turn of every question, in the order of the questions; resumable.

    Questions are batched by turn and temperature. UsageError where a conversation outgrows the model's `positions`.
    """
    answers: list[list[Completion]] = [[] for _ in conversations]
    finished: list[list[Completion]] = []
    drawn: dict[int, Completion] = {}
    batches = 0
    if (resumed := recorder.restore()) is not None:
        finished = [list(completions_from_state(each).values()) for each in resumed["finished"]]
        drawn, batches = completions_from_state(resumed["drawn"]), resumed["batches"]

    def state() -> State:
        return {
            "finished": [completions_state(dict(enumerate(each))) for each in finished],
            "drawn": completions_state(drawn),
            "batches": batches,
        }

    def on_progress(step: int, steps: int) -> None:
        nonlocal batches
        batches += 1
        before = sum(map(len, finished))
        recorder.advance(before + step * len(rows) // steps, sum(len(each.turns) for each in conversations))
        recorder.checkpoint(batches, state)

    for number, (turn, temperature, rows) in enumerate(_batches(conversations)):
        if number == len(finished):
            prompts = [conversations[i].prompt(answers[i], sampling.end_token) for i in rows]
            for i, prompt in zip(rows, prompts, strict=True):
                _check_length(conversations[i].id, turn, len(prompt), sampling.max_response_tokens, positions)
            first = turn == 0 and temperature == sampling.temperature
            batch_seed = seed if first else _seed(seed, turn, temperature)
            finished.append(sample(prompts, replace(sampling, temperature=temperature), batch_seed, on_progress, drawn))
            drawn.clear()
        for i, completion in zip(rows, finished[number], strict=True):
            answers[i].append(completion)
    return answers


def _batches(
    conversations: Sequence[Conversation | RenderedConversation],
) -> Iterator[tuple[int, float, list[int]]]:
    """(turn, temperature, questions that have both), in the order of sampling."""
    for turn in range(max(len(each.turns) for each in conversations)):
        rows = [i for i, each in enumerate(conversations) if turn < len(each.turns)]
        for temperature in dict.fromkeys(conversations[i].temperature for i in rows):
            yield turn, temperature, [i for i in rows if conversations[i].temperature == temperature]


def _check_length(question: str, turn: int, prompt: int, response: int, positions: int) -> None:
    if prompt + response > positions:
        raise UsageError(
            f"question {question}: before turn {turn + 1} the conversation has {prompt} tokens, which with "
            f"max_response_tokens={response} are more than the model's {positions} positions; "
            "lower max_response_tokens"
        )


def _seed(seed: int, turn: int, temperature: float) -> int:
    """A seed of its own for every batch, so that no two share random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {turn} {temperature}".encode()).digest()[:6])
