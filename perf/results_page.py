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
from dpr_core.experiments import contrasts, measured
from dpr_core.experiments.contrasts import Outcome
from dpr_core.experiments.exhibits import EXHIBITS
from dpr_core.experiments.measured import Arm
from dpr_core.experiments.results import p_text
from dpr_core.reporting.tables import NONE, Table
from flows import recipes
from perf.arms import FEW_SEEDS, Arms, Gap, difference, is_share, points, ranges, section_of, text
from perf.hindsight import RULES, speaks
from perf.lab_results import Lab

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = Path(__file__).parent / "pages"
REAL = DOCS / "results" / "real"
MARKERS = "<!-- evidence:begin -->\n", "<!-- evidence:end -->"
ONE_REWARD = 0.95
"""Rewards of two references that correlate above this are one reward."""

EXPLORATORY = {
    "smollm2-135m-family": "word-problems",
    "smollm2-135m-e2e": "e2e",
    "smollm2-135m-gsm8k": "gsm8k",
}
"""Recipes whose arms the page is to have besides those of the contrasts, with the names of their tasks."""

NOT_CHANGED = ("backbone.name", "diagnose")
"""Settings that say where a run was made, and not what."""
CHOSEN = ("evaluation.controls", "methods")
"""Settings that --arms makes, of a recipe that is called a family."""


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


def with_front(text: str, block: str) -> str:
    """The front page with its block."""
    before, start, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    return before + start + block + end + after


@dataclass(frozen=True)
class Evidence(Arms):
    """All there is, and what a template asks of it."""

    references: Sequence[Mapping[str, Any]]
    lab: Lab
    withdrawn: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path = REAL) -> "Evidence":
        return cls(
            contrasts.load(DOCS / "results" / "contrasts.yaml"),
            measured.read(folder) if folder.is_dir() else [],
            [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("_references-*.json"))],
            Lab.read(DOCS / "results" / "lab"),
            read_yaml((DOCS / "results" / "withdrawn.yaml").read_text(encoding="utf-8"), "withdrawn.yaml")["withdrawn"],
        )

    def page(self, name: str) -> str:
        environment = Environment(
            loader=FileSystemLoader(PAGES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        shown = {"e": self, "exhibits": EXHIBITS, "ONE_REWARD": ONE_REWARD, "FEW_SEEDS": FEW_SEEDS}
        page = environment.get_template(f"{name}.md.j2").render(shown)
        return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"

    @cached_property
    def outcomes(self) -> list[Outcome]:
        return contrasts.outcomes(self.asked, self.arms)

    @property
    def withdrawn_claims(self) -> list[str]:
        """The lab's claims whose verdicts no longer count."""
        return [claim for each in self.withdrawn for claim in each.get("claims", [])]

    def verdict(self, outcome: Outcome) -> str:
        """What a primary contrast came to, in words that the numbers choose."""
        verdict = outcome.verdict(self.asked.level)
        if verdict == "not yet run":
            return "not yet run"
        if verdict == "unfinished" or outcome.effect is None or outcome.interval is None:
            planned = len(self.asked.backbones[outcome.backbone].seeds)
            return f"no verdict before every seed is there: {len(outcome.differences)} of {planned} seeds"
        if verdict == "no difference seen":
            low, high = outcome.interval
            told = "no clear difference" if low <= 0 <= high else "not decided: within chance once Holm counts both"
        else:
            told = f"{outcome.contrast.first} is {verdict} by {abs(outcome.effect):.1f} points"
        if outcome.unequal:
            told += f", but the arms were not made equal ({outcome.contrast.matched}, seed {ranges(outcome.unequal)})"
        return told

    @property
    def decided(self) -> list[Outcome]:
        """Contrasts with a verdict, whose arms were equal in what they should be."""
        done = ("ahead", "behind", "no difference seen")
        return [each for each in self.outcomes if each.verdict(self.asked.level) in done and not each.unequal]

    @property
    def ahead(self) -> list[Outcome]:
        """Those of them in which DPR is ahead."""
        return [each for each in self.decided if each.verdict(self.asked.level) == "ahead"]

    @property
    def conclusion(self) -> str:
        """Of all primary contrasts; empty before they are there."""
        if len(self.decided) < len(self.outcomes):
            return ""
        if not self.ahead:
            return "No primary contrast has DPR ahead."
        names = ", ".join(f"{each.backbone} ({each.contrast.name})" for each in self.ahead)
        return f"DPR is ahead in {len(self.ahead)} of {len(self.outcomes)} primary contrasts: {names}."

    def contrasts_table(self) -> str:
        rows = []
        for each in self.outcomes:
            effect = NONE if each.effect is None else f"{each.effect:+.1f}"
            interval = NONE if each.interval is None else "{:+.1f} to {:+.1f}".format(*each.interval)
            p = NONE if each.missing else p_text(each.adjusted)
            seeds = ", ".join(f"{value:+.1f}" for value in each.differences.values()) or NONE
            by = ", ".join(f"{value:.2f}" for value in each.strengths.values()) or NONE
            rows.append([each.backbone, each.contrast.says, self.verdict(each), seeds, by, effect, interval, p])
        headings = ["backbone", "contrast", "verdict", "by seed", "matched by", "points", "95% interval", "p, Holm"]
        return Table(headings, rows, 5).as_markdown()

    def summary(self) -> str:
        """The differences that matter most, a column a backbone."""
        task, backbones = self.asked.task, list(self.asked.backbones)
        pairs = {
            "DPR minus SFT": ("DPR", "SFT"),
            "greedy SFT minus SFT": ("SFT-greedy", "SFT"),
            "SFT continued minus SFT": ("continued-SFT", "SFT"),
            "SFT extrapolated to DPR's KL minus SFT": ("extrapolated-same-kl", "SFT"),
            "best of 8 SFT answers by the reward minus SFT": ("best-of-8-reward", "SFT"),
            "DPR on a late reference (.9) minus SFT": ("DPR reference-0.9", "SFT reference-0.9"),
            "the same, minus SFT at its entropy": ("DPR reference-0.9", "SFT-same-entropy reference-0.9"),
            "the same, both greedy": ("DPR reference-0.9-greedy", "SFT reference-0.9-greedy"),
            "SFT extrapolated from that reference minus SFT": (
                "extrapolated-same-kl reference-0.9",
                "SFT reference-0.9",
            ),
        }
        rows = []
        for words, pair in pairs.items():
            found = [self.gap(backbone, task, *pair) for backbone in backbones]
            rows.append([words, *(NONE if each is None else each.cell(seeds=True) for each in found)])
        for contrast in reversed(self.asked.primary):
            of = {each.backbone: each for each in self.outcomes if each.contrast == contrast}
            cells = [self._effect(of[backbone]) for backbone in backbones]
            other = {"entropy": "SFT at DPR's entropy", "kl": "SFT extrapolated to DPR's KL"}.get(
                contrast.name, contrast.second
            )
            rows.insert(0, [f"**{contrast.first} minus {other}**", *cells])
        costs = [(self.cost(b, task, "SFT"), self.cost(b, task, "DPR")) for b in backbones]
        seconds = [NONE if None in pair else "{:.0f}, {:.0f}".format(*pair) for pair in costs]
        rows.append(["seconds of one core: SFT, then reward and DPR", *seconds])
        return Table(["points of exact results", *backbones], rows).as_markdown().replace("\\*\\*", "**")

    def higher(self, name: str) -> bool:
        """Whether an arm is above its SFT on any backbone of the contrasts."""
        task = self.asked.task
        found = [self.minus(self.seeds(b, task, name).values(), "SFT", b, task) for b in self.asked.backbones]
        return any(each.interval[0] > 0 for each in found if each and each.interval)

    def _effect(self, outcome: Outcome) -> str:
        if outcome.missing or outcome.effect is None or outcome.interval is None:
            return self.verdict(outcome)
        return Gap(outcome.effect, outcome.interval, "").cell() + f", p {p_text(outcome.adjusted)}"

    def primary(self, name: str) -> list[str]:
        """A contrast on every backbone on which it was begun, in words with its interval."""
        found = []
        for each in self.outcomes:
            if each.contrast.name == name and each.differences:
                at = "" if each.missing or each.interval is None else " ({:+.1f} to {:+.1f})".format(*each.interval)
                found.append(f"{each.backbone}: {self.verdict(each)}{at}")
        return found

    def one_result(self) -> list[str]:
        """Backbones whose contrasts have the same difference on every seed."""
        of = {name: [e.differences for e in self.outcomes if e.backbone == name] for name in self.asked.backbones}
        return [name for name, each in of.items() if each[0] and all(other == each[0] for other in each[1:])]

    def says(self, backbone: str) -> str:
        known = self.asked.backbones.get(backbone)
        return known.says if known else next((a.backbone_says for a in self.arms if a.backbone == backbone), "")

    def trained(self, backbone: str) -> str:
        """How much training is behind SFT and DPR of the contrasts; empty where that is not known."""
        task = self.asked.task
        steps, kept = self.steps(backbone, task, "SFT"), self.kept(backbone, task)
        arms = self.seeds(backbone, task, "SFT").values()
        rows = {int(each.results["data/demonstrations"]) for each in arms if "data/demonstrations" in each.results}
        if not steps or len(rows) != 1 or not kept:
            return ""
        learned = ", ".join(map(str, kept))
        return f"SFT of {steps[0]} steps on {rows.pop()} demonstrations, DPR from {learned} rollouts, by seed"

    def solved(self, backbone: str, name: str) -> str:
        """What an arm of the contrasts' task comes to."""
        arms = self.seeds(backbone, self.asked.task, name).values()
        found = [arm.benchmarks[self.asked.benchmark] for arm in arms if self.asked.benchmark in arm.benchmarks]
        return text([points(each, self.asked.measure) for each in found], brackets=False)

    def missing(self) -> list[str]:
        """What the recipes have, and nothing was measured of."""
        found = []
        for recipe, task in EXPLORATORY.items():
            config = recipes.load(recipe)
            names = ["SFT", "DPR", *config.methods, *config.evaluation.controls]
            there = {each.arm for each in self.arms if each.task == task}
            if lacking := [name for name in names if name not in there]:
                found.append(f"{task}: {', '.join(lacking)}" if there else task)
        return found

    def commands(self) -> list[str]:
        """That make again what is there."""
        by_run: dict[tuple[str, ...], dict[int, list[str]]] = {}
        for each in self.arms:
            left_out = NOT_CHANGED + (CHOSEN if each.recipe.endswith("-family") else ())
            sets = [f"{name}={json.dumps(v)}" for name, v in each.changes.items() if not name.startswith(left_out)]
            run = each.recipe, each.backbone, each.task, each.variant, *sets
            by_run.setdefault(run, {}).setdefault(each.seed, []).append(each.arm)
        found = []
        for (recipe, backbone, task, variant, *sets), arms in by_run.items():
            alike: dict[tuple[str, ...], list[int]] = {}
            for seed, names in sorted(arms.items()):
                alike.setdefault(tuple(sorted(set(names) - {"SFT", "DPR"})), []).append(seed)
            for names, seeds in alike.items():
                chosen = f" --arms {' '.join(names)}" if recipe.endswith("-family") and names else ""
                command = f"python perf/evidence.py run {recipe} --backbone {backbone} --task {task}"
                command += f" --seeds {' '.join(map(str, seeds))}{chosen}{f' --variant {variant}' if variant else ''}"
                found.append(" \\\n  ".join([command, *(f"--set '{each}'" for each in sets)]))
        return found

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

    def likeness(self) -> tuple[float, float] | None:
        """The least and the most that the reward of another checkpoint correlates with the middle one's, on answers."""
        found = [value for each in self.references for at, value in _middle(each) if at > 0 and value < 1]
        return (min(found), max(found)) if found else None

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
            gap = difference([(each, sft)], benchmark, measure) if sft else None
            if gap and gap.effect < 0:
                fallen += [i for i, kl in enumerate(kls, start=1) if kl is not None and kl >= each.kept_at][:1]
        return min(fallen, default=None)

    def draw(self, folder: Path) -> None:
        """The figures, of what there is."""
        from dpr_core.reporting import plots

        self.lab.draw(folder / "lab")
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
                plots.bands(file, f"{backbone}, {task}", "KL to SFT, nats an answer", labelled, linear_to=0.1)
        if self.references:
            plots.lines(
                folder / "references.png",
                "Correlation of token rewards with the middle checkpoint's, answers",
                "reference",
                {f"{r['backbone']}\n{r['task']}\nseed {r['seed']}": _middle(r) for r in self.references},
            )

    def frontier_file(self, backbone: str, task: str) -> str:
        return measured.file_name("frontier", backbone, task, seed=0).replace("-seed0.json", ".png")


def _middle(references: Mapping[str, Any]) -> list[tuple[float, float]]:
    at = references["references"]
    middle = min(range(len(at)), key=lambda i: abs(at[i] - 0.5))
    return list(zip(at, references["answers"]["token_correlation"][middle], strict=True))


def axis(what: str) -> str:
    """A quantity with its unit."""
    units = {"entropy": "nats a token", "response_tokens": "an answer", "nats_per_token": "of held-out demonstrations"}
    return f"{what.replace('_', ' ')},\n{units.get(what, '%')}" if what in units or is_share(what) else what


def _iteration(value: int | None) -> str:
    return "never" if value is None else str(value)
