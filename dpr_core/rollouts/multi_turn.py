"""Questions of several turns: each later turn is asked after the policy's own answers to the earlier ones.

Token ids are kept end to end: what stands in front of a later answer is what the policy read and wrote before, token by
token, every answer closed by one end token, and then the next turn in the same template.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dpr_core.data.encoding import encode_later_turn, encode_prompt
from dpr_core.data.template import Renderer
from dpr_core.errors import UsageError
from dpr_core.evaluation.questions import Question
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Completion, Progress, Sampling, drawn_from, drawn_state
from dpr_core.state import State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Draw = Callable[[Sequence[tuple[int, ...]], Sampling, int, Progress, dict[int, Completion]], list[Completion]]
"""One completion a prompt: prompts, sampling, seed, progress, and what is drawn already; see `Engine.generate`."""


@dataclass(frozen=True)
class Script:
    """What is put to a policy: the ids in front of the first answer, and those in front of each later one."""

    id: str
    turns: tuple[tuple[int, ...], ...]
    temperature: float

    def prompt(self, answers: Sequence[Completion], end: int) -> tuple[int, ...]:
        """The whole conversation in front of the next answer."""
        if not answers:
            return self.turns[0]
        last = answers[-1]
        closing = () if last.ended(end) else (end,)
        return last.prompt + last.response + closing + self.turns[len(answers)]


def script(
    tokenizer: "PreTrainedTokenizerBase", renderer: Renderer, question: Question, temperature: float, max_tokens: int
) -> Script:
    """A question as token ids; UsageError where all its turns together have more than `max_tokens`."""
    first = encode_prompt(tokenizer, renderer.render(question.turns[0], question.system))
    later = [encode_later_turn(tokenizer, renderer.render_later(turn)) for turn in question.turns[1:]]
    turns = (first, *later)
    if (count := sum(map(len, turns))) > max_tokens:
        raise UsageError(f"question {question.id} has {count} tokens, more than max_prompt_tokens={max_tokens}")
    return Script(question.id, turns, temperature)


def converse(
    scripts: Sequence[Script], draw: Draw, sampling: Sampling, seed: int, positions: int, recorder: Recorder
) -> list[list[Completion]]:
    """The answers to every turn of every question, in the order of the questions.

    Questions of one turn and temperature are drawn together. UsageError where a conversation outgrows the model's
    `positions`.
    """
    answers: list[list[Completion]] = [[] for _ in scripts]
    finished: list[list[Completion]] = []
    drawn: dict[int, Completion] = {}
    batches = 0
    if (left := recorder.restore()) is not None:
        finished = [list(drawn_from(each).values()) for each in left["finished"]]
        drawn, batches = drawn_from(left["drawn"]), left["batches"]

    def state() -> State:
        return {
            "finished": [drawn_state(dict(enumerate(each))) for each in finished],
            "drawn": drawn_state(drawn),
            "batches": batches,
        }

    def on_progress(step: int, steps: int) -> None:
        nonlocal batches
        batches += 1
        before = sum(map(len, finished))
        recorder.advance(before + step * len(rows) // steps, sum(len(each.turns) for each in scripts))
        recorder.checkpoint(batches, state)

    for number, (turn, temperature, rows) in enumerate(_draws(scripts)):
        if number == len(finished):
            prompts = [scripts[i].prompt(answers[i], sampling.end_token) for i in rows]
            for i, prompt in zip(rows, prompts, strict=True):
                _must_fit(scripts[i].id, turn, len(prompt), sampling.max_response_tokens, positions)
            first = turn == 0 and temperature == sampling.temperature
            own = seed if first else _seed(seed, turn, temperature)
            finished.append(draw(prompts, replace(sampling, temperature=temperature), own, on_progress, drawn))
            drawn.clear()
        for i, completion in zip(rows, finished[number], strict=True):
            answers[i].append(completion)
    return answers


def _draws(scripts: Sequence[Script]) -> Iterator[tuple[int, float, list[int]]]:
    """What is drawn together, in this order: a turn, a temperature, and the questions that have both."""
    for turn in range(max(len(each.turns) for each in scripts)):
        asked = [i for i, each in enumerate(scripts) if turn < len(each.turns)]
        for temperature in dict.fromkeys(scripts[i].temperature for i in asked):
            yield turn, temperature, [i for i in asked if scripts[i].temperature == temperature]


def _must_fit(question: str, turn: int, prompt: int, response: int, positions: int) -> None:
    if prompt + response > positions:
        raise UsageError(
            f"question {question}: before turn {turn + 1} the conversation has {prompt} tokens, which with "
            f"max_response_tokens={response} are more than the model's {positions} positions; "
            "lower max_response_tokens"
        )


def _seed(seed: int, turn: int, temperature: float) -> int:
    """Another seed for every other draw, so that no two share their random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {turn} {temperature}".encode()).digest()[:6])
