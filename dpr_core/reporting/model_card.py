"""Model card of a Hugging Face repository: metadata for the hub's search, then results, prompts, data and settings."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpr_core.reporting import report
from dpr_core.reporting.report import Interval, ReportTable, Row
from dpr_core.reporting.tables import Table, escaped
from dpr_core.text import escape_control, escape_control_lines

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FILE = "README.md"


@dataclass(frozen=True)
class Licence:
    """Of the backbone, as the metadata of a card names it."""

    id: str | None
    """Such as apache-2.0; None where there is no backbone that could have one."""
    words: str
    """Where it is known from, in a sentence."""
    name: str | None = None
    """With the ID `other`."""
    link: str | None = None


@dataclass(frozen=True)
class Step:
    """A stage that the model was made by."""

    stage: str
    what: str
    digest: str
    settings: Mapping[str, Any]
    """By their dotted names."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model. Any text may be anyone's."""

    repository: str
    what: str
    licence: Licence
    facts: Mapping[str, str]
    steps: Sequence[Step]
    """In the order in which they were done."""
    template: Mapping[str, Any]
    """Of prompts, as the settings have it; empty where none is known."""
    base_model: str | None = None
    """Its name on the hub."""
    datasets: Sequence[str] = ()
    """Their names on the hub."""
    results: ReportTable | None = None
    """With the rows of this model and of the one that it was judged against."""

    @property
    def name(self) -> str:
        return self.repository.rpartition("/")[2]


NOT_REPORTED = "## Results\n\nNo report has this model yet."


def as_markdown(card: ModelCard) -> str:
    """The card as a README.md."""
    facts = {**card.facts, "Licence of the backbone": card.licence.words}
    made = Table(["stage", "what", "digest"], [(s.stage, s.what, s.digest[:16]) for s in card.steps], texts=3)
    parts = [
        f"---\n{_metadata(card)}\n---",
        f"# {escaped(card.name)}",
        escaped(card.what),
        report.as_markdown(card.results).rstrip() if card.results else NOT_REPORTED,
        *_prompts(card),
        "## How it was made",
        "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in facts.items()),
        made.as_markdown(),
    ]
    for step in card.steps:
        table = Table(["setting", "value"], [(name, _text(value)) for name, value in step.settings.items()], texts=2)
        summary = f"<details>\n<summary>Settings of {escaped(step.stage)}</summary>"
        parts += [summary, table.as_markdown(), "</details>"]
    return "\n\n".join(parts) + "\n"


def _metadata(card: ModelCard) -> str:
    from huggingface_hub import ModelCardData

    results = (
        [] if card.results is None else [each for row in card.results.rows for each in _results(row, card.results)]
    )
    data = ModelCardData(
        model_name=card.name,
        base_model=card.base_model and escape_control(card.base_model),
        license=card.licence.id,
        license_name=card.licence.name and escape_control(card.licence.name),
        license_link=card.licence.link and escape_control(card.licence.link),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[
            "dense-path",
            *dict.fromkeys(step.stage for step in card.steps if step.stage not in ("subsample", "prompts")),
        ],
        datasets=[*map(escape_control, card.datasets)] or None,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _results(row: Row, table: ReportTable) -> "Iterator[EvalResult]":
    """What the hub lists of a policy on a benchmark; an interval is said with the name of what it is of."""
    from huggingface_hub import EvalResult

    if row.is_baseline and table.policies:
        return
    for kind, name, value, interval in _measured(row, table.baseline):
        around = f" (95% interval {interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
        yield EvalResult(
            task_type="text-generation",
            dataset_type=escape_control(row.benchmark),
            dataset_name=escape_control(f"{row.benchmark}, {row.prompts:,} prompts"),
            metric_type=kind,
            metric_name=escape_control(f"{row.policy}: {name}{around}"),
            metric_value=round(value, 4),
        )


def _measured(row: Row, baseline: str) -> Iterator[tuple[str, str, float, Interval | None]]:
    if row.win_rate is not None:
        yield "win_rate", f"win rate against {baseline}, %", row.win_rate, row.win_rate_interval
    if row.length_adjusted_rate is not None:
        name = f"length-adjusted win rate against {baseline}, %"
        yield "length_adjusted_win_rate", name, row.length_adjusted_rate, row.length_adjusted_interval
    if row.accuracy is not None:
        yield "accuracy", "accuracy, %", 100 * row.accuracy, None
    for kind, measure in (row.gold or {}).items():
        times = 100 if measure.is_share else 1
        interval = None if measure.low is None or measure.high is None else (times * measure.low, times * measure.high)
        yield kind, measure.title, times * measure.value, interval


def _prompts(card: ModelCard) -> Iterator[str]:
    """The form in which the model expects prompts, and how to ask it."""
    yield "## Prompts"
    if "text" in card.template:
        yield "It was trained on prompts of this form, and the response follows:"
        yield _fenced(card.template["text"])
        yield "Where there is a system prompt, `{system}` becomes"
        yield _fenced(card.template["system"])
    elif card.template:
        yield "They are written by the chat template of the tokenizer: `tokenizer.apply_chat_template`."
    if default := card.template.get("default_system" if "text" in card.template else "system"):
        yield "Where no other was given, the system prompt was"
        yield _fenced(default)
    yield _fenced(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{card.repository}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{card.repository}")',
        "python",
    )


def _fenced(text: str, language: str = "") -> str:
    """A block of code, which a text in it cannot end."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}{language}\n{escape_control_lines(text)}\n{fence}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
