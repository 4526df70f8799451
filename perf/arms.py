"""Measured arms beside each other: which stand where, what each came to, and one minus another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dpr_core.evaluation.benchmarks import KINDS
from dpr_core.evaluation.gold.measures import RESAMPLES
from dpr_core.experiments import measured
from dpr_core.experiments.contrasts import Contrasts
from dpr_core.experiments.measured import Answers, Arm, comparable
from dpr_core.experiments.observations import estimate_of
from dpr_core.reporting.plots import Valued
from dpr_core.reporting.tables import NONE, Table
from dpr_core.stats import ratio_difference_interval

MEASURES = {each.name: each for kind in KINDS.values() if kind.gold for each in kind.gold.measures}
LIKELIHOOD = "likelihood"
"""The benchmark of held-out demonstrations."""

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "reference": ("reference",),
    "settings": ("gamma", "whiten", "bfloat16", "float32"),
    "wrong": ("wrong",),
}
"""Arms that stand in a section of their own: how their names, or those of their variants, begin. Those of the last go
wrong on purpose, and stand nowhere else."""

FEW_SEEDS = 3
"""With fewer, an interval is over the questions: Student's t over two seeds says nothing."""


class Gap(NamedTuple):
    """One arm minus another, with its 95% interval."""

    effect: float
    interval: tuple[float, float] | None
    over: str
    """What the interval is over."""

    def cell(self, *, seeds: bool = False) -> str:
        """With the seeds where they are few."""
        few = self.over.partition(" of ")[2] if seeds else ""
        numbers = f"{self.effect:+.1f}" + (" [{:+.1f}, {:+.1f}]".format(*self.interval) if self.interval else "")
        return f"{numbers}, {few}" if few else numbers

    def words(self) -> str:
        """As the interval chooses them."""
        if self.interval is None:
            return f"no difference ({self.over})"
        low, high = self.interval
        told = "no clear difference" if low <= 0 <= high else "higher" if self.effect > 0 else "lower"
        return f"{told} ({self.effect:+.1f} points, {low:+.1f} to {high:+.1f}, {self.over})"


@dataclass(frozen=True)
class Arms:
    """All of them, and what a page asks of them."""

    asked: Contrasts
    arms: Sequence[Arm]

    def runs(self) -> list[tuple[str, str]]:
        """Backbones and tasks that anything was measured of, the task and the backbones of the contrasts first."""
        found, asked = dict.fromkeys((each.backbone, each.task) for each in self.arms), list(self.asked.backbones)

        def place(run: tuple[str, str]) -> tuple[bool, int]:
            return run[1] != self.asked.task, asked.index(run[0]) if run[0] in asked else len(asked)

        return sorted(found, key=place)

    def of(self, backbone: str, task: str) -> list[Arm]:
        return [each for each in self.arms if (each.backbone, each.task) == (backbone, task)]

    def names(self, backbone: str, task: str, section: str | None = None) -> list[str]:
        """The arms of a section of a task; by default all that do not go wrong on purpose. SFT and DPR come first, then
        what trains nothing. An arm stands once where runs of several variants share its answers."""
        same, main = self.of(backbone, task), self.benchmark(backbone, task)
        first: dict[tuple[int, str, str], str] = {}
        for each in sorted(same, key=lambda each: (section_of(each) == "wrong", each.variant, each.arm)):
            answers = each.digests.get(f"answers {main}", each.file)
            first.setdefault((each.seed, each.arm, answers), each.name)
        chosen = {
            a.name: a for a in same if (section_of(a) != "wrong" if section is None else section_of(a) == section)
        }
        order = {"SFT": 0, "DPR": 1}

        def place(name: str) -> tuple[int, int, str]:
            return order.get(chosen[name].arm, 2), int(bool(chosen[name].cost)), name.lower()

        return sorted(chosen.keys() & set(first.values()), key=place)

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

    def baseline(self, arm: Arm, benchmark: str, name: str = "SFT") -> Arm | None:
        """The SFT that an arm was made from, asked the same; or another arm that was."""
        same = [each for each in self.arms if each.arm == name and comparable(each, arm, benchmark)]
        return next((each for each in same if each.variant == arm.variant), next(iter(same), None))

    def benchmark(self, backbone: str, task: str) -> str:
        """The one that a task is about."""
        found = dict.fromkeys(name for each in self.of(backbone, task) for name in each.benchmarks)
        return self.asked.benchmark if self.asked.benchmark in found else next(iter(found), self.asked.benchmark)

    def measure(self, backbone: str, task: str, benchmark: str = "") -> str:
        """The primary one of a benchmark, by default of that of the task."""
        benchmark = benchmark or self.benchmark(backbone, task)
        found = [each.benchmarks[benchmark] for each in self.of(backbone, task) if benchmark in each.benchmarks]
        return next((each.primary for each in found if each.primary), self.asked.measure)

    def questions(self, backbone: str, task: str) -> int:
        """How many a task's benchmark has."""
        main = self.benchmark(backbone, task)
        return max(each.benchmarks[main].prompts for each in self.of(backbone, task) if main in each.benchmarks)

    def gap(self, backbone: str, task: str, first: str, second: str) -> Gap | None:
        """One arm minus another, of the same SFT runs and on the same questions."""
        benchmark = self.benchmark(backbone, task)
        mine, other = self.seeds(backbone, task, first), self.seeds(backbone, task, second)
        pairs = [(mine[seed], other[seed]) for seed in sorted(mine.keys() & other.keys())]
        pairs = [pair for pair in pairs if comparable(*pair, benchmark)]
        return difference(pairs, benchmark, self.measure(backbone, task))

    def compared(self, backbone: str, task: str, first: str, second: str) -> str:
        """The same in words; empty where there is no such pair."""
        found = self.gap(backbone, task, first, second)
        return found.words() if found else ""

    def above_sft(self, backbone: str, task: str) -> list[str]:
        """Arms whose interval of the difference from their SFT is above 0; a policy of two names once."""
        found: list[str] = []
        told: list[frozenset[str]] = []
        for name in [*self.names(backbone, task, "arms"), *self.names(backbone, task, "reference")]:
            arms = self.seeds(backbone, task, name)
            gap = self.minus(arms.values(), "SFT", backbone, task)
            if gap and gap.interval and gap.interval[0] > 0:
                trained = frozenset(each.run for each in arms.values() if each.policy == "as_trained" and each.run)
                if not trained or not any(trained <= others for others in told):
                    found.append(f"{name} ({gap.cell()})")
                    told.append(trained)
        return found

    def minus(self, arms: Iterable[Arm], name: str, backbone: str, task: str) -> Gap | None:
        """Arms minus what stands beside each under a name."""
        main = self.benchmark(backbone, task)
        pairs = [(arm, other) for arm in arms if (other := self.baseline(arm, main, name)) and other is not arm]
        return difference(pairs, main, self.measure(backbone, task))

    def table(self, backbone: str, task: str, section: str | None = None) -> str:
        """A row an arm, of means over its seeds; arms that are alike in everything share one."""
        main, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        of_task = self.of(backbone, task)
        others = {b: self.measure(backbone, task, b) for a in of_task for b in a.benchmarks if b != main}
        more = [] if task == self.asked.task else _more_measures(of_task, main, measure)
        minus = ["SFT", "DPR"] if section in ("reference", "settings") else ["SFT"]
        headings = [f"{main}: {measure}", *(f"minus {name}" for name in minus), *more]
        headings += [*(f"{b}: {what}" for b, what in others.items()), "T", "entropy", "KL", "tokens", "cut %"]
        headings += ["kept", "seconds", "seeds"]
        rows: dict[tuple[str, ...], list[str]] = {}
        for name in self.names(backbone, task, section):
            arms = self.seeds(backbone, task, name)
            answers = [arm.benchmarks[main] for arm in arms.values() if main in arm.benchmarks]
            if not answers:
                continue
            row = [text([points(each, measure) for each in answers])]
            gaps = [self.minus(arms.values(), each, backbone, task) for each in minus]
            row += [NONE if each is None else each.cell() for each in gaps]
            row += [_mean(answers, what) for what in more]
            row += [
                _mean([a.benchmarks[b] for a in arms.values() if b in a.benchmarks], what) for b, what in others.items()
            ]
            row += [text([each.temperature for each in answers], 2, brackets=False)]
            means = [("entropy", 3, 1), ("kl_to_sft", 3, 1), ("response_tokens", 1, 1), ("cut_share", 1, 100)]
            row += [
                text([_times(each.mean(what), factor) for each in answers], digits, brackets=False)
                for what, digits, factor in means
            ]
            kept = [arm.iterations for arm in arms.values() if arm.policy == "as_trained" and arm.run]
            costs = [cost for arm in arms.values() if (cost := arm.cost) is not None]
            row += [ranges(kept) or NONE, f"{min(costs):.0f}" if costs else NONE, ranges(arms)]
            rows.setdefault(tuple(row), []).append(name)
        whole = [[", ".join(names), *cells] for cells, names in rows.items()]
        columns = [i for i, title in enumerate(["arm", *headings]) if title != "cut %" or _any_cut(whole, i)]
        return Table(
            [["arm", *headings][i] for i in columns], [[row[i] for i in columns] for row in whole]
        ).as_markdown()

    def also_trained_on(self, backbone: str, task: str) -> str:
        """How many questions, by seed, are prompts of training once only their words are compared, and of which arms
        more are, as where rollouts have prompts of their own."""
        main = self.benchmark(backbone, task)
        same = [a for a in self.of(backbone, task) if main in a.benchmarks and section_of(a) != "wrong"]
        counts = [(arm, int(arm.benchmarks[main].measures.get("answer/trained_on", 0))) for arm in same]
        counts = [(arm, count) for arm, count in counts if count]
        if not counts:
            return ""
        usual = {seed: min(n for arm, n in counts if arm.seed == seed) for seed in {arm.seed for arm, _ in counts}}
        few, many = min(usual.values()), max(usual.values())
        more = sorted({f"{arm.name} with {n}" for arm, n in counts if n > usual[arm.seed]})
        but = f", but for {', '.join(more)}" if more else ""
        return (
            f"Of these {self.questions(backbone, task)} questions {few}{f' to {many}' if few < many else ''}, by "
            "seed, are in the demonstrations too, apart from spelling and spacing: the same for all arms of a "
            f"seed{but}."
        )

    def kept(self, backbone: str, task: str, name: str = "DPR") -> list[int]:
        """How many of its rollouts each seed's policy has learned from."""
        return [arm.iterations for arm in self.seeds(backbone, task, name).values()]

    def steps(self, backbone: str, task: str, name: str) -> list[int]:
        """How many optimizer steps its training took, if all seeds took as many."""
        arms = self.seeds(backbone, task, name).values()
        taken = {max(known) for a in arms if (known := [s for s in a.training.get("train", {}).get("step", []) if s])}
        return [int(taken.pop())] if len(taken) == 1 else []

    def cost(self, backbone: str, task: str, name: str) -> float | None:
        """The least seconds of any seed that an arm took beyond SFT, or SFT itself."""
        return min(
            (c for arm in self.seeds(backbone, task, name).values() if (c := arm.cost) is not None), default=None
        )

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

    def frontier(self, backbone: str, task: str) -> dict[str, dict[str, list[tuple[float, Valued]]]]:
        """Quantities over KL to SFT: a point an arm, a line through the policies that were kept along a run. Variants
        stay out, and greedy decoding has no entropy to show."""
        benchmark, measure = self.benchmark(backbone, task), self.measure(backbone, task)
        panels: dict[str, dict[str, list[tuple[float, Valued]]]] = {}
        for name in self.names(backbone, task):
            arms = [arm for arm in self.seeds(backbone, task, name).values() if not arm.variant]
            found = [arm.benchmarks[benchmark] for arm in arms if benchmark in arm.benchmarks]
            kl = mean([each.mean("kl_to_sft") for each in found])
            series = f"along {self.run_of(arms[0])}" if arms and arms[0].policy == "kept" else name
            likely = [arm.benchmarks[LIKELIHOOD] for arm in arms if LIKELIHOOD in arm.benchmarks]
            sampled = [each for each in found if each.temperature > 0]
            drawn = {measure: found, "entropy": sampled, "response_tokens": found, "nats_per_token": likely}
            for what, answers in drawn.items():
                values = [value for each in answers if (value := points(each, what)) is not None]
                if kl is not None and values:
                    middle, interval, _ = estimate_of(values)
                    at = (kl, (middle, *(interval or (middle,) * 2)))
                    panels.setdefault(what, {}).setdefault(series, []).append(at)
        for each in panels.values():
            for line in each.values():
                line.sort()
        return panels if len(panels.get(measure, {})) > 1 else {}

    def run_of(self, kept: Arm) -> str:
        """What the run ended as that kept a policy on its way."""
        same = (each for each in self.of(kept.backbone, kept.task) if each.policy == "as_trained")
        return next((each.name for each in same if kept.run and each.run == kept.run), "a run")


def section_of(arm: Arm) -> str:
    """Where on the page an arm stands."""
    began = (name for name, words in SECTIONS.items() if arm.arm.startswith(words) or arm.variant.startswith(words))
    return next(began, "arms")


def difference(pairs: Sequence[tuple[Arm, Arm]], benchmark: str, measure: str) -> Gap | None:
    """First arms minus second ones: Student's t over seeds where they are enough and differ, else over questions."""
    both = [(pair[0].seed, *(points(arm.benchmarks[benchmark], measure) for arm in pair)) for pair in pairs]
    by_seed = {seed: a - b for seed, a, b in both if a is not None and b is not None}
    if not by_seed:
        return None
    effect, interval, count = estimate_of(list(by_seed.values()))
    if count >= FEW_SEEDS and interval and interval[0] < interval[1]:
        return Gap(effect, interval, f"{count} seeds")
    interval = over_questions([tuple(arm.benchmarks[benchmark] for arm in pair) for pair in pairs], measure)
    over = f"over the questions of seed{'s' if count > 1 else ''} {ranges(by_seed)}"
    return Gap(effect, interval if interval and interval[0] < interval[1] else None, over)


def over_questions(pairs: Sequence[tuple[Answers, ...]], measure: str) -> tuple[float, float] | None:
    """The interval over questions of a difference, each a mean over the runs that were asked it."""
    weight = MEASURES[measure].weight if measure in MEASURES else None
    factor = 100 if is_share(measure) else 1
    # Of a question: (total, weight) for each of both sides.
    sums: dict[tuple[str, int], list[list[float]]] = {}
    for pair in pairs:
        for side, answers in enumerate(pair):
            weights = answers.values(weight) if weight else [1.0] * answers.prompts
            for i, (value, w) in enumerate(zip(answers.values(measure), weights, strict=False)):
                row = sums.setdefault((answers.questions, i), [[0.0, 0.0], [0.0, 0.0]])[side]
                if value is not None and w:
                    row[0] += factor * value * w
                    row[1] += w
    rows = list(sums.values())
    if weight:
        totals = [([row[side][0] for row in rows], [row[side][1] for row in rows]) for side in (0, 1)]
        return ratio_difference_interval(totals[0], totals[1], RESAMPLES, seed=0)
    each = [a / n - b / m for (a, n), (b, m) in rows if n and m]
    return estimate_of(each).interval if len(each) > 1 else None


def is_share(measure: str) -> bool:
    """Whether it is shown in percent."""
    return measure in MEASURES and MEASURES[measure].is_share


def points(answers: Answers, measure: str) -> float | None:
    """A mean; shares in percent."""
    return _times(answers.mean(measure), 100 if is_share(measure) else 1)


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def text(values: Sequence[float | None], digits: int = 1, *, brackets: bool = True) -> str:
    """A mean, with its interval over seeds where there are enough."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    found, form = estimate_of(known), f".{digits}f"
    if not brackets or len(known) < FEW_SEEDS or found.interval is None:
        return format(found.mean, form)
    return "{} [{}, {}]".format(*(format(value, form) for value in (found.mean, *found.interval)))


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers, those in a row as one range."""
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and n == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ", ".join("\u2013".join(map(str, part)) for part in parts)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _mean(answers: Sequence[Answers], measure: str) -> str:
    return text([points(each, measure) for each in answers], 1 if is_share(measure) else 3, brackets=False)


def _more_measures(arms: Sequence[Arm], benchmark: str, primary: str) -> list[str]:
    """The other gold measures of a benchmark."""
    found = dict.fromkeys(
        name.removeprefix("gold/")
        for arm in arms
        if benchmark in arm.benchmarks
        for name in arm.benchmarks[benchmark].measures
        if name.startswith("gold/")
    )
    return [name for name in found if name in MEASURES and name != primary]


def _any_cut(rows: Sequence[Sequence[str]], column: int) -> bool:
    return any(row[column] not in (NONE, "0.0") for row in rows)
