"""MT-Bench's pairwise judging by FastChat's judge_prompts.jsonl: every turn by itself, and its `{judge}_pair.jsonl`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from dpr_core.errors import UsageError
from dpr_core.evaluation.ask import REFUSED
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.fastchat import TURNS, Wanted, numbered, read_templates
from dpr_core.evaluation.official import references
from dpr_core.evaluation.official.layouts import mt_bench_id
from dpr_core.evaluation.official.mt_bench import ERROR, FAILED
from dpr_core.evaluation.pairwise import Answer, Comparison, Pair, Verdict
from dpr_core.evaluation.prompts import filled, plain
from dpr_core.evaluation.protocols.protocol import JudgingProtocol, Played, in_file_name
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.reading import without_thinking
from dpr_core.evaluation.rows import Row

VERDICTS = {"A": Verdict.FIRST, "B": Verdict.SECOND, "C": Verdict.TIE}
"""In the order in which the script looks for them."""

MAX_TOKENS = 2048


def _name(turns: int, with_reference: bool) -> str:
    return f"pair-{'math-v1' if with_reference else 'v2'}{'-multi-turn' if turns > 1 else ''}"


def _wanted(turns: int, with_reference: bool) -> Wanted:
    sides = ("answer_a", "answer_b")
    shown = {f"{side}_{TURNS}" for side in sides} if turns > 1 else set(sides)
    known = numbered(*sides, "question") if turns > 1 else {*sides, "question"}
    known |= {f"ref_answer_{i}" for i in range(1, turns + 1)} if with_reference else set()
    return Wanted("[[A]]", shown, known)


class MTBenchProtocol(JudgingProtocol):
    """Both orders of each turn, with the reference answers where there are any."""

    benchmark = "mt-bench"
    published = "lm-sys/FastChat at 0e6d3e4"
    known: ClassVar = {"judge_prompts": "7721fe387eb86c983fc89a6552cf234d8e3c284bf6fa23faa2aaa0abf4906a06"}

    def __init__(self, templates: Mapping[str, Row]) -> None:
        self._templates = templates
        told = {name: [row["system_prompt"], row["prompt_template"]] for name, row in sorted(templates.items())}
        super().__init__("judge_prompts", told, "gpt-4", {"temperature": 0.0, "max_tokens": MAX_TOKENS})

    @classmethod
    def read_from(cls, file: Path) -> "MTBenchProtocol":
        kinds = [(turns, with_reference) for turns in (1, TURNS) for with_reference in (False, True)]
        wanted = {_name(*kind): _wanted(*kind) for kind in kinds}
        return cls(read_templates(file, wanted, "pairwise judging"))

    def refuse(self, question: Question) -> None:
        if len(question.turns) > TURNS:
            raise UsageError(
                f"question {question.id} has {len(question.turns)} turns; FastChat's judge prompts know up to {TURNS}"
            )

    def about(self, questions: Iterable[Question]) -> list[str]:
        return references.warnings(questions)

    def rounds(self, pair: Pair) -> list[Pair]:
        question, counts = pair.question, range(1, len(pair.question.turns) + 1)
        return [
            Pair(
                replace(question, turns=question.turns[:count], references=question.references[:count]),
                Answer(pair.candidate.turns[:count]),
                Answer(pair.baseline.turns[:count]),
                count,
            )
            for count in counts
        ]

    def messages(self, comparison: Comparison) -> Messages:
        instructions = self._template(comparison.question)["system_prompt"]
        system = [{"role": "system", "content": instructions}] if instructions else []
        return [*system, {"role": "user", "content": self._shown(comparison)}]

    def label(self, reply: str) -> str | None:
        """The first of [[A]], [[B]] and [[C]] that stands anywhere in the reply; in thinking there is none."""
        text = without_thinking(reply)
        return next((label for label in VERDICTS if f"[[{label}]]" in text), None)

    def verdict(self, label: str) -> Verdict:
        if label not in VERDICTS:
            raise ValueError(f"{label!r} is no label of FastChat")
        return VERDICTS[label]

    def rows(self, played: Iterable[Played], judge: str) -> list[Row]:
        return [self._row(each, judge) for each in played]

    def file(self, candidate: str, judge: str) -> str:
        return f"{in_file_name(judge)}_pair.jsonl"

    def _row(self, played: Played, judge: str) -> Row:
        question = played.pair.question
        row: Row = {
            "question_id": mt_bench_id(question.id),
            "model_1": played.candidate,
            "model_2": played.baseline,
            "judge": [judge, self._template(question)["name"]],
            "turn": len(question.turns),
        }
        for number, candidate_first in ((1, True), (2, False)):
            game = played.games[candidate_first]
            sides = {"A": "model_1", "B": "model_2"} if candidate_first else {"A": "model_2", "B": "model_1"}
            row |= {
                f"g{number}_winner": {**sides, "C": "tie"}.get(game.label, ERROR),
                f"g{number}_user_prompt": self._shown(played.shown[candidate_first]),
                f"g{number}_judgment": FAILED if REFUSED in game.details else game.raw,
            }
        return row

    def _template(self, question: Question) -> Row:
        return self._templates[_name(len(question.turns), len(question.references) == len(question.turns))]

    def _shown(self, comparison: Comparison) -> str:
        question = comparison.question
        texts = {"question": question.turns, "answer_a": comparison.first.turns, "answer_b": comparison.second.turns}
        fields = {f"{name}_{i}": text for name, turns in texts.items() for i, text in enumerate(turns, start=1)}
        fields |= {name: turns[0] for name, turns in texts.items()}
        fields |= {f"ref_answer_{i}": text for i, text in enumerate(question.references, start=1)}
        template = self._template(question)["prompt_template"]
        return filled(template, {name: plain(text) for name, text in fields.items()})
