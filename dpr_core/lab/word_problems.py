"""A grammar of arithmetic word problems: templates with people, objects, units and numbers, each with its solution.

A text has `{slots}` for words and numbers and `[one|another]` for wordings. A solution is a short program over the
numbers, `all = x * y; all + z`, and an answer writes it out: `3 * 4 = 12. 12 + 5 = 17. The answer is 17.`
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dpr_core.config.data import LabWordProblemsConfig
from dpr_core.lab import Style

MOST_TRIES = 10_000
"""Draws of numbers for one problem; a template whose numbers hardly ever fit is a mistake in it."""

LARGEST_SLIP = 9


class Step(NamedTuple):
    """One operation of a solution; an operand is a whole number, a number of the text, or the name of a result."""

    name: str
    left: str
    operator: str
    right: str


@dataclass(frozen=True)
class Template:
    """A story with a question, and how it is answered."""

    name: str
    text: str
    solution: tuple[Step, ...]
    numbers: Mapping[str, tuple[int, int] | Step]
    """From least to most, or worked out from those before it."""


class Equation(NamedTuple):
    """A step with numbers."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}."


@dataclass(frozen=True)
class WordProblem:
    """A question, and all that is needed to answer it."""

    id: str
    """The template and the numbers; the same numbers are the same problem, whoever it is about."""

    template: str
    prompt: str
    solution: tuple[Step, ...]
    numbers: Mapping[str, int]

    @property
    def split_by(self) -> str:
        """A template is demonstrated or asked, never both."""
        return self.template

    @property
    def result(self) -> int:
        return self.equations()[-1].result

    def equations(self) -> list[Equation]:
        """The solution with its numbers."""
        return _solved(self.solution, self.numbers)

    def answer(self, style: Style, slip: bool, rng: random.Random) -> str:
        """A written answer; a slip is one equation with a wrong result, with which the others go on."""
        equations = self.equations()
        part_way = rng.randint(1, len(equations) - 1) if len(equations) > 1 else 0
        shown = {"careful": len(equations), "jump": part_way, "bare": 0}[style]
        if slip:
            equations = self._slipped(rng.randrange(max(shown, 1)), rng)
        steps = "".join(f"{equation} " for equation in equations[:shown])
        return f"{steps}The answer is {equations[-1].result}."

    def _slipped(self, wrong: int, rng: random.Random) -> list[Equation]:
        right = self.equations()
        errors = [error for error in range(-LARGEST_SLIP, LARGEST_SLIP + 1) if error]
        # Where no wrong result can be carried on in whole numbers, the last one is wrong.
        for step in (wrong, len(right) - 1):
            for error in rng.sample(errors, len(errors)):
                equations = _solved(self.solution, self.numbers, {step: error})
                if _fit(equations) and equations[-1].result != right[-1].result:
                    return equations
        raise AssertionError(f"no wrong answer can be made of {self.id}")


def _solved(
    solution: tuple[Step, ...], numbers: Mapping[str, int], errors: Mapping[int, int] | None = None
) -> list[Equation]:
    """Every step as an equation, some results off by an error; a division that leaves a rest gives 0."""
    known = dict(numbers)
    equations = []
    for i, step in enumerate(solution):
        left, right = (known[o] if o in known else int(o) for o in (step.left, step.right))
        result = _computed(left, step.operator, right) + (errors or {}).get(i, 0)
        known[step.name] = result
        equations.append(Equation(left, step.operator, right, result))
    return equations


def _computed(left: int, operator: str, right: int) -> int:
    if operator == "/":
        return left // right if right > 0 and left % right == 0 else 0
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _fit(equations: list[Equation]) -> bool:
    return all(equation.result > 0 for equation in equations)


def draw_word_problem(task: LabWordProblemsConfig, rng: random.Random) -> WordProblem:
    """A random problem of a random template."""
    return written(rng.choice(TEMPLATES), rng)


def written(template: Template, rng: random.Random) -> WordProblem:
    """A template with words and numbers, such that every step gives a whole number above 0."""
    text = re.sub(r"\[([^\]]*)\]", lambda choices: rng.choice(choices[1].split("|")), template.text)
    words = _words(rng)
    for _ in range(MOST_TRIES):
        numbers: dict[str, int] = {}
        for name, drawn in template.numbers.items():
            numbers[name] = rng.randint(*drawn) if not isinstance(drawn, Step) else _solved((drawn,), numbers)[0].result
        if min(numbers.values()) > 1 and _fit(_solved(template.solution, numbers)):
            break
    else:
        raise AssertionError(f"no numbers fit the template {template.name}")
    shown = [str(number) for name, number in numbers.items() if f"{{{name}}}" in text]
    prompt = text.format_map(words | {name: str(number) for name, number in numbers.items()})
    return WordProblem(" ".join([template.name, *shown]), template.name, prompt, template.solution, numbers)


def _words(rng: random.Random) -> dict[str, str]:
    """A word for every slot: the first person's pronouns are `he`, `him` and `his`, whoever it is."""
    people = rng.sample(PEOPLE, 3)
    words = {slot: name for slot, (name, _) in zip("ABC", people, strict=True)}
    words |= dict(zip(("he", "him", "his"), PRONOUNS[people[0][1]], strict=True))
    words["He"] = words["he"].capitalize()
    for singular, plural, nouns in NOUNS:
        words[singular], words[plural] = rng.choice(nouns)
    words["place"] = rng.choice(PLACES)
    return words


PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}

PEOPLE = [
    *((name, "she") for name in ("Ada", "Bea", "Carla", "Dana", "Elif", "Farah", "Grete", "Hana", "Ines", "Joan")),
    *((name, "she") for name in ("Kaya", "Lena", "Mei", "Nora", "Olga", "Priya", "Rosa", "Sofia", "Tara", "Wanda")),
    *((name, "he") for name in ("Adam", "Ben", "Carlos", "David", "Emil", "Finn", "Goran", "Hugo", "Ivan", "Jonas")),
    *((name, "he") for name in ("Kofi", "Liam", "Marco", "Nils", "Omar", "Pavel", "Ravi", "Simon", "Tom", "Victor")),
]

PLACES = [
    "the lake",
    "the castle",
    "the airport",
    "the coast",
    "the border",
    "the harbor",
    "the old mill",
    "the museum",
]


def _nouns(listed: str) -> list[tuple[str, str]]:
    """Singular and plural of each noun; one without a slash takes an s."""
    pairs = (noun.split("/") for noun in listed.split(", "))
    return [(pair[0], pair[-1] if len(pair) > 1 else f"{pair[0]}s") for pair in pairs]


THINGS = _nouns(
    "pencil, marble, sticker, coin, button, seashell, bead, postcard, stamp, pebble, ribbon, key, badge, toy car, "
    "candle, paintbrush/paintbrushes, leaf/leaves, balloon, magnet, feather, baseball card, crayon"
)
FOODS = _nouns(
    "cookie, muffin, plum, pear, peach/peaches, cherry/cherries, strawberry/strawberries, tomato/tomatoes, lemon, "
    "pancake, sandwich/sandwiches, potato/potatoes, carrot, walnut, bread roll, grape"
)
GOODS = _nouns(
    "notebook, mug, scarf/scarves, hairbrush/hairbrushes, cap, lamp, plate, towel, book, puzzle, tennis ball, bowl, "
    "blanket, flashlight, ticket, toy train, knife/knives, plant"
)
BOXES = _nouns("box/boxes, bag, basket, jar, crate, drawer, bucket, tin, pouch/pouches")
ANIMALS = _nouns("cow, goat, goose/geese, sheep/sheep, horse, rabbit, duck, pony/ponies, calf/calves")
BIRDS = _nouns("sparrow, crow, swallow, pigeon, finch/finches, parrot, gull, thrush/thrushes")
PARTS = _nouns("screw, bottle, brick, toy, bulb, spring, lock, shelf/shelves, battery/batteries, tile")

NOUNS = [
    ("thing", "things", THINGS),
    ("food", "foods", FOODS),
    ("good", "goods", GOODS),
    ("box", "boxes", BOXES),
    ("animal", "animals", ANIMALS),
    ("bird", "birds", BIRDS),
    ("part", "parts", PARTS),
]
"""Slots of the singular and of the plural. Every number of things in a text is at least 2."""


def _steps(program: str) -> tuple[Step, ...]:
    found = []
    for line in program.split("; "):
        *name, left, operator, right = line.replace(" = ", " ").split()
        found.append(Step(name[0] if name else "", left, operator, right))
    return tuple(found)


def _template(name: str, text: str, solution: str, **numbers: tuple[int, int] | str) -> Template:
    drawn = {slot: _steps(given)[0] if isinstance(given, str) else given for slot, given in numbers.items()}
    return Template(name, text, _steps(solution), drawn)


FEW = (2, 9)
SOME = (3, 24)
MANY = (12, 90)

TEMPLATES = (
    # One addition.
    _template(
        "given more",
        "{A} has {x} {things}. {B} [gives {him}|hands {him}|lets {him} have] {y} more. "
        "[How many {things} does {A} have now?|How many {things} has {A} got after that?]",
        "x + y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "found by two",
        "[On a walk|During the holidays|This week], {A} found {x} {things} and {B} found {y}. "
        "How many {things} did they find [together|in all|altogether]?",
        "x + y",
        x=MANY,
        y=MANY,
    ),
    _template(
        "more than",
        "{A} has {x} {things}. {B} has {y} more {things} than {A}[| does]. How many {things} does {B} have?",
        "x + y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "fewer than somebody else",
        "{A} has {x} {things}, which is {y} fewer than {B} has. How many {things} does {B} have?",
        "x + y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "before giving away",
        "{A} gave {x} {things} [to {B}|away] and has {y} left. How many {things} did {he} have [at first|before that]?",
        "x + y",
        x=SOME,
        y=MANY,
    ),
    _template(
        "warmer",
        "In the morning it was {x} degrees [at|near] {place}. By noon it was {y} degrees warmer. "
        "How many degrees was it at noon?",
        "x + y",
        x=SOME,
        y=FEW,
    ),
    _template(
        "age later",
        "{A} is {x} years old[| and lives near {place}]. How old will {he} be in {y} years?",
        "x + y",
        x=(5, 60),
        y=SOME,
    ),
    _template(
        "pages of two days",
        "{A} read {x} pages of a book on [Monday|Friday] and {y} pages on the next day. [The book has {d} chapters. |]"
        "How many pages did {he} read in these two days?",
        "x + y",
        x=MANY,
        y=MANY,
        d=SOME,
    ),
    _template(
        "two colors",
        "There are {x} red and {y} [blue|green|yellow] {things} in a {box}. How many {things} are [in it|there]?",
        "x + y",
        x=MANY,
        y=MANY,
    ),
    _template(
        "arrivals",
        "{x} people were already waiting at {place} when a bus with {y} people arrived[| after {d} minutes]. "
        "How many people were there then?",
        "x + y",
        x=MANY,
        y=SOME,
        d=SOME,
    ),
    # One subtraction.
    _template(
        "eaten",
        "{A} had {x} {foods} and [ate|gave away|sold] {y} of them. How many {foods} [are left|remain]?",
        "x - y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "how many more",
        "{A} has {x} {things} and {B} has {y}. How many more {things} does {A} have than {B}?",
        "x - y",
        x=MANY,
        y=MANY,
    ),
    _template(
        "picked fewer",
        "{A} picked {x} {foods}. {B} picked {y} fewer than {A}. How many {foods} did {B} pick?",
        "x - y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "money missing",
        "{A} wants to buy a {good} for {x} dollars[, in a shop that is {d} kilometers away|]. {He} has {y} dollars. "
        "How many dollars [does {he} still need|are missing]?",
        "x - y",
        x=MANY,
        y=SOME,
        d=SOME,
    ),
    _template(
        "leaving the bus",
        "There were {x} [people|passengers] on a bus. At the next stop {y} got off. "
        "How many [people|passengers] stayed on the bus?",
        "x - y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "girls and boys",
        "A [school class|choir|sports club] has {x} children, and {y} of them are [girls. How many are boys?"
        "|boys. How many are girls?]",
        "x - y",
        x=MANY,
        y=MANY,
    ),
    _template(
        "way left",
        "From {A}'s house to {place} it is {x} kilometers. {A} has [driven|cycled|walked] {y} kilometers of the way. "
        "How many kilometers are left?",
        "x - y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "unknown gift",
        "{A} had {y} {things}. After {B} gave {him} some more, {he} had {x}. How many {things} did {B} give {him}?",
        "x - y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "rope cut",
        "A [rope|cable|ribbon] of {x} meters is cut into two pieces. One of them is {y} meters long. "
        "How many meters long is the other?",
        "x - y",
        x=MANY,
        y=SOME,
    ),
    _template(
        "younger",
        "{A} is {x} years old and {B} is {y} years younger. [They met {d} years ago. |]How old is {B}?",
        "x - y",
        x=MANY,
        y=SOME,
        d=FEW,
    ),
    # One multiplication.
    _template(
        "equal groups",
        "[There are {x} {boxes} on the table, with|{A} filled {x} {boxes} with] {y} {things} in each. "
        "How many {things} are [there in all|in the {boxes}]?",
        "x * y",
        x=FEW,
        y=SOME,
    ),
    _template(
        "price of several",
        "A {good} costs {x} dollars. How many dollars [do {y} {goods} cost|does {A} pay for {y} {goods}]?",
        "x * y",
        x=SOME,
        y=FEW,
    ),
    _template(
        "times as many",
        "{A} [has|owns|collected] {x} {things}. {B} has {y} times as many. How many {things} does {B} have?",
        "x * y",
        x=SOME,
        y=FEW,
    ),
    _template(
        "rows of seats",
        "A [theater|hall|cinema] has {x} rows with {y} seats each[ and {d} doors|]. "
        "How many people can sit down in it?",
        "x * y",
        x=FEW,
        y=SOME,
        d=FEW,
    ),
    _template(
        "made per hour",
        "A machine [with {d} levers |]makes {x} {parts} an hour. How many {parts} does it make in {y} hours?",
        "x * y",
        x=SOME,
        y=FEW,
        d=FEW,
    ),
    _template(
        "speed",
        "A [train|bus] [with {d} people in it |]goes {x} kilometers an hour. "
        "How many kilometers does it go in {y} hours?",
        "x * y",
        x=MANY,
        y=(2, 5),
        d=MANY,
    ),
    _template(
        "dozens",
        "{A} buys {x} dozen {foods}. How many {foods} is that?",
        "x * 12",
        x=(2, 12),
    ),
    _template(
        "outfits",
        "{A} has {x} shirts and {y} pairs of trousers. "
        "In how many ways can {he} choose a shirt and a pair of trousers to wear?",
        "x * y",
        x=SOME,
        y=FEW,
    ),
    _template(
        "area",
        "[A garden|A floor|A field] is {x} meters long and {y} meters wide. How many square meters is that?",
        "x * y",
        x=SOME,
        y=FEW,
    ),
    # One division.
    _template(
        "shared equally",
        "{A}[|, who is {d} years old,] shares {x} {foods} equally [among|between] {y} friends. "
        "How many {foods} does each of them get?",
        "x / y",
        q=SOME,
        y=FEW,
        x="q * y",
        d=(5, 60),
    ),
    _template(
        "how many boxes",
        "{A} puts {x} {things} into {boxes}, {y} into each. How many {boxes} does {he} [fill|need]?",
        "x / y",
        q=SOME,
        y=FEW,
        x="q * y",
    ),
    _template(
        "price of one",
        "{y} {goods} of the same kind cost {x} dollars [together|in all]. How many dollars does one of them cost?",
        "x / y",
        q=SOME,
        y=FEW,
        x="q * y",
    ),
    _template(
        "distance of one hour",
        "{A} drove {x} kilometers in {y} hours, [always|all the time] at the same speed. "
        "How many kilometers did {he} drive in an hour?",
        "x / y",
        q=MANY,
        y=(2, 5),
        x="q * y",
    ),
    _template(
        "times as many as somebody else",
        "{A} has {x} {things}. That is {y} times as many as {B} has. How many {things} does {B} have?",
        "x / y",
        q=SOME,
        y=FEW,
        x="q * y",
    ),
    _template(
        "half",
        "There are {x} {animals} on a farm, and half of them are [brown|asleep|in the barn]. "
        "How many {animals} is that?",
        "x / 2",
        q=SOME,
        x="q * 2",
    ),
    _template(
        "days for a book",
        "A book has {x} pages. {A} reads {y} pages [a day|every evening]. After how many days has {he} read it all?",
        "x / y",
        q=SOME,
        y=SOME,
        x="q * y",
    ),
    _template(
        "weeks of days",
        "{A} will be away for {x} days. How many weeks is that?",
        "x / 7",
        q=(2, 30),
        x="q * 7",
    ),
    # Two steps.
    _template(
        "come and go",
        "There were {x} {birds} in a tree. {y} more came, and then {z} flew away. "
        "How many {birds} are in the tree now?",
        "all = x + y; all - z",
        x=MANY,
        y=SOME,
        z=SOME,
    ),
    _template(
        "spent twice",
        "{A} had {x} dollars. {He} bought a {good} for {y} dollars and [a lunch|a ticket] for {z} dollars. "
        "How many dollars [does {he} have left|are left]?",
        "left = x - y; left - z",
        x=MANY,
        y=SOME,
        z=FEW,
    ),
    _template(
        "boxes and loose ones",
        "{A} has {x} {boxes} with {y} {things} each and {z} loose {things}. "
        "How many {things} does {he} have[| in all]?",
        "packed = x * y; packed + z",
        x=FEW,
        y=SOME,
        z=SOME,
    ),
    _template(
        "change",
        "{A} buys {x} {goods} for {y} dollars each and pays with {z} dollars. How many dollars does {he} get back?",
        "price = x * y; z - price",
        x=FEW,
        y=FEW,
        p="x * y",
        q=SOME,
        z="p + q",
    ),
    _template(
        "put together and shared",
        "{A} has {x} {foods} and {B} has {y}. They put them together and share them equally among {z} children. "
        "How many {foods} does each child get?",
        "all = x + y; all / z",
        y=SOME,
        q=SOME,
        z=FEW,
        t="q * z",
        x="t - y",
    ),
    _template(
        "more, together",
        "{A} [has|collected] {x} {things}. {B} [has|collected] {y} more than {A}. "
        "How many {things} do [they|the two] have together?",
        "other = x + y; x + other",
        x=MANY,
        y=SOME,
    ),
    _template(
        "times, together",
        "[In {d} hours, |]{A} caught {x} fish and {B} caught {y} times as many. "
        "How many fish did they catch [together|in all]?",
        "other = x * y; x + other",
        x=SOME,
        y=FEW,
        d=FEW,
    ),
    _template(
        "fence",
        "A [garden|meadow|playground] is {x} meters long and {y} meters wide. "
        "How many meters of fence are needed to go all around it?",
        "half = x + y; half * 2",
        x=SOME,
        y=SOME,
    ),
    _template(
        "habit of weeks",
        "{A} [drinks {x} glasses of water|does {x} push-ups|writes {x} letters] every day. "
        "How many is that in {y} weeks?",
        "days = y * 7; x * days",
        x=FEW,
        y=FEW,
    ),
    _template(
        "rest of a book",
        "A book has {x} pages, and {A} has read {y}. {He} wants to read the rest in {z} days, as many each day. "
        "How many pages is that a day?",
        "rest = x - y; rest / z",
        y=MANY,
        q=SOME,
        z=FEW,
        t="q * z",
        x="t + y",
    ),
    _template(
        "paid by the hour",
        "{A} earns {x} dollars an hour[| and has a team of {d} people]. "
        "{He} worked {y} hours on Saturday and {z} hours on Sunday. How many dollars did {he} earn?",
        "hours = y + z; x * hours",
        x=SOME,
        y=FEW,
        z=FEW,
        d=SOME,
    ),
    _template(
        "profit",
        "A shop buys {goods} for {x} dollars each and sells them for {y} dollars each. "
        "How many dollars does it gain [by selling {z} of them|if {z} are sold]?",
        "gain = y - x; gain * z",
        x=SOME,
        q=FEW,
        y="x + q",
        z=SOME,
    ),
    _template(
        "empty seats",
        "A bus has {x} rows of {y} seats[| and is {d} years old]. {z} seats are empty. How many seats are taken?",
        "seats = x * y; seats - z",
        x=SOME,
        y=(2, 5),
        z=SOME,
        d=FEW,
    ),
    _template(
        "filling a tank",
        "A tank holds {x} liters, and there are {y} liters in it. A pump adds {z} liters a minute. "
        "After how many minutes is it full?",
        "room = x - y; room / z",
        y=MANY,
        q=SOME,
        z=FEW,
        t="q * z",
        x="t + y",
    ),
    _template(
        "cheaper",
        "A {good} [used to cost|cost] {x} dollars and is {y} dollars cheaper today. "
        "[There are {d} of them in the shop. |]How many dollars do {z} {goods} cost [now|today]?",
        "price = x - y; price * z",
        x=SOME,
        y=FEW,
        z=FEW,
        d=MANY,
    ),
    _template(
        "saving up",
        "{A} has {x} dollars and saves {y} dollars every week. {He} wants a [bicycle|guitar|tent] for {z} dollars. "
        "After how many weeks can {he} buy it?",
        "missing = z - x; missing / y",
        x=SOME,
        y=FEW,
        q=SOME,
        t="q * y",
        z="t + x",
    ),
    _template(
        "half given away",
        "{A} had {x} {things}. {He} gave half of them to {B} and [found|bought|was given] {y} others. "
        "How many {things} does {he} have now?",
        "left = x / 2; left + y",
        q=SOME,
        x="q * 2",
        y=SOME,
    ),
    _template(
        "age of another later",
        "{A} is {x} years old. {B} is {y} times as old. How old will {B} be in {z} years?",
        "age = x * y; age + z",
        x=(2, 12),
        y=(2, 5),
        z=SOME,
    ),
    _template(
        "hours and minutes",
        "A film lasts {x} hours and {y} minutes. How many minutes is that?",
        "hours = x * 60; hours + y",
        x=(2, 5),
        y=(5, 55),
    ),
    _template(
        "weight of one",
        "A {box} with {x} {goods} of the same kind weighs {y} kilograms. The {box} alone weighs {z} kilograms. "
        "How many kilograms does one {good} weigh?",
        "all = y - z; all / x",
        x=FEW,
        q=FEW,
        z=FEW,
        t="q * x",
        y="t + z",
    ),
    _template(
        "fewer again",
        "{A} has {x} {things}. {B} has {y} more than {A}, and {C} has {z} fewer than {B}. "
        "How many {things} does {C} have?",
        "second = x + y; second - z",
        x=MANY,
        y=SOME,
        z=SOME,
    ),
    _template(
        "repacked",
        "{A} takes {x} {things} out of each of {y} {boxes} and makes {z} equal heaps of them. "
        "How many {things} are in a heap?",
        "all = x * y; all / z",
        x=SOME,
        y=FEW,
        z=FEW,
    ),
    # Three steps.
    _template(
        "two prices",
        "{A} buys {x} {goods} for {y} dollars each and {z} [sandwiches|drinks] for {w} dollars each. "
        "How many dollars does {he} pay?",
        "first = x * y; second = z * w; first + second",
        x=FEW,
        y=SOME,
        z=FEW,
        w=FEW,
    ),
    _template(
        "legs",
        "[On a farm|In a barn] there are {x} cows and {y} hens. How many legs do [these animals|they] have together?",
        "first = x * 4; second = y * 2; first + second",
        x=SOME,
        y=SOME,
    ),
    _template(
        "baked, sold, packed",
        "A baker makes {x} trays of {y} bread rolls, sells {z} of the rolls and packs the rest into bags of {w}. "
        "How many bags [is that|are filled]?",
        "all = x * y; rest = all - z; rest / w",
        x=FEW,
        y=SOME,
        z=SOME,
        w=(2, 6),
    ),
    _template(
        "average",
        "{A} scored {x}, {y} and {z} points in three games. How many points is that [a game|per game] on average?",
        "two = x + y; all = two + z; all / 3",
        x=SOME,
        y=SOME,
        z=SOME,
    ),
    _template(
        "buses for a trip",
        "{x} children and {y} adults go on a trip to {place}. A bus takes {z} people and costs {w} dollars. "
        "How many dollars do all buses cost, if all of them are full?",
        "people = x + y; buses = people / z; buses * w",
        y=SOME,
        q=(2, 6),
        z=(10, 40),
        t="q * z",
        x="t - y",
        w=MANY,
    ),
    _template(
        "two boxes compared",
        "{A} has {x} {boxes} of {y} {things}. {B} has {z} {boxes} of {w} {things}. "
        "How many more {things} does {A} have than {B}?",
        "first = x * y; second = z * w; first - second",
        x=FEW,
        y=SOME,
        z=FEW,
        w=SOME,
    ),
    _template(
        "three shares",
        "{A} picked {x} {foods} and {B} picked {y} more than {A}. They share all of them equally with {C}, "
        "so that each of the three has as many. How many {foods} does each have?",
        "second = x + y; all = x + second; all / 3",
        x=MANY,
        y=SOME,
    ),
    _template(
        "wages saved",
        "{A} earns {x} dollars a day and spends {y} dollars of it. How many dollars does {he} have after {z} weeks "
        "of {w} days of work?",
        "saved = x - y; days = z * w; saved * days",
        x=SOME,
        y=SOME,
        z=FEW,
        w=(3, 6),
    ),
)
