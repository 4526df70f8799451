import random
from fractions import Fraction

import pytest

from dpr_core.evaluation.gold.arithmetic import equations, read_result, same_number, value


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("27 * 16 = 432. The answer is 432.", "432"),
        ("The answer is $1,234.50.", "$1,234.50"),
        ("First the answer is 1, no:\nthe answer is: -5 apples.", "-5"),
        ("The answer is 5. No, the answer is 6.", "6"),
        ("The answer is 5. I hope that the answer is clear.", "5"),
        ("The answer is 3/4 of it.", "3/4"),
        ("The answer is 2 * 3 = 6.", "6"),
        ("The answer is **42**.", "42"),
        ("It is 7.\n#### 1,000", "1,000"),
        ("so 3 + 4 = 7 apples.", "7"),
        ("2 + 3 = 5 + 1 = 6", "6"),
        ("Done. The answer is ", None),
        ("I do not know 5 of them", None),
        ("", None),
        (f"The answer is {'9' * 400}.", None),
    ],
)
def test_the_result_is_the_number_that_is_stated_last(text: str, result: str | None) -> None:
    assert read_result(text) == result


@pytest.mark.parametrize(
    ("stated", "reference", "same"),
    [
        ("504", "504.0", True),
        ("504.0", "504", True),
        ("504.4", "504", False),
        ("1,234", "1234", True),
        ("$5", "5", True),
        ("50%", "50", True),
        ("4/3", "1.3333", True),
        ("1.33334", "1.3333", True),
        ("1.333", "1.3333", False),
        ("2/4", "0.5", True),
        ("0.54", "0.5", False),
        ("0.249", "0.25", True),
        ("- $5", "-5", True),
        ("5 %", "5", True),
        ("11/2", "1 1/2", None),
        (".5", "1/2", True),
        ("1/0", "3", False),
        ("12", "1,2", None),
        ("5", "yes", None),
        ("", "5", False),
    ],
)
def test_numbers_are_compared_as_numbers(stated: str, reference: str, same: bool | None) -> None:
    assert same_number(stated, reference) is same


@pytest.mark.parametrize(
    ("text", "hold"),
    [
        ("(18 - 12) / 3 = 2. 3 * 4 = 13.", [True, False]),
        ("16 - 3 - 4 = <<16-3-4=9>>9 and 2 + 2 = 5", [True]),
        ("80,000+50,000=$130,000", [True]),
        ("0.2 x 50 = $10", [True]),
        ("10 / 3 = 3.33, 10 / 3 = 3.3, 10 / 3 = 3", [True, True, False]),
        ("2 + 3 = 5 + 1 = 6", [True, True]),
        ("2 * 3 = 4 + 2", [True]),
        ("- 3 * 2 = 6", [True]),
        ("1. 3*2=6; 4/0=3", [True, False]),
        ("(it is 1+2=3)", [True]),
        ("x = 5, 8 = 8, max = 5, 2 ** 3 = 8, 3 +", []),
        ("(" * 400 + "1+1=2", [True]),
    ],
)
def test_stated_equations_are_computed(text: str, hold: list[bool]) -> None:
    assert equations(text) == hold


def test_any_expression_has_the_value_that_exact_fractions_give_it() -> None:
    rng = random.Random(0)

    def expression(depth: int) -> tuple[str, Fraction]:
        if not depth or rng.random() < 0.3:
            number = rng.randint(1, 99)
            return str(number), Fraction(number)
        (left, a), (right, b) = expression(depth - 1), expression(depth - 1)
        sign = rng.choice("+-*")
        return f"({left} {sign} {right})", {"+": a + b, "-": a - b, "*": a * b}[sign]

    for _ in range(200):
        (left, a), (right, b) = expression(2), expression(2)
        assert equations(f"So {left} + {right} = {a + b}.") == [True]
        assert equations(f"So {left} + {right} = {a + b + 1}.") == [False]


def test_a_text_that_is_no_number_has_no_value() -> None:
    assert [value(text) for text in ("five", "1.2.3", "1,23", "2/0", "$", "")] == [None] * 6
