"""AlpacaEval's annotators, of the installed package or a checkout of it, and its annotations.json.

Two kinds are read: a ranking, and one token whose log-probabilities weigh the two answers. The package shows each pair
in one order, drawn by the instruction; both orders are judged here, and its file has the one that it would have shown.
"""

import ast
import json
import math
import random
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from dpr_core.errors import UsageError
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.official.alpaca_eval import DRAW
from dpr_core.evaluation.pairwise import Comparison, Verdict
from dpr_core.evaluation.prompts import plain
from dpr_core.evaluation.protocols.protocol import JudgingProtocol, Played, part, read_text, read_yaml
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.reading import without_thinking
from dpr_core.evaluation.rows import Row

ANNOTATORS = ("weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_gpt4")
"""Of the package, by whose names they may be called."""

CONFIGS = "configs.yaml"
FIELD = re.compile(r"\{(\w+)\}")
FIELDS = {"instruction", "output_1", "output_2"}
MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\s*", re.S)

FIRST = "model_1"
"""What a ranking calls the answer that is shown first."""

MOST_CHARACTERS = 10_000
"""Of a reply that is read as a ranking."""


class AlpacaEvalProtocol(JudgingProtocol):
    """A preference from 1, the first answer, to 2, the second one."""

    benchmark = "alpaca-eval"
    published = "alpaca-eval 0.6.6"
    known: ClassVar = {
        "weighted_alpaca_eval_gpt4_turbo": "79fb73c352e9a0d9728f3d8d459bff2d34c04353943afc0cb758840bc1eb705a",
        "alpaca_eval_gpt4": "ed01b334c5828a1a4b8069a2d1c7a1eb44ca021c1fe8c636a7c5d285a0b712f1",
    }

    def __init__(self, name: str, values: Mapping[str, Any], template: str, where: str) -> None:
        self._told = [(role, text.strip()) for role, text in MESSAGE.findall(template)]
        used = set(FIELD.findall(template))
        if used != FIELDS or not self._told or MESSAGE.sub("", template.strip()):
            raise UsageError(
                f"{where}: the prompt template is not one of messages with the fields {', '.join(sorted(FIELDS))}"
            )
        request = part(values, "completions_kwargs", dict, where)
        settings = {
            "temperature": float(part(request, "temperature", (int, float), where)),
            "max_tokens": part(request, "max_tokens", int, where),
        }
        self._tokens: tuple[str, list[str]] | None = None
        match values.get("fn_completion_parser"):
            case "ranking_parser":
                pass
            case "logprob_parser":
                parser = part(values, "completion_parser_kwargs", dict, where)
                if parser.get("is_binarize") is not False:
                    raise UsageError(f"{where}: only preferences that are not made binary are known here")
                self._tokens = (
                    part(parser, "numerator_token", str, where),
                    part(parser, "denominator_tokens", list, where),
                )
                settings["top_logprobs"] = part(request, "top_logprobs", int, where)
            case other:
                raise UsageError(
                    f"{where}: its replies are read by {other}, which is not known here; {' and '.join(ANNOTATORS)} "
                    "can be used"
                )
        if values.get("batch_size", 1) != 1:
            raise UsageError(f"{where}: it asks about several pairs at once, which is not known here")
        super().__init__(
            name,
            {"messages": self._told, "tokens": self._tokens},
            part(request, "model_name", str, where),
            settings,
        )

    @classmethod
    def installed(cls, name: str) -> "AlpacaEvalProtocol":
        """The annotator of this name in the package, of which nothing is imported or run."""
        spec = find_spec("alpaca_eval")
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(
                f"judge.prompts: {name} is an annotator of the package alpaca-eval, which is not installed; "
                "pip install 'dense-path[official]', or give the path of its configs.yaml"
            )
        file = Path(spec.submodule_search_locations[0]) / "evaluators_configs" / name / CONFIGS
        return cls.read_from(file, read_yaml(file))

    @classmethod
    def read_from(cls, file: Path, values: Mapping[str, Any]) -> "AlpacaEvalProtocol":
        if len(values) != 1:
            raise UsageError(f"{file} holds {len(values)} annotators; one is needed")
        ((name, annotator),) = values.items()
        where = f"{file}: {name}"
        if not isinstance(annotator, dict):
            raise UsageError(f"{where} is no annotator")
        # As the package does: from the folder that holds those of all annotators.
        template = file.resolve().parent.parent / part(annotator, "prompt_template", str, where)
        return cls(str(name), annotator, read_text(template), where)

    def refuse(self, question: Question) -> None:
        if len(question.turns) != 1:
            raise UsageError(f"question {question.id} has {len(question.turns)} turns; AlpacaEval's prompts know one")

    def messages(self, comparison: Comparison) -> Messages:
        shown = {
            "instruction": comparison.question.prompt,
            "output_1": comparison.first.turns[0],
            "output_2": comparison.second.turns[0],
        }
        fields = {name: plain(text) for name, text in shown.items()}
        return [{"role": role, "content": FIELD.sub(lambda found: fields[found[1]], text)} for role, text in self._told]

    def label(self, reply: str) -> str | None:
        found = _ranked(without_thinking(reply)) if self._tokens is None else _weighed(reply, *self._tokens)
        return None if found is None else str(found)

    def verdict(self, label: str) -> Verdict:
        preference = float(label)
        if not 1 <= preference <= 2:
            raise ValueError(f"{label} is no preference between 1 and 2")
        return Verdict.TIE if preference == DRAW else Verdict.FIRST if preference < DRAW else Verdict.SECOND

    def rows(self, played: Iterable[Played], judge: str) -> list[Row]:
        return [self._row(each) for each in played]

    def file(self, candidate: str, judge: str) -> str:
        return "annotations.json"

    def text(self, rows: list[Row]) -> str:
        return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"

    def _row(self, played: Played) -> Row:
        question = played.pair.question
        output_1, output_2 = played.pair.baseline.turns[0], played.pair.candidate.turns[0]
        candidate_first = _is_switched(question.prompt)
        game = played.games[candidate_first]
        if output_1 == output_2:
            preference: float | None = DRAW
        elif game.label:
            preference = 3 - float(game.label) if candidate_first else float(game.label)
        else:
            preference = None
        return {
            "instruction": question.prompt,
            "output_1": output_1,
            "generator_1": played.baseline,
            **({"dataset": question.category} if question.category else {}),
            "output_2": output_2,
            "generator_2": played.candidate,
            "annotator": self.name,
            "preference": preference,
            # Where log-probabilities were asked for, what is kept is JSON.
            "preference_raw_completion": json.loads(game.raw) if self._tokens and game.label else game.raw,
        }


def _is_switched(instruction: str) -> bool:
    """Whether the package shows output_2 first: its own draw, with the seeds that it has by default."""
    return random.Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def _ranked(reply: str) -> float | None:
    """The rank of the first answer, in a list of both as Python writes one."""
    if len(reply) > MOST_CHARACTERS:
        return None
    try:
        ranks = [each["rank"] for each in ast.literal_eval(reply.strip()) if each["model"] == FIRST]
    except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError):
        return None
    return float(ranks[0]) if ranks and isinstance(ranks[0], int) and ranks[0] in (1, 2) else None


def _weighed(reply: str, first: str, tokens: list[str]) -> float | None:
    """2 less the probability of the token that stands for the first answer, among those that stand for one."""
    try:
        (token,) = json.loads(reply)["logprobs"]["content"]
        told = {each["token"]: math.exp(float(each["logprob"])) for each in token["top_logprobs"]}
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None
    total = sum(told.get(each, 0.0) for each in tokens)
    preference = 2 - told.get(first, 0.0) / total if total > 0 else math.nan
    return preference if 1 <= preference <= 2 else None
