import importlib
import inspect
import pkgutil
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

import dpr_core.config
from dpr_core.config.base import Config, StageConfig, commented_yaml, override, parse, read_yaml
from dpr_core.config.data import TemplateConfig
from dpr_core.errors import UsageError

MODULES = [f"dpr_core.config.{module.name}" for module in pkgutil.iter_modules(dpr_core.config.__path__)]
CONFIGS = sorted(
    {
        kind
        for module in MODULES
        for kind in vars(importlib.import_module(module)).values()
        if inspect.isclass(kind) and issubclass(kind, Config) and kind is not Config
    },
    key=lambda kind: kind.__name__,
)


class Cat(Config):
    """A cat."""

    type: Literal["cat"] = "cat"
    """Kind."""

    lives: int = Field(9, ge=1)
    """How many are left."""


class Dog(Config):
    """A dog."""

    type: Literal["dog"] = "dog"
    """Kind."""

    tricks: tuple[str, ...] = ()
    """What it can do."""

    volume: float = 1.0
    """How loud it is."""


class House(StageConfig):
    """Where they live."""

    pet: Annotated[Cat | Dog, Field(discriminator="type")] = Cat()
    """Who lives here."""

    pets: dict[str, Annotated[Cat | Dog, Field(discriminator="type")]] = Field({})
    """Who else."""

    colour: Literal["red", "blue"] = "red"
    """Of the door."""

    rooms: int
    """How many."""


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_setting_says_what_it_means(kind: type[Config]) -> None:
    assert kind.__doc__
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_config_is_closed_and_frozen(kind: type[Config]) -> None:
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["frozen"]
    assert not kind.model_config["allow_inf_nan"]
    assert kind.model_config["strict"]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_what_costs_time_or_memory_is_bounded(kind: type[Config]) -> None:
    def unbounded(name: str, schema: dict[str, Any]) -> bool:
        parts = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])]
        counts = schema.get("type") == "integer" or name.endswith(("seconds", "minutes", "hours", "temperature"))
        bounds = {"maximum", "exclusiveMaximum", "const"} & schema.keys()
        numeric = schema.get("type") in ("integer", "number")
        return (numeric and counts and not bounds) or any(unbounded(name, part) for part in parts)

    properties = kind.model_json_schema().get("properties", {})
    assert [name for name, schema in properties.items() if unbounded(name, schema)] == []


@pytest.mark.parametrize("module", MODULES)
def test_configs_import_without_torch(module: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pandas', 'datasets', 'accelerate'}"
    code = f"import sys, {module}; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rooms": 1, "pet": {"type": "cat", "livs": 3}}, "house.yaml: pet.livs: no such field; did you mean lives?"),
        ({"rooms": 1, "roms": 2}, "house.yaml: roms: no such field; did you mean rooms?"),
        ({"rooms": 1, "zzzz": 2}, "house.yaml: zzzz: no such field; known here: colour, pet, pets, rooms, seed"),
        (
            {"rooms": 1, "pet": {"type": "dog", "lives": 3}},
            "house.yaml: pet.lives: no such field; known here: tricks, type, volume",
        ),
        ({}, "house.yaml: rooms: this field is required"),
        (
            {"rooms": 1, "pet": {"type": "cow"}},
            "house.yaml: pet.type: unknown type 'cow'; known: 'cat', 'dog'",
        ),
        ({"rooms": 1, "pet": {"lives": 3}}, "house.yaml: pet: a `type` is needed to say which kind this is"),
        ({"rooms": 1, "colour": "green"}, "house.yaml: colour: input should be 'red' or 'blue' (got 'green')"),
        (
            {"rooms": 1, "pets": {"tom": {"type": "cat", "lives": 0}}},
            "house.yaml: pets.tom.lives: input should be greater than or equal to 1 (got 0)",
        ),
        (
            {"rooms": 1, "pets": {"tom": {"type": "cat", "livs": 1}}},
            "house.yaml: pets.tom.livs: no such field; did you mean lives?",
        ),
    ],
)
def test_an_error_names_the_place_the_field_and_the_nearest_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(House, values, "house.yaml")
    assert str(error.value) == message


def test_every_mistake_is_reported_at_once() -> None:
    with pytest.raises(UsageError) as error:
        parse(House, {"rooms": "many", "pet": {"type": "cat", "lives": 0}}, "x")
    assert [line.split(":")[1].strip() for line in str(error.value).splitlines()] == ["pet.lives", "rooms"]


def test_infinities_are_refused() -> None:
    with pytest.raises(UsageError, match="volume"):
        parse(Dog, {"volume": float("nan")}, "x")


def test_a_stage_is_identified_by_all_that_decides_its_result() -> None:
    class Stage(StageConfig):
        """A stage."""

        execution: Cat = Cat()
        """How."""

        size: float = 2
        """What."""

    assert Stage(execution=Cat(lives=2)).identity() == {"seed": 0, "size": 2.0} == Stage().identity()
    assert Stage(size=3).identity() != Stage().identity()


def test_yaml_that_is_no_mapping_is_refused() -> None:
    assert read_yaml("", "x") == {}
    assert read_yaml("a: {b: [1, 2]}", "x") == {"a": {"b": [1, 2]}}
    for text, message in (("- 1", "x: .*not list"), ("a: [1", "x: not valid YAML"), ("a\n\tb: : c", "x: ")):
        with pytest.raises(UsageError, match=message):
            read_yaml(text, "x")


def test_yaml_cannot_build_objects() -> None:
    with pytest.raises(UsageError, match=r"x: line 1: a tag \(!!python/object/apply:os.getcwd\) is not taken"):
        read_yaml("a: !!python/object/apply:os.getcwd []", "x")


def test_an_override_sets_a_field_and_leaves_what_it_was_given_alone() -> None:
    values = {"rooms": 1, "pet": {"type": "cat", "lives": 3}}
    changed = override(values, ["pet.lives=7", "pets.rex.type=dog", "pets.rex.tricks=[sit, roll]", "colour=blue"])
    assert changed == {
        "rooms": 1,
        "pet": {"type": "cat", "lives": 7},
        "pets": {"rex": {"type": "dog", "tricks": ["sit", "roll"]}},
        "colour": "blue",
    }
    assert values == {"rooms": 1, "pet": {"type": "cat", "lives": 3}}


def test_another_type_starts_its_section_afresh() -> None:
    values = {"rooms": 1, "pet": {"type": "cat", "lives": 3}}
    assert override(values, ["pet.type=dog", "pet.volume=2"])["pet"] == {"type": "dog", "volume": 2}
    assert override(values, ["pet.type=cat"])["pet"] == {"type": "cat", "lives": 3}
    assert parse(House, override(values, ["pet.type=dog"]), "x").pet == Dog()


@pytest.mark.parametrize("text", ["5e-6", "5.0e-06", "0.000005"])
def test_numbers_may_be_written_as_people_write_them(text: str) -> None:
    """YAML 1.1 takes 5e-6 for text; the field knows better."""
    assert parse(Dog, override({}, [f"volume={text}"]), "x").volume == 5e-6
    assert parse(Dog, read_yaml(f"volume: {text}", "x"), "x").volume == 5e-6


def test_a_value_that_is_no_yaml_is_text_and_one_with_equal_signs_is_whole() -> None:
    assert override({}, ["a={prompt"])["a"] == "{prompt"
    assert override({}, ["a=b=c"])["a"] == "b=c"
    assert override({}, ["a=null"])["a"] is None


@pytest.mark.parametrize("assignment", ["rooms", "=3", "pet..lives=3", ".rooms=3", "rooms.=3"])
def test_an_assignment_without_field_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(UsageError, match="expected field=value"):
        override({}, [assignment])


def test_a_recipe_that_holds_a_date_can_be_overridden() -> None:
    changed = override(read_yaml("rooms: 1\ncolour: 2024-01-01", "x"), ["rooms=2"])
    with pytest.raises(UsageError, match="colour"):
        parse(House, changed, "x")


def test_commented_yaml_by_hand() -> None:
    house = House(rooms=2, pet=Dog(volume=5e-7), pets={"tom": Cat()})
    assert commented_yaml(house) == (
        "# Seed of everything random in this stage.\n"
        "seed: 0\n"
        "# Who lives here.\n"
        "pet:\n"
        "  # Kind.\n"
        '  type: "dog"\n'
        "  # What it can do.\n"
        "  tricks: []\n"
        "  # How loud it is.\n"
        "  volume: 5.0e-07\n"
        "# Who else.\n"
        "pets:\n"
        '  "tom":\n'
        "    # Kind.\n"
        '    type: "cat"\n'
        "    # How many are left.\n"
        "    lives: 9\n"
        "# Of the door.\n"
        "# One of: red, blue\n"
        'colour: "red"\n'
        "# How many.\n"
        "rooms: 2\n"
    )


@pytest.mark.parametrize("volume", [5e-7, 1.5e-7, 1e22, 0.1, 3.0, 1e-300])
def test_every_float_survives_as_a_number(volume: float) -> None:
    assert read_yaml(commented_yaml(Dog(volume=volume)), "x")["volume"] == volume


TEXTS = ["", " x ", "a\nb\n", "# no comment", "yes", "{a: b}", "'\"\\", "\t", "é 漢字 😀", "\x00\x1b", "null", "1e3"]
ODD = ["\x7f", "\x85", "\x9b", "a\u2028b", "a\u2029 b", "\ufeff", "\ufffe"]


@pytest.mark.parametrize("text", TEXTS + ODD)
def test_any_text_survives_commented_yaml(text: str) -> None:
    template = TemplateConfig(text="{prompt}" + text, default_system=text)
    assert parse(TemplateConfig, read_yaml(commented_yaml(template), "x"), "x") == template
    house = House(rooms=1, pets={text: Cat()})
    assert parse(House, read_yaml(commented_yaml(house), "x"), "x") == house


@pytest.mark.parametrize("date", ["2026-13-45", "2024-01-01"])
def test_a_date_is_text(date: str) -> None:
    assert override({}, [f"name={date}"]) == {"name": date} == read_yaml(f"name: {date}", "mine")
