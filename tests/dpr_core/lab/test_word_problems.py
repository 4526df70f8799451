import hashlib
import random
import re
from collections import Counter
from fractions import Fraction

import pytest

from dpr_core.config.base import parse
from dpr_core.config.data import LabSourceConfig, LabWordProblemsConfig
from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.lab import word_problems
from dpr_core.lab.programs import demonstrations, draw_problems, read_result, split_of
from dpr_core.lab.word_problems import NOUNS, TEMPLATES, WordProblem, written

TASK = LabWordProblemsConfig()
SAMPLE = [written(template, random.Random(seed)) for template in TEMPLATES for seed in range(40)]
KNOWN = {2: "half|all around|two|cows and", 3: "three", 4: "cows", 7: "week", 12: "dozen", 60: "hours"}
"""Numbers that a solution may use without their standing in the text, each with the word that it comes from."""


def stated(answer: str) -> list[tuple[int, str, int, int]]:
    """The equations of an answer."""
    found = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", answer)
    return [(int(left), operator, int(right), int(result)) for left, operator, right, result in found]


def computed(left: int, operator: str, right: int) -> Fraction:
    a, b = Fraction(left), Fraction(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]


def test_every_answer_is_worked_out_from_the_numbers_of_its_question() -> None:
    for problem in SAMPLE:
        available = [int(number) for number in re.findall(r"\d+", problem.prompt)]
        answer = problem.answer("careful", False, random.Random(0))
        for left, operator, right, result in stated(answer):
            assert computed(left, operator, right) == result > 0, answer
            for operand in (left, right):
                assert operand in available or re.search(KNOWN[operand], problem.prompt), (problem.prompt, answer)
            available.append(result)
        assert re.fullmatch(r"(\d+ [-+*/] \d+ = \d+\. )+The answer is \d+\.", answer)
        assert read_result(answer) == str(stated(answer)[-1][3]) == str(problem.result)


def test_what_is_written_changes_with_the_edition_alone() -> None:
    digest = hashlib.sha256()
    for problem in SAMPLE:
        answers = [problem.answer("careful", slip, random.Random(0)) for slip in (False, True)]
        digest.update("\n".join([problem.id, problem.prompt, *answers]).encode())
    found = (TASK.grammar, digest.hexdigest()[:16])
    assert found == (1, "072cd8c39115b699"), "other problems are another LabWordProblemsConfig.grammar, for their keys"


def test_a_slip_is_one_wrong_equation_carried_forward_to_a_wrong_result() -> None:
    for number, problem in enumerate(SAMPLE):
        careful = stated(problem.answer("careful", False, random.Random(0)))
        answer = problem.answer("careful", True, random.Random(number))
        equations = stated(answer)
        assert [operator for _, operator, _, _ in equations] == [operator for _, operator, _, _ in careful]
        assert sum(computed(left, operator, right) != result for left, operator, right, result in equations) == 1
        assert read_result(answer) == str(equations[-1][3]) != str(problem.result)
        assert min(result for *_, result in equations) > 0
        assert read_result(problem.answer("bare", True, random.Random(number))) != str(problem.result)


def test_the_other_styles_show_a_part_of_the_equations_or_none() -> None:
    for problem in SAMPLE:
        careful = problem.answer("careful", False, random.Random(0))
        assert problem.answer("bare", False, random.Random(0)) == f"The answer is {problem.result}."
        jump = problem.answer("jump", False, random.Random(0))
        assert jump.endswith(f"The answer is {problem.result}.")
        assert len(stated(jump)) < len(stated(careful))
        assert careful.startswith(jump.partition("The answer")[0])


def test_a_template_is_demonstrated_or_asked_and_never_both() -> None:
    rows = list(demonstrations(LabSourceConfig(task=TASK, rows=3000, slips=0), seed=0))
    asked = [p for seed in range(3) for p in draw_problems(TASK, "evaluation", 400, seed)]
    assert len({prompt for _, prompt, _ in rows}) == len({id for id, *_ in rows}) == 3000
    # The name of a template is all of an id but its numbers.
    demonstrated = {re.sub(r"[ \d]+$", "", id) for id, *_ in rows}
    held_out = {p.split_by for p in asked}
    assert demonstrated | held_out == {template.name for template in TEMPLATES}
    assert not demonstrated & held_out


def test_there_are_many_templates_and_each_split_has_all_operations_and_lengths() -> None:
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES) >= 60
    for split in ("train", "evaluation"):
        kinds = Counter[tuple[str, object]]()
        for problem in {p.template: p for p in SAMPLE if split_of(p, TASK) == split}.values():
            kinds["steps", len(problem.solution)] += 1
            kinds.update({("operator", step.operator) for step in problem.solution})
        assert set(kinds) == {("steps", n) for n in (1, 2, 3)} | {("operator", o) for o in "+-*/"}
        assert min(kinds.values()) >= 2


def test_some_questions_have_a_number_that_is_not_needed() -> None:
    def spare(problem: WordProblem) -> bool:
        used = {number for left, _, right, _ in stated(problem.answer("careful", False, random.Random(0)))
                for number in (left, right)}  # fmt: skip
        return any(int(number) not in used for number in re.findall(r"\d+", problem.prompt))

    assert len({problem.template for problem in SAMPLE if spare(problem)}) >= 8


def test_questions_are_english() -> None:
    plurals = {plural for _, _, nouns in NOUNS for _, plural in nouns}
    singulars = {singular for _, _, nouns in NOUNS for singular, _ in nouns} - plurals
    for problem in SAMPLE:
        text = problem.prompt
        assert not re.search(r"[{}\[\]|]|  | [.,?]", text), text
        assert text[0].isupper() or text[0].isdigit(), text
        assert text[-1] in "?.", text
        assert all(sentence[0].isupper() or sentence[0].isdigit() for sentence in re.split(r"(?<=[.?]) ", text)), text
        # Every count is 2 or more, and what follows it is in the plural.
        assert min(map(int, re.findall(r"\d+", text))) >= 2, text
        for noun in re.findall(r"\d+ ([a-z]+(?: [a-z]+)?)", text):
            assert noun not in singulars
            assert noun.split()[0] not in singulars - {"toy", "tennis", "baseball", "bread"}, text
        # Of one thing, after "a", a singular that does not begin with a vowel.
        assert not re.search(r"\b[Aa] [aeiou]", text), text
        for noun in re.findall(r"\b[Aa]n? ([a-z]+)\b", text):
            assert noun not in plurals, text


@pytest.mark.parametrize("nouns", [nouns for _, _, nouns in NOUNS])
def test_plurals_are_sane(nouns: list[tuple[str, str]]) -> None:
    for singular, plural in nouns:
        if singular.endswith(("s", "x", "sh", "ch", "o")) and singular not in ("piano",):
            assert plural == f"{singular}es"
        elif re.search(r"[^aeiou]y$", singular):
            assert plural == f"{singular[:-1]}ies"
        elif singular.endswith(("fe", "f")) and not singular.endswith("ff"):
            assert plural == re.sub(r"fe?$", "ves", singular)
        else:
            assert plural in (f"{singular}s", {"goose": "geese", "sheep": "sheep", "calf": "calves"}.get(singular))


def test_a_person_keeps_one_name_and_one_set_of_pronouns() -> None:
    for problem in SAMPLE:
        assert not (
            re.search(r"\b([Hh]e|his|him)\b", problem.prompt) and re.search(r"\b([Ss]he|her)\b", problem.prompt)
        )


def test_as_a_benchmark_its_results_can_be_checked() -> None:
    config = LabBenchmarkConfig(task=TASK, prompts=50)
    questions = benchmarks.load(config)
    assert questions == benchmarks.load(config)
    is_right = benchmarks.checker(config)
    for question, problem in zip(questions, draw_problems(TASK, "evaluation", 50, 0), strict=True):
        assert is_right(question, problem.answer("careful", False, random.Random(0)))
        assert not is_right(question, problem.answer("careful", True, random.Random(0)))


def test_a_backbone_of_the_lab_is_too_small_for_it() -> None:
    with pytest.raises(UsageError, match=r"backbone: task: .*cannot read word problems; take a pretrained backbone"):
        parse(LabBackboneConfig, {"task": {"type": "word_problems"}}, "backbone")


def test_numbers_that_can_never_fit_are_a_mistake_of_the_template() -> None:
    impossible = word_problems._template("none", "{x} and {y}?", "x - y", x=(2, 5), y=(7, 9))
    with pytest.raises(AssertionError, match="no numbers fit the template none"):
        written(impossible, random.Random(0))
