"""The rows of a report, from its judge artifacts and their ancestors."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpr_core.config.evaluation import AnswerConfig, Benchmark, MatchedConfig
from dpr_core.config.gold import LikelihoodConfig
from dpr_core.config.official import MTBenchConfig, OfficialBenchmarkConfig
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact
from tasks.running.workspace import Workspace
from tasks.stages.answer import (
    answered,
    asks_training_prompts,
    gold_estimates,
    read_answers,
    same_questions,
    statistics,
)
from tasks.stages.judge import GAMES, SCORES, WIN_RATE, canary_metrics_of

if TYPE_CHECKING:
    from dpr_core.evaluation.gold.measures import Measure, Values
    from dpr_core.evaluation.questions import Question
    from dpr_core.reporting.capabilities import Difference
    from dpr_core.reporting.frontier import Reached
    from dpr_core.reporting.judgments import JudgedAnswers
    from dpr_core.reporting.report import GoldMeasure, Row
    from dpr_core.reporting.sections import ArtifactLinks

BASELINE = "SFT"

EVEN = 50.0
"""Win rate of the baseline against itself."""

RESAMPLES = 2000
"""Of the prompts, for the interval of a share of right answers."""


class Judgments:
    """Rows, games and answers of the judgments that were added, one by one."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._baselines: dict[str, str] = {}
        """The digest of each benchmark's: two machines may each have made the same answers."""
        self._notes: list[str] = []
        self._trained_on: dict[tuple[str, int, int], list[str]] = {}
        """By benchmark, how many of how many prompts: the policies that were trained on them."""
        self.rows: dict[tuple[str, str], Row] = {}
        self.judged: list[JudgedAnswers] = []
        self.linked: list[ArtifactLinks] = []
        self._facts: dict[str, list[str]] = {}
        self._answers: dict[tuple[str, str], Artifact] = {}
        self._won: dict[str, list[str]] = {}
        """The benchmarks on which a judge prefers a policy to the baseline, by the policy."""
        self.differences: list[Difference] = []
        """Of what a program measures, from the baseline."""
        self._unjudged: dict[tuple[str, str], tuple[Benchmark, list[dict[str, Any]]]] = {}

    def add(self, role: str) -> None:
        """Read one judgment; the baseline's own row comes before the first that was judged against it."""
        from dpr_core.evaluation import canaries
        from dpr_core.reporting.report import Row
        from dpr_core.reporting.sections import ArtifactLinks

        judgment = self._work.input(role)
        policy, _, benchmark = role.partition(" on ")
        baseline, candidate = (self._work.artifact(judgment.inputs[side]) for side in ("baseline", "candidate"))
        sft = self._work.artifact(baseline.inputs["policy"])
        if sft.stage != "sft":
            raise UsageError(f"{role}: judged against {baseline.id[:8]}, whose answers are not those of an SFT model")
        if self._baselines.setdefault(benchmark, baseline.digest) != baseline.digest:
            raise UsageError(f"the judgments on {benchmark} are against different SFT answers; report them apart")
        ours, theirs = read_answers(candidate.path), read_answers(baseline.path)
        asked = AnswerConfig.model_validate(candidate.config).benchmark
        measured = _measured(ours, asked)
        self._note_references(benchmark, asked, [question for question, _ in answered(ours)])
        if (BASELINE, benchmark) not in self.rows:
            of_baseline = _measured(theirs, asked)
            self.rows[BASELINE, benchmark] = Row(BASELINE, benchmark, is_baseline=True, **of_baseline)
            self._answers[BASELINE, benchmark] = baseline
            self._note(BASELINE, benchmark, baseline, theirs)
            self.linked.append(ArtifactLinks(BASELINE, benchmark, {"policy": sft.id, "answers": baseline.id}))
        self.linked.append(
            ArtifactLinks(
                policy,
                benchmark,
                {"policy": candidate.inputs["policy"], "answers": candidate.id, "judgment": judgment.id},
            )
        )
        for complaint in canaries.warnings(canary_metrics_of(judgment, self._work.store.published(judgment.id))):
            self._notes.append(f"Canaries of {role}: {complaint}")
        judged = _judged(policy, benchmark, judgment, ours, theirs)
        self.judged.append(judged)
        row = self.rows[policy, benchmark] = _row(
            judged, judgment, candidate, sft, measured, self.rows[BASELINE, benchmark].response_tokens
        )
        if judgment.config["by"]["type"] != "verifiable" and row.win_rate_interval and row.win_rate_interval[0] > EVEN:
            self._won.setdefault(policy, []).append(benchmark)
        self._compare(policy, benchmark, asked, ours, theirs)
        self._answers[policy, benchmark] = candidate
        self._note(policy, benchmark, candidate, ours)
        known = self._work.store.published(candidate.id).results
        for name, value in (
            ("Backbone", _backbone(sft)),
            *((f"{role}, matched", matched) for matched in [_matched(known)] if matched),
            (f"{benchmark} judged by", judged.judge),
            *((f"{role}, the benchmark's own score", own) for own in [_own_score(judgment)] if own),
            (f"{benchmark} answered", _answered(ours, candidate)),
        ):
            self._fact(name, value)

    def add_answers(self, role: str) -> None:
        """Read what nobody judges: answers that a program checks, or the likelihoods of given responses."""
        from dpr_core.reporting.report import Row
        from dpr_core.reporting.sections import ArtifactLinks

        answers = self._work.input(role)
        policy, _, benchmark = role.partition(" on ")
        asked = AnswerConfig.model_validate(answers.config).benchmark
        rows = read_answers(answers.path)
        if not isinstance(asked, LikelihoodConfig):
            if isinstance(asked, OfficialBenchmarkConfig):
                raise UsageError(f"{role}: {answers.id[:8]} holds answers to {asked.type}; report what judged them")
            self._unjudged[policy, benchmark] = (asked, rows)
            self._fact(f"{benchmark} answered", _answered(rows, answers))
        values = _measured(rows, asked) | {"is_judged": False, "is_baseline": policy == BASELINE}
        self.rows[policy, benchmark] = Row(policy, benchmark, **values)
        self._note(policy, benchmark, answers, rows)
        self.linked.append(
            ArtifactLinks(policy, benchmark, {"policy": answers.inputs["policy"], "answers": answers.id})
        )

    def _fact(self, name: str, value: str) -> None:
        if value not in self._facts.setdefault(name, []):
            self._facts[name].append(value)

    def compare_unjudged(self) -> None:
        """The checked answers of every policy with those of the baseline, once all are there."""
        for (policy, benchmark), (asked, rows) in self._unjudged.items():
            if policy != BASELINE and (BASELINE, benchmark) in self._unjudged:
                self._compare(policy, benchmark, asked, rows, self._unjudged[BASELINE, benchmark][1])

    def _compare(
        self,
        policy: str,
        benchmark: str,
        asked: Benchmark,
        ours: list[dict[str, Any]],
        theirs: list[dict[str, Any]],
    ) -> None:
        from dpr_core.reporting.capabilities import compared

        asked_ours, asked_theirs = ([question for question, _ in answered(rows)] for rows in (ours, theirs))
        if not same_questions(asked_ours, asked_theirs):
            raise UsageError(f"the answers of {policy} and of {BASELINE} on {benchmark} are not to the same questions")
        sides = [list(map(_by_a_program, rows)) for rows in (ours, theirs)]
        self.differences += compared(policy, benchmark, _measures(asked), *sides)

    def _note_references(self, benchmark: str, asked: Benchmark, questions: "Sequence[Question]") -> None:
        """Which reference answers the judge was shown, and what is known to be wrong with them."""
        from dpr_core.evaluation.official import references

        if not isinstance(asked, MTBenchConfig):
            return
        file, content = asked.references, asked.references_content or ""
        used = "none" if file is None else f"{Path(file).name}, sha256 {content[:12]}"
        if used not in self._facts.setdefault(f"{benchmark} references", []):
            self._facts[f"{benchmark} references"].append(used)
        for line in references.wrong_warnings(questions):
            if (note := f"{benchmark}: {line}.") not in self._notes:
                self._notes.append(note)

    def _note(self, policy: str, benchmark: str, answers: Artifact, rows: list[dict[str, Any]]) -> None:
        """What was cut or left out before it was measured, policies that are not what they should be, and questions
        that the policy had learned from."""
        from dpr_core.evaluation.gold.measures import answers_cut, cut_warning

        settings = AnswerConfig.model_validate(answers.config)
        results = self._work.store.published(answers.id).results
        cut, left_out = answers_cut(rows), int(results.get("gold/left_out", 0))
        if isinstance(settings.benchmark, LikelihoodConfig):
            short = f"{cut:,} responses were cut at answer.max_response_tokens, and {left_out:,} prompts were too long"
            warning = f"{short} and left out" if cut or left_out else None
        else:
            warning = cut_warning(cut, len(rows))
        if results.get("answer/kept_reached") == 0:
            self._notes.append(
                f"{policy} on {benchmark}: its run never reached this KL to SFT; this is the policy that it ended with."
            )
        if isinstance(settings.policy, MatchedConfig) and (matched := _matched(results)):
            wanted, reached = results["match/target"], results["match/reached"]
            if abs(reached - wanted) > settings.policy.match_tolerance * wanted:
                self._notes.append(f"{policy} on {benchmark} is not matched as closely as it should be: {matched}.")
        if warning is not None:
            self._notes.append(f"{policy} on {benchmark}: {warning}.")
        known = int(results.get("answer/trained_on", 0))
        if known and not asks_training_prompts(settings.benchmark):
            self._trained_on.setdefault((benchmark, known, len(rows)), []).append(policy)

    def frontiers(self) -> "dict[str, list[Reached]]":
        """What every policy that has a KL to SFT reaches on each benchmark of results, in the order of the rows."""
        from dpr_core.evaluation.gold.likelihood import NATS
        from dpr_core.reporting.frontier import Reached

        names = {}
        for (policy, _), answers in self._answers.items():
            if answers.config["policy"]["type"] == "as_trained":
                names[_origin(policy, answers)] = policy
        likelihoods = {
            policy: row.gold[NATS.name].value
            for (policy, _), row in self.rows.items()
            if not row.is_judged and row.gold and NATS.name in row.gold
        }
        found: dict[str, list[Reached]] = {}
        for (policy, benchmark), answers in self._answers.items():
            row = self.rows[policy, benchmark]
            if row.kl_to_sft is not None and (measure := _primary(row, answers)) is not None:
                origin = _origin(policy, answers)
                line = names.get(origin, origin.partition(" of ")[0])
                entropy = self._work.store.published(answers.id).results.get("answers/entropy")
                found.setdefault(benchmark, []).append(
                    Reached(policy, line, row.kl_to_sft, measure, entropy, row.response_tokens, likelihoods.get(policy))
                )
        return found

    @property
    def provenance(self) -> dict[str, str]:
        """Where it all comes from, by the name of the fact."""
        return {name: "; ".join(values) for name, values in self._facts.items()}

    def complaints(self) -> list[str]:
        """What is wrong with the judgments, each thing once."""
        from dpr_core.reporting.capabilities import losses
        from dpr_core.reporting.judgments import judging_warnings

        overlaps = [
            f"{known:,} of the {asked:,} prompts of {benchmark} are among those that "
            f"{', '.join(policies)} learned from."
            for (benchmark, known, asked), policies in self._trained_on.items()
        ]
        lost = losses(self._won, self.differences, BASELINE)
        return [*lost, *self._notes, *overlaps, *judging_warnings(self.judged)]


def _judged(
    policy: str, benchmark: str, judgment: Artifact, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> "JudgedAnswers":
    from dpr_core.evaluation.pairwise import Game
    from dpr_core.reporting.judgments import JudgedAnswers, JudgedPrompt, ModelAnswer

    games: dict[str, list[Game]] = {}
    with (judgment.path / GAMES).open(encoding="utf-8") as lines:
        for game in map(Game.of, map(json.loads, lines)):
            games.setdefault(game.question_id, []).append(game)
    prompts = tuple(
        JudgedPrompt(
            question,
            ModelAnswer(turns, mine["tokens"]),
            ModelAnswer(tuple(its["turns"]), its["tokens"]),
            tuple(games.get(question.id, ())),
        )
        for (question, turns), mine, its in zip(answered(ours), ours, theirs, strict=True)
    )
    settings = judgment.config
    return JudgedAnswers(
        policy, benchmark, prompts, _described(settings["by"]), settings["bootstrap_samples"], settings["seed"]
    )


def _row(
    judged: "JudgedAnswers",
    judgment: Artifact,
    candidate: Artifact,
    sft: Artifact,
    measured: dict[str, Any],
    baseline_tokens: float,
) -> "Row":
    from dpr_core.reporting.published import published
    from dpr_core.reporting.report import Row

    win = json.loads((judgment.path / WIN_RATE).read_text(encoding="utf-8"))
    adjusted = judged.length_adjusted()
    # A judge that checks results cannot favour a position.
    sees_order = judgment.config["by"]["type"] != "verifiable"
    return Row(
        judged.policy,
        judged.benchmark,
        win_rate=win["win_rate"],
        win_rate_interval=None if win["low"] is None else (win["low"], win["high"]),
        length_adjusted_rate=None if adjusted is None else adjusted.rate,
        length_adjusted_interval=None if adjusted is None else (adjusted.low, adjusted.high),
        baseline_tokens=baseline_tokens,
        contradiction_rate=win["contradiction_rate"] if sees_order else None,
        first_position_rate=win["first_position_rate"] if sees_order else None,
        unreadable_rate=win["unreadable_share"],
        scored_prompts=win["scored_prompts"],
        published=published(_backbone(sft), judged.policy, candidate.config["benchmark"]["type"]),
        **measured,
    )


def _measured(rows: list[dict[str, Any]], benchmark: Benchmark) -> dict[str, Any]:
    from dpr_core.evaluation import benchmarks
    from dpr_core.reporting.report import GoldMeasure

    values, estimates, gold = statistics(rows), gold_estimates(benchmark, rows), benchmarks.gold(benchmark)
    shown = {
        each.name: GoldMeasure(each.title, *estimates[each.name], each.is_share)
        for each in (gold.measures if gold else ())
        if each.name in estimates
    }
    return {
        "prompts": int(values["answer/prompts"]),
        "response_tokens": values["answer/response_tokens"],
        "cut_share": values["answer/cut_share"],
        "accuracy": values.get("answer/accuracy"),
        "kl_to_sft": values.get("answer/kl_to_sft"),
        "gold": shown or None,
        "repetition": values.get("answer/repetition"),
        "refusals": values.get("answer/refusals"),
    }


def _measures(asked: Benchmark) -> "list[Measure]":
    """What a program measures of answers to a benchmark."""
    from dpr_core.evaluation import benchmarks
    from dpr_core.evaluation.gold import degeneration
    from dpr_core.evaluation.gold.measures import Measure

    gold = benchmarks.gold(asked)
    return [*(gold.measures if gold else [Measure("right", "accuracy %")]), *degeneration.MEASURES]


def _by_a_program(row: Mapping[str, Any]) -> "Values":
    from dpr_core.evaluation.gold import degeneration

    right = {} if row["right"] is None else {"right": float(row["right"])}
    return {**right, **row.get("gold", {}), **degeneration.of_answer(row["turns"])}


def _origin(policy: str, answers: Artifact) -> str:
    """What is the same of policies that are one at several strengths."""
    kind, source = answers.config["policy"]["type"], answers.inputs["policy"]
    if kind in ("as_trained", "kept"):
        return source
    return f"{kind} of {source}" if kind in ("extrapolated", "contrastive") else policy


def _primary(row: "Row", answers: Artifact) -> "GoldMeasure | None":
    """The first gold measure of a benchmark that has some, else the share of right answers."""
    from dpr_core.reporting.report import GoldMeasure
    from dpr_core.stats import mean_interval

    if row.gold:
        return next(iter(row.gold.values()))
    if row.accuracy is None:
        return None
    interval = mean_interval([float(each["right"]) for each in read_answers(answers.path)], RESAMPLES, 0)
    return GoldMeasure("accuracy %", row.accuracy, *(interval or (None, None)), is_share=True)


def _answered(rows: list[dict[str, Any]], answers: Artifact) -> str:
    return f"{len(rows):,} prompts, temperature {answers.config['temperature']:g}"


def _matched(results: Mapping[str, float]) -> str:
    """What was found for a policy that is like another; empty where nothing was."""
    if "match/target" not in results:
        return ""
    what, measure = ("temperature", "entropy") if "match/temperature" in results else ("k", "KL to SFT")
    return (
        f"{what} {results[f'match/{what}']:.4g}; {measure} {results['match/reached']:.4g} for "
        f"{results['match/target']:.4g}, in {results['match/trials']:.0f} trials"
    )


def _own_score(judgment: Artifact) -> str:
    """What a benchmark's own judge prompts came to by its own rules; empty where others were used."""
    file = judgment.path / SCORES
    if not file.is_file():
        return ""
    found = json.loads(file.read_text(encoding="utf-8"))
    numbers = [f"{name} {value:.4g}" for name, value in found["official"].items() if isinstance(value, int | float)]
    return f"judge prompts {found['prompts']}; not the win rate of the tables: {', '.join(numbers)}"


def _backbone(sft: Artifact) -> str:
    """Its name on the hub, or that of its folder."""
    name: str = (sft.config["backbone"] or {}).get("name", "the lab's own")
    return name.rstrip("/").rpartition("/")[2] or name


def _described(settings: Mapping[str, Any]) -> str:
    """Settings in a line: their type first, then what is set, hashes by their beginning."""
    values = {name: value for name, value in settings.items() if name != "type" and value is not None}
    if isinstance(values.get("template"), str):
        values["template"] = values["template"][:12]
    return ", ".join([settings["type"], *(f"{name} {value}" for name, value in values.items())])
