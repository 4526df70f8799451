"""A judging protocol: a benchmark's own judge prompts, how it reads replies to them, and its file of judgments."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from dpr_core.config import strict_yaml
from dpr_core.errors import UsageError
from dpr_core.evaluation.ask import Details
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.pairwise import Comparison, Game, Judgment, Pair, Verdict
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import Row
from dpr_core.files import refuse_special

T = TypeVar("T")

MOST_BYTES = 2**18
"""Of a file of prompts."""

MOST_OF_NAME = 100
"""Characters of a model's name in that of a file."""


@dataclass(frozen=True)
class Played:
    """Both games of a pair, and whose answers they compare."""

    pair: Pair
    shown: Mapping[bool, Comparison]
    """What the judge saw, where long answers are cut; by whether the candidate was shown first, as the games are."""
    games: Mapping[bool, Game]
    candidate: str
    baseline: str


class JudgingProtocol(ABC):
    """What is read of the official files. Its digest is a hash of all that the judge is told and read by."""

    benchmark: ClassVar[str]
    """As in `official.FORMATS`, whose score reads the rows."""

    known: ClassVar[Mapping[str, str]]
    """Digests of the official files, by name."""

    published: ClassVar[str]
    """Where those files are from."""

    def __init__(self, name: str, content: Mapping[str, Any], model: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.model = model
        """The benchmark's own judge."""
        self.settings = settings
        """Those of `judge.by` that belong to the prompts."""
        text = json.dumps([self.benchmark, content, settings], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def warnings(self, model: str) -> list[str]:
        """How judging by this model is not the benchmark's own."""
        found = []
        known = self.known.get(self.name)
        if known != self.digest:
            other = f"; there the hash is {known[:12]}" if known else ""
            found.append(
                f"judge.prompts: {self.name} (hash {self.digest[:12]}) is not as {self.published} has it{other}"
            )
        if model != self.model:
            found.append(
                f"judge.prompts: {self.name} is meant for the judge {self.model}, and judge.by.model is {model}"
            )
        return found

    @abstractmethod
    def refuse(self, question: Question) -> None:
        """UsageError for a question that these prompts do not know how to ask about."""

    def baseline(self, question: Question) -> str | None:
        """The model with which the benchmark compares answers to this question, if the files name it."""
        return None

    def baseline_warnings(self, asked: Iterable[tuple[Question, str]]) -> list[str]:
        """Where the model with which a question is asked about, named beside it, is not the benchmark's own."""
        others = {(own, name) for question, name in asked if (own := self.baseline(question)) not in (None, name)}
        return [
            f"judge.prompts: {self.name} is meant for the baseline {own}, and here it is {name}: the score has no "
            "place on the benchmark's leaderboard"
            for own, name in sorted(others)
        ]

    def about(self, questions: Iterable[Question]) -> list[str]:
        """What should be known of these questions before they are asked about."""
        return []

    def rounds(self, pair: Pair) -> list[Pair]:
        """The pairs that are shown in both orders: the pair as it is, or turn by turn."""
        return [pair]

    @abstractmethod
    def messages(self, comparison: Comparison) -> Messages: ...

    @abstractmethod
    def label(self, reply: str) -> str | None:
        """What the benchmark's own script reads in a reply; None where that is nothing."""

    @abstractmethod
    def verdict(self, label: str) -> Verdict:
        """ValueError for what is no label."""

    @abstractmethod
    def rows(self, played: Iterable[Played], judge: str) -> list[Row]:
        """As the benchmark's own script writes them."""

    @abstractmethod
    def file(self, candidate: str, judge: str) -> str:
        """What the official file is called."""

    def text(self, rows: list[Row]) -> str:
        """Of the official file."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class OfficialPrompt(PairwisePrompt):
    """Asks for a verdict in a benchmark's own words."""

    schema = None

    def __init__(self, protocol: JudgingProtocol, most_characters: int) -> None:
        super().__init__(most_characters)
        self._protocol = protocol

    def messages(self, comparison: Comparison, as_json: bool = False) -> Messages:
        return self._protocol.messages(self.within_limit(comparison))

    def read(self, reply: str, as_json: bool) -> str | None:
        return self._protocol.label(reply)

    def judgment(self, comparison: Comparison, value: str | None, raw: str, details: Details) -> Judgment:
        if value is None:
            return Judgment(Verdict.UNREADABLE, raw, details)
        return Judgment(self._protocol.verdict(value), raw, details, value)


def in_file_name(name: str) -> str:
    """A model as the name of a file, without the folder that it may be in."""
    return re.sub(r"[^\w.+@=-]", "_", name.rstrip("/").rpartition("/")[2])[-MOST_OF_NAME:].lstrip(".") or "model"


def read_text(path: Path) -> str:
    """UsageError for a file of prompts that is not there, is too large for one, or is no text."""
    try:
        refuse_special(path)
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path} has more than {MOST_BYTES:,} bytes, which no file of judge prompts has")
        return content.decode("utf-8")
    except OSError as error:
        raise UsageError(f"judge.prompts: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 (byte {error.start + 1})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        values = strict_yaml.load(read_text(path))
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: {strict_yaml.problem(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: names with values are expected, as in a file of settings")
    return values


def part(values: Mapping[str, Any], name: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """A value of a file; UsageError where there is none of that kind."""
    value = values.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{where} has no `{name}` as the official file has it (found {type(value).__name__})")
    return value
