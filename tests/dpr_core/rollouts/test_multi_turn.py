from collections.abc import Sequence
from typing import Any

import pytest

from dpr_core.config.data import TemplateConfig
from dpr_core.data.template import TextRenderer
from dpr_core.errors import UsageError
from dpr_core.evaluation.questions import Question
from dpr_core.lab.backbone import build_tokenizer
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Completion, OnProgress, Sampling
from dpr_core.rollouts.multi_turn import Conversation, answer_questions, tokenize_question

END = 0
SAMPLING = Sampling(0.7, 3, END)


class Echo:
    """Answers with the last token of the prompt, and an end token unless that is odd; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[tuple[int, ...]], float, int]] = []

    def __call__(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: OnProgress,
        drawn: dict[int, Completion],
    ) -> list[Completion]:
        self.asked.append((list(prompts), sampling.temperature, seed))
        on_progress(len(prompts), len(prompts))
        answers = [(p[-1],) if p[-1] % 2 else (p[-1], END) for p in prompts]
        return [Completion(p, a, (0.0,) * len(a)) for p, a in zip(prompts, answers, strict=True)]


class Watching(InMemoryRecorder):
    def __init__(self) -> None:
        super().__init__()
        self.progress: list[tuple[int, int]] = []

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        self.progress.append((step, total))


def test_a_later_turn_follows_the_policys_own_answers_closed_by_one_end_token() -> None:
    scripts = [
        Conversation("even", ((1, 2), (3, 4), (5, 6)), 0.7),
        Conversation("cut", ((1, 7), (8, 8)), 0.7),
        Conversation("short", ((9,),), 0.7),
    ]
    draw, recorder = Echo(), Watching()
    answers = answer_questions(scripts, draw, SAMPLING, 5, 100, recorder)
    assert [asked[0] for asked in draw.asked] == [
        [(1, 2), (1, 7), (9,)],
        [(1, 2, 2, END, 3, 4), (1, 7, 7, END, 8, 8)],
        [(1, 2, 2, END, 3, 4, 4, END, 5, 6)],
    ]
    assert [[completion.response for completion in each] for each in answers] == [
        [(2, END), (4, END), (6, END)],
        [(7,), (8, END)],
        [(9,)],
    ]
    assert recorder.progress == [(3, 6), (5, 6), (6, 6)]


def test_questions_of_one_turn_are_drawn_as_ever_and_other_draws_have_seeds_of_their_own() -> None:
    scripts = [
        Conversation("a", ((2,), (4,)), 0.7),
        Conversation("b", ((6,), (8,)), 0.0),
        Conversation("c", ((2,),), 0.7),
    ]
    draw = Echo()
    answer_questions(scripts, draw, SAMPLING, 5, 100, InMemoryRecorder())
    assert [(len(prompts), temperature) for prompts, temperature, _ in draw.asked] == [
        (2, 0.7),
        (1, 0.0),
        (1, 0.7),
        (1, 0.0),
    ]
    seeds = [seed for _, _, seed in draw.asked]
    assert seeds[0] == 5
    assert len(set(seeds)) == 4
    again = Echo()
    answer_questions(scripts, again, SAMPLING, 5, 100, InMemoryRecorder())
    assert [seed for _, _, seed in again.asked] == seeds


def test_a_conversation_that_outgrows_the_model_is_an_error_that_names_the_question() -> None:
    scripts = [Conversation("fits", ((2,), (2,)), 0.7), Conversation("grows", ((2, 2), (2, 2)), 0.7)]
    with pytest.raises(UsageError, match=r"question grows: before turn 2 the conversation has 6 tokens.*8 positions"):
        answer_questions(scripts, Echo(), SAMPLING, 0, 8, InMemoryRecorder())


def test_the_ids_are_those_of_the_rendered_conversation() -> None:
    tokenizer = build_tokenizer("llama")
    renderer = TextRenderer(TemplateConfig(text="{system}U: {prompt}\nA: ", system="S: {system}\n"))
    question = Question("q", ("Hello {prompt}", "Again"), system="Be kind.")
    made = tokenize_question(tokenizer, renderer, question.id, question.turns, question.system, 0.7, 100)
    end = tokenizer.eos_token_id
    answer = tuple(tokenizer("Yes", add_special_tokens=False)["input_ids"])
    shown = made.prompt([Completion(made.turns[0], answer, (0.0,) * len(answer))], end)
    text = "S: Be kind.\nU: Hello {prompt}\nA: Yes<|end_of_text|>\n\nU: Again\nA: "
    assert tokenizer.decode(shown[1:]) == text
    assert shown[0] == tokenizer.bos_token_id
    assert shown.count(tokenizer.bos_token_id) == 1


def test_all_turns_of_a_question_count_for_its_length() -> None:
    tokenizer: Any = build_tokenizer("llama")
    question = Question("long", ("abc", "def"))
    renderer = TextRenderer(TemplateConfig(text="{system}{prompt}\n"))
    needed = (
        len(tokenize_question(tokenizer, renderer, question.id, question.turns, question.system, 0.7, 100).turns[0]) + 6
    )
    with pytest.raises(
        UsageError, match=f"question long has {needed} tokens, more than max_prompt_tokens={needed - 1}"
    ):
        tokenize_question(tokenizer, renderer, question.id, question.turns, question.system, 0.7, needed - 1)
    assert (
        tokenize_question(tokenizer, renderer, question.id, question.turns, question.system, 0.7, needed).temperature
        == 0.7
    )
