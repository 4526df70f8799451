"""`dpr benchmark`: the benchmarks' own files, scored, judged and written without any pipeline."""

import asyncio
import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpr_core.errors import UsageError
from dpr_core.files import check_output
from dpr_core.text import escape_control
from flows.cli.console import Debug, Identifier, Json, OnceCommand, Set, emit, reported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from dpr_core.config.evaluation import ChatJudgeConfig, JudgeConfig
    from dpr_core.evaluation.canaries import Keep
    from dpr_core.evaluation.official.layouts import Answers, Layout
    from dpr_core.evaluation.pairwise import Answer, Game, Pair
    from dpr_core.evaluation.protocols import JudgingProtocol
    from dpr_core.evaluation.questions import Question

app = typer.Typer(
    no_args_is_help=True, help="Score, judge and write files of AlpacaEval, Arena-Hard, LIMA and MT-Bench."
)


class Format(StrEnum):
    mt_bench = "mt-bench"
    arena_hard = "arena-hard"
    alpaca_eval = "alpaca-eval"
    lima = "lima"


def _format(name: str) -> Format:
    """As `dpr benchmark list` names it, or as the configuration does, with an underscore."""
    try:
        return Format(name.replace("_", "-"))
    except ValueError:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(Format)}") from None


FormatOption = Annotated[
    Format,
    typer.Option("--format", "--benchmark", parser=_format, metavar="|".join(Format), help="Whose files these are."),
]
Questions = Annotated[Path | None, typer.Option(help="The benchmark's own questions.")]


@app.command("list", cls=OnceCommand)
def list_formats(as_json: Json = False, debug: Debug = False) -> None:
    """List the benchmarks whose files are understood."""
    with reported(debug):
        from dpr_core.evaluation.official.layouts import LAYOUTS

        found = [{"format": name, "benchmark": each.title, "prompts": each.prompts} for name, each in LAYOUTS.items()]
        emit(found, as_json, lambda: "\n".join(f"{f['format']:<12} {f['benchmark']}, {f['prompts']}" for f in found))


@app.command(cls=OnceCommand)
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Judgment or annotation files.")],
    kind: FormatOption,
    answers: Annotated[list[Path], typer.Option(help="The answers as they are now; may be given again.")] = [],  # noqa: B006
    questions: Questions = None,
    style_control: Annotated[
        bool,
        typer.Option("--style-control", help="Arena-Hard at equal length and markup; needs both sides' answers."),
    ] = False,
    most: Annotated[
        float,
        typer.Option("--max-unreadable-share", min=0, max=1, help="More verdicts that cannot be read are no score."),
    ] = 0.05,
    length_controlled: Annotated[
        bool, typer.Option("--length-controlled", help="AlpacaEval's rate at equal lengths, by its own package.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compute the official score and the paper's from existing judgments, and say what is wrong in the files.

    Example: dpr benchmark score --format mt-bench gpt-4_single.jsonl --questions question.jsonl
    """
    with reported(debug):
        from dpr_core.evaluation.official import FORMATS, check_kind, check_readable
        from dpr_core.evaluation.rows import read_rows

        if twice := [file for file in files if [other.resolve() for other in files].count(file.resolve()) > 1]:
            raise UsageError(f"{twice[0]} is given twice, and its judgments would count twice; name it once")
        read = {file: read_rows(file) for file in files}
        for file, found in read.items():
            check_kind(found[0], kind.value, str(file))
        rows = [row for found in read.values() for row in found]
        if style_control and kind is not Format.arena_hard:
            raise UsageError(f"--style-control is Arena-Hard's; leave it out for {kind.value}")
        if length_controlled and kind is not Format.alpaca_eval:
            raise UsageError(f"--length-controlled is AlpacaEval's; leave it out for {kind.value}")
        given = [row for file in answers for row in read_rows(file)]
        asked = read_rows(questions) if questions is not None else []
        scores = FORMATS[kind.value](rows, given, asked)
        if style_control:
            from dpr_core.evaluation.official.style_control import style_control as controlled

            for model, found_in in controlled(rows, given).items():
                scores[model].official["style_control_v2.0"] = found_in
        check_readable(scores, most)
        if length_controlled:
            from dpr_core.evaluation.official.length_controlled import add_length_controlled

            add_length_controlled(scores, rows, asked)
        document = {"models": {model: asdict(each) for model, each in scores.items()}}
        emit(document, as_json, lambda: _score_view(document["models"]))


@app.command(cls=OnceCommand)
def judge(
    answers: Annotated[Path, typer.Option(help="Answers of the model to be judged, in the benchmark's own layout.")],
    baseline: Annotated[
        list[Path],
        typer.Option(help="Answers of the model that it is compared with; several where judge prompts name several."),
    ],
    kind: FormatOption,
    questions: Annotated[
        Path | None, typer.Option(help="The benchmark's own questions; without it, those of the hub.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="MT-Bench's reference answers, shown to the judge.")] = None,
    assignments: Set = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost; ask nobody.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write every game there, one JSON object a line.")] = None,
    official: Annotated[
        Path | None, typer.Option(help="With --set prompts=...: a folder for the benchmark's own file of judgments.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Judge two answer files against each other, every pair in both orders.

    Settings are those of the judge stage: --set by.model=gpt-4o-2024-11-20 --set execution.budget_dollars=5
    """
    with reported(debug):
        from dpr_core.config.base import override, parse
        from dpr_core.config.evaluation import JudgeConfig
        from dpr_core.evaluation.judge import judging_by, judging_cost, rounds
        from dpr_core.evaluation.official.layouts import LAYOUTS, questions_of
        from dpr_core.evaluation.prices import prices
        from dpr_core.evaluation.rows import read_rows

        if references is not None and kind is not Format.mt_bench:
            raise UsageError(f"--references are MT-Bench's; leave them out for {kind.value}")
        if output is not None:
            check_output(output)
        settings, protocol = judging_by(parse(JudgeConfig, override({}, assignments), "judge"))
        if official is not None:
            if protocol is None:
                raise UsageError("--official is for a benchmark's own judge prompts; name them by --set prompts=...")
            _make(official)
        layout = LAYOUTS[kind.value]
        mine = only_model(layout, answers)
        if official is not None and protocol is not None:
            _refuse_existing(official / protocol.file(mine[0], settings.by.model))
        if references is not None:
            loaded = _with_references(questions, references)
        else:
            loaded = questions_of(layout, read_rows(questions)) if questions is not None else _hub_questions(kind)
        theirs, called = _baselines(layout, baseline, loaded, protocol)
        pairs, missing = _pairs(loaded, mine[1], theirs)
        for pair in pairs if protocol is not None else []:
            protocol.refuse(pair.question)
        names = ", ".join(dict.fromkeys(called.values()))
        summary = {"candidate": mine[0], "baseline": names, "prompts": len(pairs), "unanswered": missing}
        summary |= {
            "characters": _mean_length([pair.candidate for pair in pairs]),
            "baseline_characters": _mean_length([pair.baseline for pair in pairs]),
        }
        summary |= _degeneration(pairs)
        summary["empty_answers"] = sum(
            _is_empty(answer) for pair in pairs for answer in (pair.candidate, pair.baseline)
        )
        if kind is Format.mt_bench:
            summary |= shown_references(references, [pair.question for pair in pairs])
        if dry_run:
            cost = judging_cost(settings, pairs).as_dict() | {"prices": prices(settings.execution)}
            emit({**summary, **cost}, as_json, lambda: "\n".join(f"{name}: {value}" for name, value in cost.items()))
            return
        result, games = _judged(settings, protocol, pairs, output)
        if protocol is not None:
            others = protocol.baseline_warnings((pair.question, called[pair.question.id]) for pair in pairs)
            result["warnings"] += others
            played = rounds(pairs, protocol)
            by = [called[pair.question.id] for pair in played]
            result |= _official(protocol, played, games, mine[0], by, settings.by, official)
        emit({**summary, **result}, as_json, lambda: _judged_view(summary, result))


@app.command(cls=OnceCommand)
def export(
    artifact: Identifier,
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    kind: FormatOption,
    model: Annotated[str, typer.Option(help="What the model is called in the file.")] = "dense-path",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the answers of an artifact in a benchmark's own layout, so that the official tools can read them."""
    with reported(debug):
        from dpr_core.evaluation.official.layouts import LAYOUTS
        from tasks.artifacts.store import Store
        from tasks.stages.answer import answered, read_answers

        if file.exists():
            raise UsageError(f"{file} is there already; give another name")
        check_output(file)
        found = Store.open().fetch(artifact, stages=("answer",))
        rows = answered(read_answers(found.path))
        if not all(turns for _, turns in rows):
            raise UsageError(
                f"{found.id[:8]} holds likelihoods of given responses, and no answers that could be written"
            )
        try:
            file.write_text(LAYOUTS[kind.value].write(model, rows), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror}") from None
        written = {"id": found.id, "file": str(file), "answers": len(rows)}
        emit(written, as_json, lambda: f"{len(rows)} answers -> {file}")


def only_model(layout: "Layout", file: Path) -> "tuple[str, Answers]":
    from dpr_core.evaluation.rows import read_rows

    models = layout.answers(read_rows(file))
    if len(models) != 1:
        raise UsageError(f"{file} holds answers of {len(models)} models ({', '.join(sorted(models))}); one is needed")
    return next(iter(models.items()))


def _make(folder: Path) -> None:
    """Before anything is paid for."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"--official {folder}: {error.strerror}; name a folder that can be written") from None
    check_output(folder / "judgments")


def _refuse_existing(file: Path) -> None:
    """The official tools keep the judgments of several models in one file."""
    if file.exists():
        raise UsageError(f"--official: {file} is there already; name another folder")


def _baselines(
    layout: "Layout", files: list[Path], questions: "list[Question]", protocol: "JudgingProtocol | None"
) -> "tuple[Answers, dict[str, str]]":
    """The answers of the baseline of each question, and its name."""
    from dpr_core.evaluation.rows import read_rows

    models = {name: answers for file in files for name, answers in layout.answers(read_rows(file)).items()}
    if len(models) == 1:
        ((name, answers),) = models.items()
        return answers, {question.id: name for question in questions}
    called = {each.id: name for each in questions if protocol and (name := protocol.baseline(each))}
    if not called:
        raise UsageError(
            f"--baseline names answers of {len(models)} models ({', '.join(sorted(models))}); one is needed, unless "
            "judge prompts say which is compared with what"
        )
    if missing := sorted({*called.values()} - models.keys()):
        raise UsageError(f"the baseline {missing[0]}, which judge.prompts name, is in none of the files of --baseline")
    return {id: models[name][id] for id, name in called.items() if id in models[name]}, called


def _with_references(questions: Path | None, references: Path) -> "list[Question]":
    from dpr_core.config.official import MTBenchConfig
    from dpr_core.evaluation.benchmarks import load

    return load(MTBenchConfig(path=None if questions is None else str(questions), references=str(references)))


def _hub_questions(kind: Format) -> "list[Question]":
    from typing import get_args

    from dpr_core.config.official import Official
    from dpr_core.evaluation.benchmarks import load

    (benchmark,) = (each() for each in get_args(Official) if each.model_fields["type"].default == kind.name)
    return load(benchmark)


def _pairs(questions: "list[Question]", mine: "Answers", theirs: "Answers") -> "tuple[list[Pair], list[str]]":
    """The questions that both have answered, and those that somebody has not."""
    from dpr_core.evaluation.pairwise import Answer, Pair

    known = {question.id for question in questions}
    if unknown := sorted((mine.keys() | theirs.keys()) - known):
        raise UsageError(
            f"{len(unknown)} answers are to questions that are not in the questions file, such as {unknown[0]}"
        )
    pairs, missing = [], []
    for question in questions:
        both = [answers.get(question.id, ()) for answers in (mine, theirs)]
        if any(len(turns) != len(question.turns) for turns in both):
            missing.append(question.id)
            continue
        pairs.append(Pair(question, Answer(both[0]), Answer(both[1])))
    if not pairs:
        raise UsageError("no question has been answered by both models in all its turns")
    return pairs, missing


def _mean_length(answers: "list[Answer]") -> float:
    return sum(len(turn) for answer in answers for turn in answer.turns) / len(answers)


def _degeneration(pairs: "list[Pair]") -> dict[str, float]:
    """Repetition and refusals of both sides: a judge may not mind."""
    from dpr_core.evaluation.gold import degeneration
    from dpr_core.evaluation.gold.measures import shares

    sides = {"": [pair.candidate for pair in pairs], "baseline_": [pair.baseline for pair in pairs]}
    return {
        f"{side}{name}": share
        for side, answers in sides.items()
        for name, share in shares(degeneration.MEASURES, [degeneration.of_answer(a.turns) for a in answers]).items()
    }


def _is_empty(answer: "Answer") -> bool:
    return not all(map(str.strip, answer.turns))


def _judged(
    settings: "JudgeConfig", protocol: "JudgingProtocol | None", pairs: "list[Pair]", output: Path | None
) -> "tuple[dict[str, Any], Sequence[Game]]":
    from dpr_core.evaluation import canaries
    from dpr_core.evaluation.ask import Unreadable
    from dpr_core.evaluation.judge import build_judge, costs_money, judged_by, judged_by_warnings, rounds
    from dpr_core.evaluation.pairwise import answers_cut, judge_pairs, summarise
    from dpr_core.evaluation.questions import exact_match
    from tasks.local_home import open_home
    from tasks.running.progress import StageProgress
    from tasks.stages.judge import VERDICTS, preflight

    preflight([settings])
    home = open_home()
    judge = build_judge(settings.by, settings.execution, exact_match(str.strip), home / VERDICTS, protocol)
    canary_metrics: dict[str, float] = {}
    with StageProgress("judge") as progress:
        if costs_money(settings.by) and settings.execution.canaries:
            kept = keeping_canaries(home)
            canary_metrics = asyncio.run(canaries.try_judge(judge, pairs, settings.execution, progress.advance, kept))
        played = rounds(pairs, protocol)
        games = asyncio.run(judge_pairs(judge, played, settings.execution, progress.advance, folder=home))
    if output is not None:
        write_rows(output, (game.as_dict() for game in games))
    print(judge.status(), file=sys.stderr)
    result = summarise(games, settings.bootstrap_samples, settings.seed, (pair.question for pair in pairs))
    unreadable = Unreadable.among(games, "verdicts")
    unreadable.check(settings.execution, IN_OUTPUT)
    served = judged_by(settings.by, (game.details for game in games))
    about = [] if protocol is None else protocol.about([pair.question for pair in pairs])
    warnings = [*about, *canaries.warnings(canary_metrics), *judged_by_warnings(served)]
    counts = {"refused": unreadable.refused, "answers_cut": answers_cut(games)}
    return {**result.as_dict(), **counts, **canary_metrics, "warnings": warnings}, games


def _official(
    protocol: "JudgingProtocol",
    pairs: "list[Pair]",
    games: "Sequence[Game]",
    candidate: str,
    baselines: list[str],
    by: "ChatJudgeConfig",
    folder: Path | None,
) -> dict[str, Any]:
    from dpr_core.evaluation import protocols

    found = protocols.official(protocol, pairs, games, candidate, baselines, by)
    if folder is not None:
        try:
            found.write(folder)
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}") from None
    return {"official": found.scores}


IN_OUTPUT = "what the judge wrote is in the file of --output"


def keeping_canaries(home: Path) -> "Keep":
    """Writes the rows of the canaries, which were paid for, into a file of the home, and says where it is."""
    from tasks.stages.judge import CANARY_REPLIES

    def keep(rows: list[dict[str, Any]]) -> str:
        write_rows(home / CANARY_REPLIES, rows)
        return f"the replies are in {home / CANARY_REPLIES}"

    return keep


def write_rows(file: Path, rows: "Iterable[dict[str, Any]]") -> None:
    try:
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None


def _score_view(models: dict[str, Any]) -> "RenderableType":
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for model, found in models.items():
        view = Table(
            "", "official", "paper", box=box.SIMPLE_HEAD, title=Text(escape_control(model)), title_justify="left"
        )
        official, paper = _flat(found["official"]), _flat(found["paper"])
        for name in dict.fromkeys([*official, *paper]):
            view.add_row(escape_control(name), _shown(official.get(name)), _shown(paper.get(name)))
        view.add_row("judged", str(found["n"]), "")
        view.add_row("without a verdict", str(found["unscored"]), "")
        parts += [view, *(Text(escape_control(f"! {line}")) for line in found["warnings"]), Text("")]
    return Group(*parts)


def _flat(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores by category in lines of their own."""
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        label = "  {}" if "categor" in name else f"{name}, {{}}"
        flat |= {label.format(part): each for part, each in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return _in_category(value)
    if isinstance(value, list):
        return f"[{', '.join(_shown(each) for each in value)}]"
    return str(value)


def shown_references(file: Path | None, questions: "list[Question]") -> dict[str, Any]:
    """The file of MT-Bench's reference answers as a part of a summary, and which of them are known to be wrong."""
    from dpr_core.evaluation.official import references
    from dpr_core.hashing import hash_file

    if file is None:
        return {"references": None}
    return {"references": {"file": str(file), "sha256": hash_file(file), "wrong": references.wrong(questions)}}


def reference_line(summary: dict[str, Any]) -> str:
    used = summary["references"]
    if used is None:
        return "no reference answers were shown"
    wrong = f"; known to be wrong: {', '.join(used['wrong'])}" if used["wrong"] else ""
    return f"reference answers of {used['file']}, sha256 {used['sha256'][:12]}{wrong}"


def _in_category(score: dict[str, Any]) -> str:
    interval = "" if score["low"] is None else f" [{score['low']:.4g}, {score['high']:.4g}]"
    return f"{score['mean']:.4g}{interval}, {score['prompts']} prompts"


def _judged_view(summary: dict[str, Any], result: dict[str, Any]) -> str:
    interval = "" if result["low"] is None else f" [{result['low']:.1f}, {result['high']:.1f}]"
    rate = "no verdict could be read" if result["win_rate"] is None else f"{result['win_rate']:.1f} %{interval}"
    lines = [
        f"{escape_control(summary['candidate'])} against {escape_control(summary['baseline'])}: {rate}",
        f"win rate over {summary['prompts']} prompts, both orders, ties 0.5; in brackets a 95% interval over prompts",
        f"mean characters {summary['characters']:.0f}, of the baseline {summary['baseline_characters']:.0f}",
        f"repeated 4-grams {summary['repetition']:.1%}, of the baseline {summary['baseline_repetition']:.1%}; refusals "
        f"{summary['refusals']:.1%} and {summary['baseline_refusals']:.1%}",
        f"contradictions {_shown(result['contradiction_rate'])}, first position "
        f"{_shown(result['first_position_rate'])}, unreadable {result['unreadable']}",
    ]
    lines += [
        f"  {escape_control(name)}: {_in_category(score)}" for name, score in result.get("by_category", {}).items()
    ]
    if "official" in result:
        told = result["official"]["official"]
        lines.append(f"by the prompts of {result['official']['prompts']}, whose own score is not this win rate:")
        lines += [f"  {name} {_shown(value)}" for name, value in _flat(told).items() if value is not None]
    if summary["unanswered"]:
        lines.append(f"{len(summary['unanswered'])} questions are left out: not answered by both in all turns")
    if summary["empty_answers"]:
        lines.append(f"{summary['empty_answers']} answers are empty; they are judged as they are")
    if summary.get("references"):
        lines.append(reference_line(summary))
    if result["refused"]:
        lines.append(f"{result['refused']} of the unreadable verdicts were refused by the endpoint")
    if result["answers_cut"]:
        lines.append(f"{result['answers_cut']} answers were longer than by.max_answer_characters and were cut there")
    lines += [f"! {line}" for line in result["warnings"]]
    return "\n".join(lines)
