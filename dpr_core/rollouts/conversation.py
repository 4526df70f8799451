"""Questions of several turns: each later turn is asked after the policy's own answers to the earlier ones.

Token ids are kept end to end: what stands in front of a later answer is what the policy read and wrote before, token by
token, every answer closed by one end token, and then the next turn in the same template.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from dpr_core.benchmarks.base import Question
from dpr_core.data.encoding import encode_later_turn, encode_prompt
from dpr_core.data.rendering import Renderer
from dpr_core.errors import UsageError
from dpr_core.rollouts.engine import Completion, Progress, Sampling

Draw = Callable[[Sequence[tuple[int, ...]], Sampling, int, Progress], list[Completion]]
"""One completion a prompt: prompts, sampling, seed, progress."""


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
    tokenizer: PreTrainedTokenizerBase, renderer: Renderer, question: Question, temperature: float, max_tokens: int
) -> Script:
    """A question as token ids; UsageError where all its turns together have more than `max_tokens`."""
    first = encode_prompt(tokenizer, renderer.render(question.turns[0], question.system))
    later = [encode_later_turn(tokenizer, renderer.render_later(turn)) for turn in question.turns[1:]]
    turns = (first, *later)
    if (count := sum(map(len, turns))) > max_tokens:
        raise UsageError(f"question {question.id} has {count} tokens, more than max_prompt_tokens={max_tokens}")
    return Script(question.id, turns, temperature)


def converse(
    scripts: Sequence[Script], draw: Draw, sampling: Sampling, seed: int, positions: int, on_progress: Progress
) -> list[list[Completion]]:
    """The answers to every turn of every question, in the order of the questions.

    Questions of one turn and temperature are drawn together. UsageError where a conversation outgrows the model's
    `positions`.
    """
    answers: list[list[Completion]] = [[] for _ in scripts]
    total, done = sum(len(each.turns) for each in scripts), 0
    for turn in range(max(len(each.turns) for each in scripts)):
        asked = [i for i, each in enumerate(scripts) if turn < len(each.turns)]
        for temperature in dict.fromkeys(scripts[i].temperature for i in asked):
            rows = [i for i in asked if scripts[i].temperature == temperature]
            prompts = [scripts[i].prompt(answers[i], sampling.end_token) for i in rows]
            for i, prompt in zip(rows, prompts, strict=True):
                _must_fit(scripts[i].id, turn, len(prompt), sampling.max_response_tokens, positions)
            drawn = draw(
                prompts,
                replace(sampling, temperature=temperature),
                seed if turn == 0 and temperature == sampling.temperature else _seed(seed, turn, temperature),
                _share(on_progress, done, len(rows), total),
            )
            for i, completion in zip(rows, drawn, strict=True):
                answers[i].append(completion)
            done += len(rows)
    return answers


def _must_fit(question: str, turn: int, prompt: int, response: int, positions: int) -> None:
    if prompt + response > positions:
        raise UsageError(
            f"question {question}: before turn {turn + 1} the conversation has {prompt} tokens, which with "
            f"max_response_tokens={response} are more than the model's {positions} positions; "
            "lower max_response_tokens"
        )


def _share(on_progress: Progress, before: int, count: int, total: int) -> Progress:
    """The progress of one of several draws, as progress of all."""
    return lambda step, steps: on_progress(before + step * count // steps, total)


def _seed(seed: int, turn: int, temperature: float) -> int:
    """Another seed for every other draw, so that no two share their random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {turn} {temperature}".encode()).digest()[:6])
