"""Strict YAML: every name once, the scalars of YAML 1.2, no tags, and bounds on size, depth and aliases."""

import math
import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_CHARACTERS = 2**18
MOST_VALUES = 20_000
MOST_LEVELS = 32
MOST_DIGITS = 40

INTEGER = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*|0x[0-9a-fA-F]+)\Z")
"""No leading zeros: YAML 1.1 takes 0777 for an octal number, YAML 1.2 for a decimal one."""

FLOAT = re.compile(r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|nan))\Z")
"""With 1e-4, and without numbers to the base 60, both unlike YAML 1.1."""

CORE = "tag:yaml.org,2002:"

PLAIN = {
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    "int": (INTEGER, "-+0123456789"),
    "float": (FLOAT, "-+.0123456789"),
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "merge": (re.compile(r"<<\Z"), "<"),
}


class RefusedError(ValueError):
    """Well-formed YAML that this program does not take."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.level = self.nodes = 0
        self.extents: dict[Node, tuple[int, int]] = {}
        """Of every node that is complete: its values and its levels, with whatever its aliases stand for."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if (tag := getattr(event, "tag", None)) is not None:
            raise RefusedError(f"line {line}: a tag ({tag.replace(CORE, '!!'):.100}) is not taken; write a plain value")
        is_alias = isinstance(event, yaml.AliasEvent)
        self.level += 1
        self.nodes += 1
        self._bound(self.nodes, self.level, line)
        node = super().compose_node(parent, index)
        self.level -= 1
        if node is not None and not is_alias:
            self.extents[node] = self._extent(node, line)
        elif node is not None and node not in self.extents:
            raise RefusedError(f"line {line}: the alias *{event.anchor:.100} is part of what it stands for")
        return node

    def _extent(self, node: Node, line: int) -> tuple[int, int]:
        if isinstance(node, MappingNode):
            _refuse_duplicates(node)
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value if isinstance(node, SequenceNode) else []
        extents = [self.extents[child] for child in children]
        values, levels = 1 + sum(v for v, _ in extents), 1 + max((n for _, n in extents), default=0)
        self._bound(values, levels, line)
        return values, levels

    def _bound(self, values: int, levels: int, line: int) -> None:
        if levels > MOST_LEVELS:
            raise RefusedError(f"line {line}: nested more than {MOST_LEVELS} levels deep")
        if values > MOST_VALUES:
            raise RefusedError(f"line {line}: more than {MOST_VALUES} values, with aliases written out")

    def construct_integer(self, node: ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            line = node.start_mark.line + 1
            raise RefusedError(f"line {line}: a number of {len(node.value)} digits; {MOST_DIGITS} are the most")
        return int(node.value, 0)


for _name, (_pattern, _first) in PLAIN.items():
    _Loader.add_implicit_resolver(CORE + _name, _pattern, list(_first))
_Loader.add_constructor(CORE + "int", _Loader.construct_integer)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text."""


_Dumper.add_implicit_resolver(CORE + "float", FLOAT, list("-+.0123456789"))


def load(text: str) -> Any:
    """The value of a text. Raises YAMLError where it is no YAML, and RefusedError."""
    if len(text) > MOST_CHARACTERS:
        raise RefusedError(f"longer than {MOST_CHARACTERS} characters, the most that settings may have")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump(value: Any) -> str:
    """A value in one line."""
    style = '"' if isinstance(value, str) else None
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_style=style, default_flow_style=True, width=math.inf, sort_keys=False
    )
    return text.removesuffix("...\n").strip("\n")


def problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without what stands there."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {(error.problem or error.context or ''):.200}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is U+{error.character:04X}, which YAML does not allow"
    return " ".join(str(error).split())


def _refuse_duplicates(node: MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            raise RefusedError(f"line {line}: a name is expected here, not several values")
        if key.value in lines:
            first = lines[key.value]
            where = f"line {line}" if first == line else f"lines {first} and {line}"
            raise RefusedError(f"{key.value:.100} is given twice, in {where}; keep one of them")
        lines[key.value] = line
