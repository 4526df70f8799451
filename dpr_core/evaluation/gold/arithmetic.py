"""Exact match of numbers, and the arithmetic of written equations: `$1,234`, `504.0`, `3/4`, `(18 - 12) / 3 = 2`."""

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from operator import add, mul, sub, truediv

LONGEST = 300
"""Characters of an equation's left side, and of a number; nobody writes longer ones."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_UNSIGNED = rf"\$?\s?(?:{_DIGITS})"
NUMBER = re.compile(rf"(?<![\w.])-?\s?{_UNSIGNED}(?:\s?/\s?(?:{_DIGITS}))?")

_STATED = re.compile(r"answer\s+is\b((?:(?!answer\s+is\b)[^\n])*)", re.IGNORECASE)
_FINAL = re.compile(r"####([^\n]*)")
_ANNOTATED = re.compile(r"<<([^<>\n]*)>>")
_ENDS_A_SENTENCE = re.compile(r"[.,;:!?]\s")
_LIST_MARK = re.compile(r"^[-+*]\s+")
_OPERAND = re.compile(_UNSIGNED)
_TIMES, _OVER, _MINUS = "\u00d7", "\u00f7", "\u2212"
_RIGHT_SIDE = re.compile(rf"\s*((?>-?\s?{_UNSIGNED}))(?:\s?[-+*/{_TIMES}{_OVER}{_MINUS}]\s?(?>{_UNSIGNED}))*")
_WRITTEN_BEFORE = frozenset(f"0123456789.,$()+-*/{_TIMES}{_OVER}{_MINUS}x \t")
_AS_PYTHON = str.maketrans({_TIMES: "*", "x": "*", _OVER: "/", _MINUS: "-"})
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
}


def read_result(text: str) -> str | None:
    """The number that an answer states: after its last `####` or "answer is", else after its last equals sign."""
    found = next((number for line in announced(text) if (number := first_number(line)) is not None), None)
    return first_number(text.rpartition("=")[2]) if found is None and "=" in text else found


def announced(text: str) -> list[str]:
    """What follows `####`, then what follows "answer is", to the next one or the line's end, the last first."""
    return [line for pattern in (_FINAL, _STATED) for line in reversed(pattern.findall(text))]


def first_number(text: str) -> str | None:
    """Of an equation that stands there, its right side."""
    before, equals, after = first_sentence(text).rpartition("=")
    found = NUMBER.search(after if equals else before or after)
    return found.group().strip() if found and len(found.group()) <= LONGEST else None


def first_sentence(text: str) -> str:
    """A text up to the first mark that a space follows."""
    plain = text.lstrip(" :*")
    found = _ENDS_A_SENTENCE.search(plain)
    return plain[: found.start()] if found else plain


def value(text: str) -> Fraction | None:
    """The number that a text is, if it is one."""
    plain = text.strip().removesuffix("%").rstrip()
    if len(plain) > LONGEST or not NUMBER.fullmatch(plain):
        return None
    numerator, _, denominator = re.sub(r"[\s$,]", "", plain).partition("/")
    below = Fraction(denominator or 1)
    return Fraction(numerator) / below if below else None


def same_number(stated: str, reference: str) -> bool | None:
    """Whether a stated number is the reference; where that has two decimals or more, to as many: it may be rounded.
    None where the reference is no number."""
    right, found = value(reference), value(stated)
    if right is None:
        return None
    return found is not None and abs(found - right) <= _rounding(reference, right, least=2)


def _rounding(text: str, number: Fraction, least: int = 1) -> Fraction:
    """Half a unit of the last decimal; a whole number, however it is written, is not rounded, nor what has fewer
    decimals."""
    decimals = 0 if number.denominator == 1 or "/" in text else len(text.strip(" %").partition(".")[2])
    return Fraction(1, 2 * 10**decimals) if decimals >= least else Fraction(0)


def equations(text: str) -> list[bool]:
    """Of every stated `a op b = c`, whether it holds. Where there are annotations `<<a*b=c>>`, of these alone."""
    written = _ANNOTATED.findall(text) or [text]
    return [holds for part in written for at in _places(part, "=") if (holds := _holds(part, at)) is not None]


def _places(text: str, character: str) -> list[int]:
    return [place for place, each in enumerate(text) if each == character]


def _holds(text: str, equals: int) -> bool | None:
    """Whether the equation around an equals sign holds; None where there is no arithmetic before it or number after."""
    right = _RIGHT_SIDE.match(text[equals + 1 : equals + 1 + LONGEST])
    if right is None or (stated := value(right.group(1))) is None:
        return None
    start = equals
    while start and equals - start < LONGEST and text[start - 1] in _WRITTEN_BEFORE:
        start -= 1
    left = _ENDS_A_SENTENCE.split(text[start:equals])[-1].strip(" .,")
    try:
        computed = _computed(_LIST_MARK.sub("", left))
        if computed is None:
            return None
        # As in `2 * 3 = 4 + 2`; in `2 + 3 = 5 + 1 = 6` the number alone is meant.
        return abs(computed - stated) <= _rounding(right.group(1), stated) or computed == _computed(right.group())
    except ZeroDivisionError:
        return False


def _computed(left: str) -> Fraction | None:
    """The value of a sum, difference, product or quotient; None for what is none."""
    numbers: list[Fraction] = []

    def named(found: re.Match[str]) -> str:
        number = value(found.group())
        numbers.append(Fraction(0) if number is None else number)
        return f" n{len(numbers) - 1} "

    code = _OPERAND.sub(named, left.translate(_AS_PYTHON)).strip()
    while code:
        try:
            body = ast.parse(code, mode="eval").body
            return _evaluated(body, numbers) if isinstance(body, ast.BinOp) else None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            # A parenthesis that opens around more than the equation, or the dash of a list.
            if code[0] not in "(*/+- ":
                return None
            code = code[1:].strip()
    return None


def _evaluated(node: ast.expr, numbers: list[Fraction]) -> Fraction:
    if isinstance(node, ast.Name):
        return numbers[int(node.id[1:])]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand, numbers)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluated(node.left, numbers), _evaluated(node.right, numbers))
    raise ValueError("not one of the four operations")
