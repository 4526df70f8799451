"""The pages of results: templates in perf/pages, and what they show, computed from what docs/results keeps."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpr_core.config.base import read_yaml
from dpr_core.config.reinforce import KLStopConfig, WitnessStopConfig
from dpr_core.experiments import contrasts, measured
from dpr_core.experiments.contrasts import Outcome
from dpr_core.experiments.effect_claims import ClaimVerdict, corrected
from dpr_core.experiments.exhibits import EXHIBITS, Exhibit
from dpr_core.experiments.measured import Answers, Arm
from dpr_core.experiments.observations import Estimate, estimate_of
from dpr_core.experiments.results import claims_table, p_text
from dpr_core.reporting.plots import Valued
from dpr_core.reporting.tables import NONE, Table
from dpr_core.training.guard import GUARDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = Path(__file__).parent / "pages"
REAL = DOCS / "results" / "real"
MARKERS = "<!-- evidence:begin -->\n", "<!-- evidence:end -->"
ONE_REWARD = 0.95
"""Rewards of two references that correlate above this are one reward."""

SHOWN = ("return", "kl", "entropy", "length", "log_sft", "contrast")
"""Of a rollout, over iterations."""


def write() -> Iterator[Path]:
    """Every page that these results make."""
    evidence = Evidence.read()
    evidence.draw(DOCS / "images")
    for name in ("results", "lab-results"):
        file = DOCS / f"{name}.md"
        file.write_text(evidence.page(name), encoding="utf-8")
        yield file
    readme = ROOT / "README.md"
    readme.write_text(with_front(readme.read_text(encoding="utf-8"), evidence.page("front")), encoding="utf-8")
    yield readme
    lab = DOCS / "results.json"
    lab.write_text(json.dumps(evidence.lab.document, indent=1) + "\n", encoding="utf-8")
    yield lab


def with_front(text: str, block: str) -> str:
    """The front page with its block."""
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    return before + start + block + end + after


@dataclass(frozen=True)
class Lab:
    """The lab's exhibits, measured once: effects are kept, verdicts are decided anew."""

    kept: Mapping[str, Any]

    def verdicts(self, exhibit: Exhibit) -> list[ClaimVerdict]:
        """On what an exhibit asks, corrected for the number of claims."""
        stored = {each["claim"]: each for each in self.kept["claims"]}
        return corrected([ClaimVerdict.of(stored[each.name]) for each in exhibit.claims if each.name in stored])

    @property
    def document(self) -> dict[str, Any]:
        claims = [each.as_dict() for exhibit in EXHIBITS.values() for each in self.verdicts(exhibit)]
        for each in claims:
            short = {name: measured.rounded(each[name]) for name in ("p_value", "adjusted") if each[name] is not None}
            each.update(short, **{name: list(value) for name, value in each.items() if isinstance(value, tuple)})
        return {**self.kept, "claims": claims}

    def table(self, name: str, withdrawn: Sequence[str]) -> str:
        """The verdicts on an exhibit's claims as Markdown."""
        exhibit = EXHIBITS[name]
        says = {each.name: each.says for each in exhibit.claims}
        found = claims_table(self.verdicts(exhibit))
        rows = [[row[0], row[1], says[row[0]], *row[2:-1]] for row in found.rows]
        for row in rows:
            row[3] = "withdrawn" if row[0] in withdrawn else row[3]
        headings = [found.headings[0], "by", "in words", *found.headings[2:-1]]
        return Table(headings, rows, 4).as_markdown()

    def counts(self, withdrawn: Sequence[str]) -> dict[str, int]:
        found = [each for exhibit in EXHIBITS.values() for each in self.verdicts(exhibit)]
        told = ["withdrawn" if each.claim in withdrawn else each.verdict for each in found]
        return {"claims": len(found), **{each.replace(" ", "_"): told.count(each) for each in set(told)}}


@dataclass(frozen=True)
class Evidence:
    """All there is, and what a template asks of it."""

    asked: contrasts.Contrasts
    arms: Sequence[Arm]
    references: Sequence[Mapping[str, Any]]
    lab: Lab
    withdrawn: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path = REAL) -> "Evidence":
        return cls(
            contrasts.load(DOCS / "results" / "contrasts.yaml"),
            measured.read(folder) if folder.is_dir() else [],
            [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("_references-*.json"))],
            Lab(json.loads((DOCS / "results.json").read_text(encoding="utf-8"))),
            read_yaml((DOCS / "results" / "withdrawn.yaml").read_text(encoding="utf-8"), "withdrawn.yaml")["withdrawn"],
        )

    def page(self, name: str) -> str:
        environment = Environment(
            loader=FileSystemLoader(PAGES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        text = environment.get_template(f"{name}.md.j2").render(e=self, exhibits=EXHIBITS, NONE=NONE)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    @cached_property
    def outcomes(self) -> list[Outcome]:
        return contrasts.outcomes(self.asked, self.arms)

    @property
    def withdrawn_claims(self) -> list[str]:
        """The lab's claims whose verdicts no longer count."""
        return [claim for each in self.withdrawn for claim in each.get("claims", [])]

    def verdict(self, outcome: Outcome) -> str:
        """What a primary contrast came to, in words that the numbers choose."""
        planned = len(self.asked.backbones[outcome.backbone].seeds)
        verdict = outcome.verdict(self.asked.level)
        if verdict == "not yet run":
            return "not yet run"
        done = f"{len(outcome.differences)} of {planned} seeds"
        if verdict == "unfinished" or outcome.effect is None or outcome.interval is None:
            return f"no verdict before every seed is there: {done}"
        if verdict == "no difference seen":
            reach = max(map(abs, outcome.interval))
            return f"no difference was seen; what was measured speaks against one of more than {reach:.1f} points"
        other = "DPR is ahead" if verdict == "ahead" else "DPR is behind"
        return f"{other} by {abs(outcome.effect):.1f} points"

    def contrasts_table(self) -> str:
        rows = []
        for each in self.outcomes:
            seeds = f"{len(each.differences)} of {len(self.asked.backbones[each.backbone].seeds)}"
            effect = NONE if each.effect is None else f"{each.effect:+.1f}"
            interval = NONE if each.interval is None else "{:+.1f} to {:+.1f}".format(*each.interval)
            told = [each.backbone, each.contrast.says, self.verdict(each), effect, interval, p_text(each.adjusted)]
            rows.append([*told, seeds, self._match(each)])
        headings = ["backbone", "contrast", "verdict", "points", "95% interval", "p, Holm", "seeds", "matched"]
        return Table(headings, rows, 3).as_markdown()

    def _match(self, outcome: Outcome) -> str:
        """How equal both arms were made, as means over seeds."""
        pairs = [(a, b) for a, b in outcome.matches.values() if a is not None and b is not None]
        if not pairs:
            return NONE
        means = [sum(each) / len(pairs) for each in zip(*pairs, strict=True)]
        return "{:.3f} and {:.3f}".format(*means)

    def runs(self) -> list[tuple[str, str]]:
        """Backbones and tasks that anything was measured of."""
        return list(dict.fromkeys((each.backbone, each.task) for each in self.arms))

    def says(self, backbone: str) -> str:
        known = self.asked.backbones.get(backbone)
        return known.says if known else next((a.backbone_says for a in self.arms if a.backbone == backbone), "")

    def names(self, backbone: str, task: str, *, starting: Sequence[str] = ()) -> list[str]:
        """The arms of a task, SFT and DPR first; those that begin with a word, or whose run differs by one."""
        same = [each for each in self.arms if (each.backbone, each.task) == (backbone, task)]
        if starting:
            same = [each for each in same if each.name.startswith(tuple(starting)) or each.variant in starting]
        order = {"SFT": 0, "DPR": 1}
        return sorted({each.name for each in same}, key=lambda name: (order.get(name, 2), name))

    def seeds(self, backbone: str, task: str, name: str) -> dict[int, Arm]:
        """The runs of an arm that count: not those that chose the setting, where there are others."""
        every = dict(measured.seeds_of(self.arms, backbone, task, name))
        chose = self.asked.setting.chosen_on.seed
        return {seed: arm for seed, arm in every.items() if seed != chose} or every

    def benchmark(self, backbone: str, task: str) -> str:
        """The one that a task is about."""
        found = dict.fromkeys(
            name for a in self.arms if (a.backbone, a.task) == (backbone, task) for name in a.benchmarks
        )
        return self.asked.benchmark if self.asked.benchmark in found else next(iter(found), self.asked.benchmark)

    def measure(self, backbone: str, task: str, benchmark: str = "") -> str:
        """Of a benchmark, if not another that of the task: whether a result is right, else the first gold measure."""
        benchmark = benchmark or self.benchmark(backbone, task)
        found = [
            name
            for a in self.arms
            if (a.backbone, a.task) == (backbone, task) and benchmark in a.benchmarks
            for name in a.benchmarks[benchmark].by_prompt
        ]
        return self.asked.measure if self.asked.measure in found or not found else found[0]

    def arms_table(self, backbone: str, task: str, starting: Sequence[str] = ()) -> str:
        """A row an arm: means over seeds; differences from SFT are paired by seed, and exploratory."""
        main, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        of_task = [a for a in self.arms if (a.backbone, a.task) == (backbone, task)]
        others = {b: self.measure(backbone, task, b) for a in of_task for b in a.benchmarks if b != main}
        headings = ["arm", f"{main}: {measure}", "minus SFT", *(f"{b}: {what}" for b, what in others.items())]
        headings += ["entropy", "KL", "tokens", "cut %", "seconds", "seeds"]
        baseline = self.seeds(backbone, task, "SFT")
        rows = []
        for name in self.names(backbone, task, starting=starting):
            arms = self.seeds(backbone, task, name)
            on_main = {seed: arm.benchmarks[main] for seed, arm in arms.items() if main in arm.benchmarks}
            paired = [
                (a, b)
                for seed, each in on_main.items()
                if seed in baseline
                and main in baseline[seed].benchmarks
                and (a := _gold(each, measure)) is not None
                and (b := _gold(baseline[seed].benchmarks[main], measure)) is not None
            ]
            row = [name, _text([_gold(each, measure) for each in on_main.values()])]
            row.append(NONE if name == "SFT" else _text([a - b for a, b in paired], sign=True))
            row += [
                _text([_gold(arm.benchmarks[b], what) for arm in arms.values() if b in arm.benchmarks], brackets=False)
                for b, what in others.items()
            ]
            means = [("entropy", 3, 1), ("kl_to_sft", 3, 1), ("response_tokens", 1, 1), ("cut_share", 1, 100)]
            row += [
                _text([_times(each.mean(what), factor) for each in on_main.values()], digits, brackets=False)
                for what, digits, factor in means
            ]
            row += [_text([cost(arm) for arm in arms.values()], 0, brackets=False), str(len(arms))]
            rows.append(row)
        return Table(headings, rows).as_markdown()

    def compared(self, backbone: str, task: str, first: str, second: str) -> str:
        """One arm against another in words that the interval over seeds chooses; empty below two seeds."""
        benchmark, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        mine, other = self.seeds(backbone, task, first), self.seeds(backbone, task, second)
        both = [
            (a, b)
            for seed in mine.keys() & other.keys()
            if (a := _gold(mine[seed].benchmarks[benchmark], measure)) is not None
            and (b := _gold(other[seed].benchmarks[benchmark], measure)) is not None
        ]
        if len(both) < 2:
            return ""
        effect, interval, _ = estimate_of([a - b for a, b in both])
        assert interval is not None
        points = "{:+.1f} points, {:+.1f} to {:+.1f}".format(effect, *interval)
        if interval[0] <= 0 <= interval[1]:
            return f"no difference was seen ({points})"
        return f"{first} is {'ahead' if effect > 0 else 'behind'} ({points})"

    def training_table(self, backbone: str, task: str) -> str:
        """Where every trained arm ended, by its own rollouts: means over seeds."""
        rows = []
        for name in self.names(backbone, task):
            curves = [
                arm.training["rollout"]
                for arm in self.seeds(backbone, task, name).values()
                if "rollout" in arm.training
            ]
            if curves:
                ends = [[curve[what][-1] if what in curve else None for curve in curves] for what in SHOWN]
                rows.append([name, *(_text(each, 3, brackets=False) for each in ends)])
        return Table(["arm", *SHOWN], rows).as_markdown() if rows else ""

    def correlations(self) -> list[dict[str, Any]]:
        """Of each SFT run: the least correlation of token rewards among its checkpoints, and with the backbone's."""
        found = []
        for each in self.references:
            inside = [i for i, at in enumerate(each["references"]) if at > 0]
            row = {"backbone": each["backbone"], "task": each["task"], "seed": each["seed"]}
            for kind in ("demonstrations", "answers"):
                matrix = each[kind]["token_correlation"]
                row[kind] = min(matrix[i][j] for i in inside for j in inside)
                row[f"{kind} with backbone"] = min(value for line in matrix for value in line)
            found.append(row)
        return found

    def correlations_table(self) -> str:
        kinds = [f"{kind}{more}" for more in ("", " with backbone") for kind in ("demonstrations", "answers")]
        rows = [
            [each["backbone"], each["task"], str(each["seed"]), *(f"{each[kind]:.3f}" for kind in kinds)]
            for each in self.correlations()
        ]
        return Table(["backbone", "task", "seed", *kinds], rows, 2).as_markdown()

    def asks_figure3(self) -> list[str]:
        """Backbones on which another checkpoint makes another reward."""
        return sorted({each["backbone"] for each in self.correlations() if each["answers"] <= ONE_REWARD})

    def guards_table(self) -> str:
        """Of runs that go wrong on purpose: the iteration at which each guard speaks, and the gold measure falls."""
        rows = []
        for arm in self.arms:
            if arm.variant.startswith("wrong") and "rollout" in arm.training:
                curve, falls = arm.training["rollout"], self.fall_of(arm)
                spoken = [speaks(rule, curve) for rule in RULES]
                rows.append([arm.backbone, arm.variant, str(arm.seed), *map(_iteration, [falls, *spoken])])
        headings = ["backbone", "run", "seed", "gold falls", *RULES]
        return Table(headings, rows, 2).as_markdown() if rows else ""

    def fall_of(self, arm: Arm) -> int | None:
        """The iteration of the first policy kept along a run whose gold measure is below that of SFT."""
        benchmark, measure = self.benchmark(arm.backbone, arm.task), self.measure(arm.backbone, arm.task)
        same = [
            each
            for each in self.arms
            if (each.backbone, each.task, each.variant, each.seed) == (arm.backbone, arm.task, arm.variant, arm.seed)
        ]
        golds = {each.arm: _gold(each.benchmarks[benchmark], measure) for each in same if benchmark in each.benchmarks}
        sft, kls = golds.get("SFT"), arm.training["rollout"]["kl"]
        fallen = []
        for each in same:
            policy = each.settings.get("answer", {}).get("policy", {})
            gold = golds.get(each.arm)
            if policy.get("type") == "kept" and sft is not None and gold is not None and gold < sft:
                reached = [i for i, kl in enumerate(kls, start=1) if kl is not None and kl >= policy["kl"]]
                fallen += reached[:1]
        return min(fallen, default=None)

    def cost(self, backbone: str, task: str, name: str) -> float | None:
        """Mean seconds of what an arm needs beyond SFT, or of SFT itself."""
        return mean([cost(arm) for arm in self.seeds(backbone, task, name).values()])

    def hours(self) -> float:
        """What all of this took, every artifact counted once."""
        stages = {
            arm.digests.get(stage, f"{arm.file} {stage}"): s for arm in self.arms for stage, s in arm.seconds.items()
        }
        answers = [each.seconds or 0.0 for arm in self.arms for each in arm.benchmarks.values()]
        return (sum(stages.values()) + sum(answers)) / 3600

    def draw(self, folder: Path) -> None:
        """The figures, of what there is."""
        from dpr_core.reporting import plots

        decided = [each for each in self.outcomes if each.effect is not None and each.interval is not None]
        if decided:
            rows = [(f"{e.backbone}, {e.contrast.name}", e.effect, *e.interval) for e in decided if e.interval]
            plots.intervals(folder / "contrasts.png", "DPR minus the other arm, points, 95%", rows, even=0)
        for backbone, task in self.runs():
            if panels := self.frontier(backbone, task):
                file = folder / self.frontier_file(backbone, task)
                plots.bands(file, f"{backbone}, {task}", "KL to SFT, nats an answer", panels)
        if self.references:
            plots.lines(
                folder / "references.png",
                "Correlation of token rewards with those of the middle checkpoint, answers",
                "reference",
                {f"{r['backbone']} {r['task']} seed {r['seed']}": _middle(r) for r in self.references},
            )

    def frontier_file(self, backbone: str, task: str) -> str:
        return measured.file_name("frontier", backbone, task, seed=0).replace("-seed0.json", ".png")

    def frontier(self, backbone: str, task: str) -> dict[str, dict[str, list[tuple[float, Valued]]]]:
        """Quantities over KL to SFT: a point an arm, and a line through the policies that were kept along a run."""
        benchmark, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        panels: dict[str, dict[str, list[tuple[float, Valued]]]] = {}
        for name in self.names(backbone, task):
            arms = list(self.seeds(backbone, task, name).values())
            found = [arm.benchmarks[benchmark] for arm in arms if benchmark in arm.benchmarks]
            kl = mean([each.mean("kl_to_sft") for each in found])
            policy = arms[0].settings.get("answer", {}).get("policy", {})
            series = f"along {policy.get('of', 'DPR')}" if policy.get("type") == "kept" else name
            for what in dict.fromkeys((measure, "entropy", "response_tokens")):
                values = [value for each in found if (value := _gold(each, what)) is not None]
                if kl is not None and values:
                    middle, interval, _ = estimate_of(values)
                    panels.setdefault(what, {}).setdefault(series, []).append(
                        (kl, (middle, *(interval or (middle,) * 2)))
                    )
        for each in panels.values():
            for points in each.values():
                points.sort()
        return panels if len(panels.get(measure, {})) > 1 else {}


def _middle(references: Mapping[str, Any]) -> list[tuple[float, float]]:
    at = references["references"]
    middle = min(range(len(at)), key=lambda i: abs(at[i] - 0.5))
    return list(zip(at, references["answers"]["token_correlation"][middle], strict=True))


def _gold(answers: Answers, measure: str) -> float | None:
    """In percent where results are right or not."""
    return _times(answers.mean(measure), 100 if measure == "right" else 1)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def cost(arm: Arm) -> float | None:
    """Seconds that an arm took to make beyond the SFT run that all share; SFT's own for SFT."""
    for stage in ("reinforce", "self_play", "continued_sft"):
        if stage in arm.seconds:
            return arm.seconds[stage]
    return arm.seconds.get("sft") if arm.arm == "SFT" else 0.0


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _text(values: Sequence[float | None], digits: int = 1, *, sign: bool = False, brackets: bool = True) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    found: Estimate = estimate_of(known)
    form = f"{'+' if sign else ''}.{digits}f"
    text = format(found.mean, form)
    if brackets and found.interval is not None:
        text += " [{}, {}]".format(*(format(value, form) for value in found.interval))
    return text


def _iteration(value: int | None) -> str:
    return "never" if value is None else str(value)


def _falls_to(name: str, share: float) -> Any:
    return lambda first, now: now[name] is not None and now[name] < share * first[name]


def _leaves(name: str, share: float) -> Any:
    return lambda first, now: now[name] is not None and abs(now[name] / first[name] - 1) > share


RULES: Mapping[str, Any] = {
    "KL above 0.5": KLStopConfig(),
    "witness": WitnessStopConfig(),
    "entropy halved": _falls_to("entropy", 0.5),
    "length off by a quarter": _leaves("length", 0.25),
}
"""What may speak before a gold measure falls."""


def speaks(rule: str, curve: Mapping[str, Sequence[float | None]]) -> int | None:
    """The first iteration at which a rule would have ended a run that showed this."""
    check = RULES[rule]
    rows = [dict(zip(curve, values, strict=True)) for values in zip(*curve.values(), strict=True)]
    if callable(check):
        return next((i for i, row in enumerate(rows, start=1) if check(rows[0], row)), None)
    guard = GUARDS[type(check)](check)
    for i, row in enumerate(rows, start=1):
        if guard.watch({f"rollout/{name}": value for name, value in row.items() if value is not None}).stop:
            return i
    return None
