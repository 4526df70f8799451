import re

from dpr_core.config.data import AdditionsConfig, ShellGameConfig
from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.questions import is_right

CONFIG = LabBenchmarkConfig(task=AdditionsConfig(modulus=5, operations=4), prompts=30, prompt_seed=3)


def test_references_are_the_sums_of_the_numbers_in_the_prompts() -> None:
    for question in benchmarks.load(CONFIG):
        numbers = [int(number) for number in re.findall(r"\d+", question.prompt)]
        assert len(numbers) == 5
        assert question.reference == str(sum(numbers) % 5)


def test_references_of_the_other_task_are_where_the_ball_ends() -> None:
    for question in benchmarks.load(LabBenchmarkConfig(task=ShellGameConfig(cups=3, swaps=5), prompts=30)):
        ball, *cups = re.findall(r"\d", question.prompt)
        for a, b in zip(cups[::2], cups[1::2], strict=True):
            ball = {a: b, b: a}.get(ball, ball)
        assert question.reference == ball


def test_the_same_settings_ask_the_same_questions() -> None:
    questions = benchmarks.load(CONFIG)
    assert questions == benchmarks.load(CONFIG)
    assert len({question.id for question in questions}) == 30
    other = CONFIG.model_copy(update={"prompt_seed": 4})
    assert {question.id for question in questions} != {question.id for question in benchmarks.load(other)}


def test_an_answer_is_right_where_it_states_the_result() -> None:
    question = benchmarks.load(CONFIG)[0]
    assert question.reference is not None
    wrong = (int(question.reference) + 1) % 5
    read_result = benchmarks.result_reader(CONFIG)
    assert is_right(question, f"The answer is {question.reference}.", read_result) is True
    assert is_right(question, f"The answer is {wrong}.", read_result) is False
    assert is_right(question, "I do not know", read_result) is False


def test_what_is_tuned_on_training_prompts_never_sees_the_held_out_ones() -> None:
    training = CONFIG.model_copy(update={"split": "train", "prompts": 200})
    held_out = CONFIG.model_copy(update={"prompts": 20})
    assert not {q.id for q in benchmarks.load(training)} & {q.id for q in benchmarks.load(held_out)}
