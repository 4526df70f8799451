from dpr_core.config.data import AdditionsConfig, FileSourceConfig, LabSourceConfig
from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.diagnostics.measure import training_questions
from dpr_core.lab import programs
from dpr_core.models.dense_reward import GivenText

TASK = AdditionsConfig(operations=3, evaluation_share=0.3)
TEXTS = [GivenText("one?", "1", "be brief"), GivenText("two?", "2"), GivenText("three?", "3")]


def test_the_lab_asks_training_prompts_that_can_be_checked() -> None:
    questions, is_right = training_questions(LabSourceConfig(task=TASK), TEXTS, 5, seed=3)
    drawn = programs.draw_problems(TASK, "train", 5, 3)
    assert [(q.prompt, q.reference) for q in questions] == [(p.prompt, str(p.result)) for p in drawn]
    assert is_right(questions[0], f"The answer is {questions[0].reference}.") is True
    held_out = programs.draw_problems(TASK, LabBenchmarkConfig(task=TASK).split, 20, 0)
    assert {q.prompt for q in questions}.isdisjoint(p.prompt for p in held_out)


def test_other_sources_ask_what_was_demonstrated_and_know_no_result() -> None:
    questions, is_right = training_questions(FileSourceConfig(path="rows.jsonl"), TEXTS, 2, seed=3)
    assert is_right(questions[0], "The answer is 1.") is None
    assert [(q.prompt, q.system, q.reference) for q in questions] == [("one?", "be brief", None), ("two?", "", None)]


def test_results_are_those_that_demonstrations_have_or_announce() -> None:
    texts = [
        GivenText("2 + 2?", "2 + 2 = 4. The answer is 4."),
        GivenText("3 * 1000?", "Many.\n#### 3,000"),
        GivenText("The capital?", "It is Paris.", answer="Paris"),
        GivenText("A third?", "Some.", answer="0.3333"),
        GivenText("Why?", "The answer is that nobody knows for sure."),
        GivenText("x?", "x = 5"),
    ]
    questions, is_right = training_questions(FileSourceConfig(path="rows.jsonl"), texts, 6, seed=3, stated_results=True)
    assert [q.reference for q in questions] == ["4", "3,000", "Paris", "0.3333", None, None]
    answers = ["so 1 + 3 = 4", "The answer is 3000.0.", "The answer is paris.", "The answer is 1/3.", "5", "5"]
    found = [is_right(question, answer) for question, answer in zip(questions, answers, strict=True)]
    assert found == [True, True, True, True, None, None]
    assert is_right(questions[2], "The answer is London.") is False
