"""The pages of results: templates in perf/pages, and what they show, computed from what docs/results keeps."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpr_core.config.base import read_yaml
from dpr_core.evaluation.benchmarks import KINDS
from dpr_core.experiments import contrasts, measured
from dpr_core.experiments.contrasts import Outcome
from dpr_core.experiments.effect_claims import ClaimVerdict, corrected
from dpr_core.experiments.exhibits import EXHIBITS, Exhibit
from dpr_core.experiments.measured import Answers, Arm, comparable
from dpr_core.experiments.observations import Estimate, estimate_of
from dpr_core.experiments.results import claims_table, p_text
from dpr_core.reporting.plots import Valued
from dpr_core.reporting.tables import NONE, Table
from perf.hindsight import RULES, speaks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = Path(__file__).parent / "pages"
REAL = DOCS / "results" / "real"
MARKERS = "<!-- evidence:begin -->\n", "<!-- evidence:end -->"
ONE_REWARD = 0.95
"""Rewards of two references that correlate above this are one reward."""

SHARES = {each.name for kind in KINDS.values() if kind.gold for each in kind.gold.measures if each.is_share}
"""Measures that are shown in percent."""

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "reference": ("reference",),
    "settings": ("gamma", "whiten", "bfloat16", "float32"),
    "wrong": ("wrong",),
}
"""Arms that stand in a section of their own: how their names, or those of their variants, begin. Those of the last go
wrong on purpose, and stand nowhere else."""

LIKELIHOOD = "likelihood"
"""The benchmark of held-out demonstrations."""

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
            low, high = outcome.interval
            told = (
                "no difference was seen; what was measured speaks against one of more than "
                f"{max(-low, high):.1f} points"
                if low <= 0 <= high
                else f"not decided: {outcome.effect:+.1f} points are within chance once Holm counts all contrasts"
            )
        else:
            told = f"{outcome.contrast.first} is {verdict} by {abs(outcome.effect):.1f} points"
        if outcome.unequal:
            told += f", but the arms were not made equal ({outcome.contrast.matched}: {self._match(outcome)})"
        return told

    @property
    def any_ahead(self) -> bool:
        """Whether DPR is ahead in any contrast whose arms were equal in what they should be."""
        return any(each.verdict(self.asked.level) == "ahead" and not each.unequal for each in self.outcomes)

    def contrasts_table(self) -> str:
        rows = []
        for each in self.outcomes:
            effect = NONE if each.effect is None else f"{each.effect:+.1f}"
            interval = NONE if each.interval is None else "{:+.1f} to {:+.1f}".format(*each.interval)
            p = NONE if each.missing else p_text(each.adjusted)
            seeds = ", ".join(f"{value:+.1f}" for _, value in sorted(each.differences.items())) or NONE
            told = [each.backbone, each.contrast.says, self.verdict(each), seeds]
            rows.append([*told, effect, interval, p, self._match(each)])
        headings = ["backbone", "contrast", "verdict", "by seed", "points", "95% interval", "p, Holm", "matched"]
        return Table(headings, rows, 4).as_markdown()

    def verdicts(self, name: str) -> list[tuple[str, str, str]]:
        """Of a contrast that was begun: backbone, verdict in words, and in one word; that is empty where the arms were
        not made equal."""
        return [
            (each.backbone, self.verdict(each), "" if each.unequal else each.verdict(self.asked.level))
            for each in self.outcomes
            if each.contrast.name == name and each.differences
        ]

    def _match(self, outcome: Outcome) -> str:
        """How equal both arms were made, as means over seeds."""
        return NONE if outcome.matched is None else "{:.3f} and {:.3f}".format(*outcome.matched)

    def runs(self) -> list[tuple[str, str]]:
        """Backbones and tasks that anything was measured of."""
        return list(dict.fromkeys((each.backbone, each.task) for each in self.arms))

    def says(self, backbone: str) -> str:
        known = self.asked.backbones.get(backbone)
        return known.says if known else next((a.backbone_says for a in self.arms if a.backbone == backbone), "")

    def names(self, backbone: str, task: str, section: str | None = None) -> list[str]:
        """The arms of a section of a task, SFT and DPR first; by default all that do not go wrong on purpose. An arm
        stands once where runs of several variants share its answers."""
        same = [each for each in self.arms if (each.backbone, each.task) == (backbone, task)]
        first: dict[tuple[int, str, str], str] = {}
        for each in sorted(same, key=lambda each: (section_of(each) == "wrong", each.variant, each.arm)):
            first.setdefault((each.seed, each.arm, each.answered), each.name)
        chosen = {a.name for a in same if (section_of(a) != "wrong" if section is None else section_of(a) == section)}
        order = {"SFT": 0, "DPR": 1}
        return sorted(chosen & set(first.values()), key=lambda name: (order.get(name, 2), name))

    def asked_of(self, backbone: str, task: str) -> int:
        """How many questions the arms of a task answer; of those that do not go wrong on purpose."""
        benchmark = self.benchmark(backbone, task)
        same = [a for a in self.arms if (a.backbone, a.task) == (backbone, task) and section_of(a) != "wrong"]
        return max((a.benchmarks[benchmark].prompts for a in same if benchmark in a.benchmarks), default=0)

    def seeds(self, backbone: str, task: str, name: str) -> dict[int, Arm]:
        """The runs of an arm that count: not that of the seed which chose the setting, where there are others, nor a
        kept policy whose run never came so far."""
        every = {
            seed: arm for seed, arm in measured.seeds_of(self.arms, backbone, task, name).items() if arm.reached_its_kl
        }
        chose = self.asked.setting.chosen_on.seed
        return {seed: arm for seed, arm in every.items() if seed != chose} or every

    def never_reached(self) -> list[str]:
        """Kept policies that no table counts, since their runs never came to their KL."""
        return sorted(f"{a.name} of {a.backbone}, seed {a.seed}" for a in self.arms if not a.reached_its_kl)

    def baseline(self, arm: Arm, benchmark: str) -> Arm | None:
        """The SFT that an arm was made from, asked the same."""
        return next((each for each in self.arms if each.arm == "SFT" and comparable(each, arm, benchmark)), None)

    def run_of(self, kept: Arm) -> str:
        """What the run ended as that kept a policy on its way."""
        same = (a for a in self.arms if a.policy == "as_trained" and (a.backbone, a.task) == (kept.backbone, kept.task))
        return next((a.name for a in same if kept.run and a.run == kept.run), "a run")

    def benchmark(self, backbone: str, task: str) -> str:
        """The one that a task is about."""
        found = dict.fromkeys(
            name for a in self.arms if (a.backbone, a.task) == (backbone, task) for name in a.benchmarks
        )
        return self.asked.benchmark if self.asked.benchmark in found else next(iter(found), self.asked.benchmark)

    def measure(self, backbone: str, task: str, benchmark: str = "") -> str:
        """The primary one of a benchmark, by default of that of the task."""
        benchmark = benchmark or self.benchmark(backbone, task)
        found = [
            a.benchmarks[benchmark]
            for a in self.arms
            if (a.backbone, a.task) == (backbone, task) and benchmark in a.benchmarks
        ]
        return next((each.primary for each in found if each.primary), self.asked.measure)

    def arms_table(self, backbone: str, task: str, section: str | None = None) -> str:
        """A row an arm: means over seeds; differences from SFT are paired by seed, and exploratory."""
        main, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        of_task = [a for a in self.arms if (a.backbone, a.task) == (backbone, task)]
        others = {b: self.measure(backbone, task, b) for a in of_task for b in a.benchmarks if b != main}
        headings = ["arm", f"{main}: {measure}", "minus SFT", *(f"{b}: {what}" for b, what in others.items())]
        headings += ["entropy", "KL", "tokens", "cut %", "seconds", "seeds"]
        rows = []
        for name in self.names(backbone, task, section):
            arms = self.seeds(backbone, task, name)
            if not arms:
                continue
            on_main = {seed: arm.benchmarks[main] for seed, arm in arms.items() if main in arm.benchmarks}
            pairs = [(arms[seed], self.baseline(arms[seed], main)) for seed in on_main]
            differences = _differences([(a, b) for a, b in pairs if b is not None and a is not b], main, measure)
            row = [name, _text([_gold(each, measure) for each in on_main.values()]), _text(differences, sign=True)]
            row += [
                _text(
                    [_gold(arm.benchmarks[b], what) for arm in arms.values() if b in arm.benchmarks],
                    1 if what in SHARES else 3,
                    brackets=False,
                )
                for b, what in others.items()
            ]
            means = [("entropy", 3, 1), ("kl_to_sft", 3, 1), ("response_tokens", 1, 1), ("cut_share", 1, 100)]
            row += [
                _text([_times(each.mean(what), factor) for each in on_main.values()], digits, brackets=False)
                for what, digits, factor in means
            ]
            chose = self.asked.setting.chosen_on.seed
            row += [_text([arm.cost for arm in arms.values()], 0, brackets=False)]
            rows.append([*row, f"seed {chose}" if set(arms) == {chose} else str(len(arms))])
        return Table(headings, rows).as_markdown()

    def also_trained_on(self, backbone: str, task: str) -> str:
        """How many questions, by seed, are prompts of training once only their words are compared, and of which arms
        more are, as where rollouts have prompts of their own."""
        main = self.benchmark(backbone, task)
        of_task = [each for each in self.arms if (each.backbone, each.task) == (backbone, task)]
        of_task = [each for each in of_task if main in each.benchmarks and section_of(each) != "wrong"]
        counts = [(arm, int(arm.benchmarks[main].measures.get("answer/trained_on", 0))) for arm in of_task]
        counts = [(arm, count) for arm, count in counts if count]
        if not counts:
            return ""
        usual = {seed: min(n for arm, n in counts if arm.seed == seed) for seed in {arm.seed for arm, _ in counts}}
        few, many = min(usual.values()), max(usual.values())
        more = [f"{arm.name} with {n}" for arm, n in counts if n > usual[arm.seed]]
        but = f", but for {', '.join(sorted(more))}, whose training has other prompts too" if more else ""
        of = of_task[0].benchmarks[main].prompts
        return (
            f"Of these {of} questions {few}{f' to {many}' if few < many else ''}, by seed, are in the demonstrations "
            f"too, spelled or spaced otherwise: the same for all arms of a seed{but}."
        )

    def compared(self, backbone: str, task: str, first: str, second: str) -> str:
        """One arm against another in words that the interval chooses: over seeds, or of one seed over its questions."""
        benchmark, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        mine, other = self.seeds(backbone, task, first), self.seeds(backbone, task, second)
        both = [(mine[seed], other[seed]) for seed in sorted(mine.keys() & other.keys())]
        both = [pair for pair in both if comparable(*pair, benchmark)]
        values, over = _differences(both, benchmark, measure), f"{len(both)} seeds"
        if len(both) == 1:
            values, over = _by_question(*both[0], benchmark, measure), "over the questions of one seed"
        if len(values) < 2:
            return ""
        effect, interval, _ = estimate_of(values)
        assert interval is not None
        points = "{:+.1f} points, {:+.1f} to {:+.1f}, {}".format(effect, *interval, over)
        if interval[0] <= 0 <= interval[1]:
            return f"no difference was seen ({points})"
        return f"{first} is {'ahead' if effect > 0 else 'behind'} ({points})"

    def noise(self, backbone: str, task: str) -> float | None:
        """Half of the 95% interval over questions of an arm of one seed minus its SFT: the median of such arms."""
        benchmark, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        found = []
        for name in self.names(backbone, task):
            arms = list(self.seeds(backbone, task, name).values())
            sft = self.baseline(arms[0], benchmark) if len(arms) == 1 else None
            if sft is not None and sft is not arms[0]:
                _, interval, _ = estimate_of(_by_question(arms[0], sft, benchmark, measure))
                found += [(interval[1] - interval[0]) / 2] if interval and interval[0] < interval[1] else []
        return statistics.median(found) if found else None

    def training_table(self, backbone: str, task: str) -> str:
        """What the rollouts of every trained policy showed, as it came out after a guard's roll-back: over seeds."""
        rows = []
        for name in self.names(backbone, task, "arms"):
            arms = [arm for arm in self.seeds(backbone, task, name).values() if "rollout" in arm.training]
            if arms:
                ends = [[arm.results.get(f"rollout/{what}") for arm in arms] for what in SHOWN]
                done = ", ".join(str(arm.iterations) for arm in arms)
                rows.append([name, done, *(_text(each, 3, brackets=False) for each in ends)])
        return Table(["arm", "iterations by seed", *SHOWN], rows).as_markdown() if rows else ""

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
            if section_of(arm) == "wrong" and "rollout" in arm.training:
                curve, falls = arm.training["rollout"], self.fall_of(arm)
                spoken = [speaks(rule, curve) for rule in RULES]
                rows.append([arm.backbone, arm.variant, str(arm.seed), *map(_iteration, [falls, *spoken])])
        headings = ["backbone", "run", "seed", "gold falls", *RULES]
        return Table(headings, rows, 2).as_markdown() if rows else ""

    def fall_of(self, arm: Arm) -> int | None:
        """The iteration of the first policy kept along a run whose gold measure is below that of SFT."""
        benchmark, measure = self.benchmark(arm.backbone, arm.task), self.measure(arm.backbone, arm.task)
        kls = arm.training["rollout"]["kl"]
        fallen = []
        for each in (a for a in self.arms if a.policy == "kept" and a.run == arm.run and a.reached_its_kl):
            sft = self.baseline(each, benchmark)
            if sft is not None and any(gap < 0 for gap in _differences([(each, sft)], benchmark, measure)):
                fallen += [i for i, kl in enumerate(kls, start=1) if kl is not None and kl >= each.kept_at][:1]
        return min(fallen, default=None)

    def iterations(self, backbone: str, task: str, name: str = "DPR") -> list[int]:
        """How many of its training each seed's policy has."""
        return [arm.iterations for arm in self.seeds(backbone, task, name).values()]

    def cost(self, backbone: str, task: str, name: str) -> float | None:
        """Mean seconds of what an arm needs beyond SFT, or of SFT itself."""
        return mean([arm.cost for arm in self.seeds(backbone, task, name).values()])

    def hours(self) -> float:
        """What all of this took, every artifact counted once."""
        stages = {
            arm.digests.get(stage, f"{arm.file} {stage}"): s for arm in self.arms for stage, s in arm.seconds.items()
        }
        answers = {
            arm.digests.get(f"answers {name}", f"{arm.file} {name}"): each.seconds or 0.0
            for arm in self.arms
            for name, each in arm.benchmarks.items()
        }
        return (sum(stages.values()) + sum(answers.values())) / 3600

    def greedy(self) -> str:
        """What SFT decoded greedily comes to on each backbone; empty where that was not measured."""
        told = []
        for backbone, task in self.runs():
            arms = self.seeds(backbone, task, "SFT-greedy").values()
            for name in dict.fromkeys(name for arm in arms for name in arm.benchmarks):
                right = [_gold(arm.benchmarks[name], "right") for arm in arms if name in arm.benchmarks]
                if (share := _text(right, brackets=False)) != NONE:
                    told.append(f"{share}% of {name} ({backbone})")
        return ", ".join(told)

    def draw(self, folder: Path) -> None:
        """The figures, of what there is."""
        from dpr_core.reporting import plots

        decided = [each for each in self.outcomes if each.effect is not None and each.interval is not None]
        if decided:
            rows = [
                (f"{e.backbone}, {e.contrast.name}, {len(e.differences)} seeds", e.effect, *e.interval)
                for e in decided
                if e.interval
            ]
            plots.intervals(folder / "contrasts.png", "DPR minus the other arm, points, 95%", rows, even=0)
        for backbone, task in self.runs():
            if panels := self.frontier(backbone, task):
                file = folder / self.frontier_file(backbone, task)
                labelled = {axis(what): each for what, each in panels.items()}
                plots.bands(file, f"{backbone}, {task}", "KL to SFT, nats an answer", labelled)
        if self.references:
            plots.lines(
                folder / "references.png",
                "Correlation of token rewards with the middle checkpoint's, answers",
                "reference",
                {f"{r['backbone']}\n{r['task']}\nseed {r['seed']}": _middle(r) for r in self.references},
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
            series = f"along {self.run_of(arms[0])}" if arms and arms[0].policy == "kept" else name
            likely = [arm.benchmarks[LIKELIHOOD] for arm in arms if LIKELIHOOD in arm.benchmarks]
            drawn = {measure: found, "entropy": found, "response_tokens": found, "nats_per_token": likely}
            for what, answers in drawn.items():
                values = [value for each in answers if (value := _gold(each, what)) is not None]
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


def axis(what: str) -> str:
    """A quantity with its unit."""
    units = {"entropy": "nats a token", "response_tokens": "an answer", "nats_per_token": "of held-out demonstrations"}
    return f"{what.replace('_', ' ')}, {units.get(what, '%')}" if what in units or what in SHARES else what


def section_of(arm: Arm) -> str:
    """Where on the page an arm stands."""
    began = (name for name, words in SECTIONS.items() if arm.arm.startswith(words) or arm.variant.startswith(words))
    return next(began, "arms")


def _differences(pairs: Sequence[tuple[Arm, Arm]], benchmark: str, measure: str) -> list[float]:
    both = [tuple(_gold(arm.benchmarks[benchmark], measure) for arm in pair) for pair in pairs]
    return [a - b for a, b in both if a is not None and b is not None]


def _by_question(first: Arm, second: Arm, benchmark: str, measure: str) -> list[float]:
    """Differences in points, a question each."""
    both = [arm.benchmarks[benchmark].values(measure) for arm in (first, second)]
    return [100 * (a - b) for a, b in zip(*both, strict=True) if a is not None and b is not None]


def _gold(answers: Answers, measure: str) -> float | None:
    """Shares in percent."""
    return _times(answers.mean(measure), 100 if measure in SHARES else 1)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


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
