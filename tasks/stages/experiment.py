"""Compare many pipelines: one row for each policy in each, tables, plots and verdicts on the paper's claims."""

import json
import math
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, get_args

from dpr_core.config.base import StageConfig
from dpr_core.config.pipeline import ExperimentConfig
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact, Record
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace
from tasks.stages.answer import PROFILE
from tasks.stages.lineage import TRAINED
from tasks.stages.report import TABLE
from tasks.stages.reward import CREDIT_PAGE

if TYPE_CHECKING:
    from dpr_core.experiments.observations import Observation, Position

OBSERVATIONS = "observations.json"
CLAIMS = "claims.json"
RESULTS = "results.md"
PLOTS = "plots"

BEHIND = ("reward/", "diagnose/", "guard/", "rollout/")
"""Metrics of the artifacts behind a policy that are shown with it."""


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    """The role of a report is the name of its point; diagnoses are matched to policies by the reward they are of."""
    from dpr_core.experiments import exhibits, figures, observations, results
    from dpr_core.experiments.effect_claims import ClaimOutcome

    settings = cast(ExperimentConfig, config)
    exhibit = exhibits.exhibit_named(settings.exhibit)
    ancestry = Ancestry(work)
    observed_rows: list[Observation] = []
    if strange := [role for role in ancestry.reports if role not in settings.points]:
        raise UsageError(f"the report {strange[0]!r} is of none of the points: {', '.join(settings.points) or 'none'}")
    for done, role in enumerate(present := [name for name in settings.points if name in ancestry.reports], start=1):
        observed_rows += observed(role, settings.points[role], ancestry.reports[role], ancestry, exhibit.by_position)
        work.advance(done, len(present), role)
    if not observed_rows:
        raise UsageError("an experiment needs at least one report; give each the name of its point as its role")
    missing = [name for name in settings.points if name not in ancestry.reports]
    verdicts = exhibit.verdicts(observed_rows)
    plots = figures.draw(exhibit, observed_rows, work.output / PLOTS)
    drawn = {caption: (work.output / PLOTS / file).read_bytes() for caption, file in plots.items()}
    links = {caption: f"{PLOTS}/{file}" for caption, file in plots.items()}
    files = {
        OBSERVATIONS: observations.as_json(observed_rows),
        "observations.csv": observations.as_csv(observed_rows),
        RESULTS: results.as_markdown(settings.title, exhibit, observed_rows, verdicts, links, missing),
        "results.html": results.as_html(settings.title, exhibit, observed_rows, verdicts, drawn, missing),
    }
    if verdicts:
        files[CLAIMS] = json.dumps([each.as_dict() for each in verdicts], indent=2, allow_nan=False) + "\n"
    for name, text in files.items():
        (work.output / name).write_text(text, encoding="utf-8")
    if exhibit.credit_page:
        shutil.copyfile(ancestry.a_reward().path / CREDIT_PAGE, work.output / CREDIT_PAGE)
    counts = {f"claims/{kind}": sum(each.verdict == kind for each in verdicts) for kind in get_args(ClaimOutcome)}
    return (counts if verdicts else {}) | ancestry.mean_seconds()


def observed(
    name: str, values: Mapping[str, Any], report: Artifact, ancestry: "Ancestry", by_position: bool
) -> "list[Observation]":
    """The rows of one point's report, each with what is known of the policy behind it."""
    from dpr_core.experiments.observations import BASELINE, EVEN, Observation

    found = []
    for row in json.loads((report.path / TABLE).read_text(encoding="utf-8"))["rows"]:
        policy, benchmark = row["policy"], row["benchmark"]
        is_baseline = policy == BASELINE
        own = report.inputs.get(f"{policy} on {benchmark}")
        # The baseline's answers are in every judgment against it.
        judge = own or next(judge for role, judge in report.inputs.items() if role.endswith(f" on {benchmark}"))
        is_judged = ancestry.record(judge).stage == "judge"
        answers = ancestry.record(judge).inputs["baseline" if is_baseline else "candidate"] if is_judged else judge
        source = ancestry.policy(policy, answers)
        sft = ancestry.sft(source)
        interval = row["win_rate_interval"]
        found.append(
            Observation(
                point=name,
                values={field: value for field, value in values.items() if field != "seed"},
                seed=values.get("seed", sft.config["seed"]),
                sft=(sft.digest or "")[:12],
                policy=policy,
                benchmark=benchmark,
                win_rate=EVEN if is_baseline and is_judged else row["win_rate"],
                win_rate_interval=None if interval is None else (interval[0], interval[1]),
                **{field: row[field] for field in ("prompts", "response_tokens", "cut_share", "accuracy", "kl_to_sft")},
                repetition=row.get("repetition"),
                refusals=row.get("refusals"),
                metrics=ancestry.metrics(source),
                profile=ancestry.profile(answers) if by_position else (),
            )
        )
    return found


class Ancestry:
    """The ancestors of an experiment's reports, by their records: no weights are read."""

    def __init__(self, work: Workspace) -> None:
        self._store = work.store
        self._records: dict[str, Record] = {}
        self._sources: dict[str, dict[str, Record]] = {}
        inputs = {role: work.input(role) for role in work.inputs}
        self.reports = {role: artifact for role, artifact in inputs.items() if artifact.stage == "report"}
        self._diagnoses: dict[str | None, dict[str, float]] = {}
        """Results by the digest of the reward that was diagnosed."""
        for artifact in inputs.values():
            if artifact.stage == "diagnose":
                reward = self.record(artifact.inputs["reward"])
                self._diagnoses[reward.digest] = self.record(artifact.id).results

    def record(self, run_id: str) -> Record:
        """The record of an artifact as it was published, cached."""
        if run_id not in self._records:
            self._records[run_id] = self._store.published(run_id)
        return self._records[run_id]

    def policy(self, name: str, answers: str) -> Record:
        """The artifact that gave these answers."""
        source = self.record(self.record(answers).inputs["policy"])
        self._sources.setdefault(name, {})[source.digest or source.id] = source
        return source

    def sft(self, source: Record) -> Record:
        """The SFT artifact that a policy was made from."""
        while source.stage != "sft":
            source = self.record(source.inputs.get("sft") or source.inputs["reward"])
        return source

    def reward(self, source: Record) -> Record | None:
        """The reward that a policy was trained on or is made of, if any."""
        if source.stage == "reward":
            return source
        return self.record(source.inputs["reward"]) if "reward" in source.inputs else None

    def a_reward(self) -> Artifact:
        """The first reward there is."""
        found = next(record for record in self._records.values() if record.stage == "reward")
        return self._store.fetch(found.id)

    def metrics(self, source: Record) -> dict[str, float]:
        """Of the policy's training, its reward, and the diagnosis of that."""
        results = dict(source.results)
        if (reward := self.reward(source)) is not None:
            results |= {**reward.results, **self._diagnoses.get(reward.digest, {})}
        return {
            name: value for name, value in sorted(results.items()) if name.startswith(BEHIND) and math.isfinite(value)
        }

    def profile(self, answers: str) -> "tuple[Position, ...]":
        """Means by position, where the answers have them."""
        from dpr_core.experiments.observations import Position

        file = self._store.fetch(answers).path / PROFILE
        rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        # Best of n has no KL that could be measured.
        return tuple(Position(**row) for row in rows if row["kl_to_sft"] is not None)

    def mean_seconds(self) -> dict[str, float]:
        """How long each policy trained, from SFT on. Times are no finding: they stay out of what is stored."""
        trained = {
            name: [each.seconds for each in sources.values() if each.stage in TRAINED and each.seconds is not None]
            for name, sources in self._sources.items()
        }
        return {f"seconds/{name}": sum(every) / len(every) for name, every in trained.items() if every}


def describe(config: StageConfig) -> str:
    settings = cast(ExperimentConfig, config)
    return f"{settings.title}: {len(settings.points)} pipelines side by side."


STAGE = Stage(
    name="experiment",
    version=3,
    config=ExperimentConfig,
    inputs={"*": ("report", "diagnose")},
    body=body,
    describe=describe,
    # Claims are decided by p-values that are corrected for their number, and what is asked has changed twice.
    revisions=lambda config: 2 * (config.exhibit != "sweep"),
)
