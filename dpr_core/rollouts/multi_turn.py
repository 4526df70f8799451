"""Multi-turn generation: each later turn follows the policy's own answers to the earlier ones.

Token ids are kept end to end: the prompt of a later answer is the exact ids of the conversation so far, every answer
closed by one end token, and then the next turn in the same template.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dpr_core.data.encoding import encode_later_turn, encode_prompt
from dpr_core.data.template import Renderer
from dpr_core.errors import UsageError
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Completion, OnProgress, Sampling, completions_from_state, completions_state
from dpr_core.state import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


def tokenize_question(
    tokenizer: "PreTrainedTokenizerBase",
    renderer: Renderer,
    id: str,
    turns: Sequence[str],
    system: str,
    temperature: float,
    max_tokens: int,
) -> Conversation:
    """A question as token ids; UsageError where all its turns together have more than `max_tokens`."""
    first = encode_prompt(tokenizer, renderer.render(turns[0], system))
    later = [encode_later_turn(tokenizer, renderer.render_later(turn)) for turn in turns[1:]]
    ids = (first, *later)
    if (count := sum(map(len, ids))) > max_tokens:
        raise UsageError(f"question {id} has {count} tokens, more than max_prompt_tokens={max_tokens}")
    return Conversation(id, ids, temperature)


def answer_questions(
    conversations: Sequence[Conversation],
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


def _batches(conversations: Sequence[Conversation]) -> Iterator[tuple[int, float, list[int]]]:
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
