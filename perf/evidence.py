"""Evidence on real language models: pipeline runs into the small JSON files of docs/results/real, and those into pages.

    python perf/evidence.py run smollm2-135m --backbone smollm2-135m --task word-problems --seeds 1 2 3 4 5 --home HOME
    python perf/evidence.py record RUN --backbone smollm2-135m --task word-problems --home HOME
    python perf/evidence.py lab EXPERIMENT... --command "dpr reproduce all --seeds 3" --home HOME
    python perf/evidence.py page

`run` makes the pipeline of a recipe for every seed whose arms are not all there, and records it; what a store has is
reused, what was interrupted goes on. `record` takes a pipeline run that has ended (an ID), whatever made it, `lab` the
experiments of `dpr reproduce`. `page` writes docs/results.md, docs/lab-results.md, the front page's block and the
figures from all files that there are.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.config.base import Config, override, parse
from dpr_core.config.evaluation import AnswerConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.experiments import measured
from dpr_core.experiments.measured import Answers, Arm, by_prompt, rounded
from flows import recipes
from perf import results_page
from perf.lab_results import Kept
from tasks.artifacts.identity import canonical_json
from tasks.artifacts.run_records import Record, flatten
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.stages.answer import read_answers
from tasks.stages.lineage import TRAINED

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "real"
LAB = RESULTS.parent / "lab"
BASELINE = "SFT"
POLICY = "DPR"
LEFT_OUT = frozenset({"execution", "seed", "content", "benchmark"})
"""Settings that are told elsewhere, or say only how the work is done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, record = commands.add_parser("run"), commands.add_parser("record")
    run.add_argument("recipe", help="a recipe or a .yaml file")
    run.add_argument("--seeds", type=int, nargs="+", required=True)
    run.add_argument("--arms", nargs="+", help="these methods and controls alone; SFT and DPR are always there")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as in dpr run")
    record.add_argument("run", help="the ID of a pipeline run")
    lab = commands.add_parser("lab")
    lab.add_argument("experiments", nargs="+", help="IDs of artifacts of the stage experiment")
    lab.add_argument("--command", dest="made_by", required=True, help="what made them, for the page")
    lab.add_argument("--home", type=Path, help="the DPR_HOME with the store; else that of the environment")
    commands.add_parser("page")
    for each in (run, record):
        each.add_argument("--backbone", required=True, help="what the files call it")
        each.add_argument("--says", default="", help="what exactly its weights are")
        each.add_argument("--task", required=True, help="what the files call the demonstrations")
        each.add_argument("--variant", default="", help="a word for --set: it is part of the names of the arms")
        each.add_argument("--home", type=Path, help="the DPR_HOME with the store; else that of the environment")
        each.add_argument("--out", type=Path, default=RESULTS, help="the folder of the files")
    given = parser.parse_args()
    if getattr(given, "home", None):
        os.environ["DPR_HOME"] = str(given.home.absolute())
    try:
        if given.command == "page":
            for file in results_page.write():
                print(file)
        elif given.command == "record":
            for file in write(record_run(Store.open(), given.run, label(given)), given.out):
                print(file)
        elif given.command == "lab":
            store = Store.open()
            for experiment in given.experiments:
                print(Kept.of(store.fetch(experiment, stages=("experiment",)), given.made_by).write(LAB))
        else:
            run_missing(given)
    except DensePathError as error:
        sys.exit(str(error))


def label(given: argparse.Namespace) -> dict[str, str]:
    """The names under which arms are kept."""
    return {
        "backbone": given.backbone,
        "backbone_says": given.says,
        "task": given.task,
        "variant": given.variant,
    }


def run_missing(given: argparse.Namespace) -> None:
    """A pipeline run for each seed that lacks an arm; one that fails keeps the others from nothing."""
    failed = []
    for seed in given.seeds:
        values = override(recipes.values(given.recipe), [*given.set, f"seed={seed}"])
        if given.arms is not None:
            evaluation = values.setdefault("evaluation", {})
            known = {*values.get("methods", {}), *evaluation.get("controls", {})}
            if unknown := [arm for arm in given.arms if arm not in known]:
                raise UsageError(f"{given.recipe} has no arm {', '.join(unknown)}; it has {', '.join(sorted(known))}")
            values["methods"] = _chosen(values.get("methods", {}), given.arms)
            evaluation["controls"] = _chosen(evaluation.get("controls", {}), given.arms)
        config = parse(PipelineConfig, values, given.recipe)
        names = [
            measured.file_name(given.backbone, given.task, f"{arm} {given.variant}", seed=seed) for arm in arms(config)
        ]
        if missing := [name for name in names if not (given.out / name).is_file()]:
            print(f"seed {seed}: {', '.join(missing)}", file=sys.stderr)
            if (run := _run(values)) is None:
                failed.append(seed)
                continue
            for file in write(record_run(Store.open(), run, label(given)), given.out):
                print(file, flush=True)
    if failed:
        raise DensePathError(f"seeds that failed: {', '.join(map(str, failed))}; the same command goes on from there")


def _chosen(named: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    return {name: each for name, each in named.items() if name in arms}


def arms(config: PipelineConfig) -> list[str]:
    """The policies of a pipeline."""
    return [BASELINE, POLICY, *config.methods, *config.evaluation.controls]


def _run(values: Mapping[str, Any]) -> str | None:
    """The ID of a pipeline run that made all of it, or reused it; none if that failed."""
    with tempfile.TemporaryDirectory() as folder:
        (recipe := Path(folder, "recipe.yaml")).write_text(json.dumps(values), encoding="utf-8")
        command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    return str(json.loads(done.stdout)["run_id"]) if done.returncode == 0 else None


def write(found: Iterable[Arm], folder: Path) -> Iterator[Path]:
    """Every arm as its file. Another result under a name that is taken is refused; one more benchmark is not."""
    folder.mkdir(parents=True, exist_ok=True)
    for arm in found:
        file = folder / arm.file
        if file.is_file() and (lost := measured.read_file(file).digests.items() - arm.digests.items()):
            name, digest = min(lost)
            raise UsageError(
                f"{file.name} is of other artifacts ({name}: {digest[:12]}, not {arm.digests.get(name, 'none')[:12]}): "
                "give the run a --variant of its own, or remove the file"
            )
        partial = file.with_suffix(".partial")
        partial.write_text(arm.as_json(), encoding="utf-8")
        partial.replace(file)
        yield file


def record_run(store: Store, run: str, labels: Mapping[str, str]) -> list[Arm]:
    """All arms of a pipeline run that has ended."""
    parent = store.parent_runs.find(run)
    if parent is None or parent.request is None or "config" not in parent.request.content:
        raise UsageError(f"{run} is no run of a pipeline: dpr run --json says the ID of one as run_id")
    if parent.status not in ("FINISHED", "FAILED"):
        raise UsageError(f"pipeline run {parent.title} has not ended ({parent.status}); dpr resume goes on with it")
    asked = parent.request.content["config"]
    stages = {entry["name"]: entry["id"] for entry in store.parent_runs.document(parent.id)["stages"]}
    evaluation = asked["evaluation"]
    found = []
    for arm in (BASELINE, POLICY, *asked["methods"], *evaluation["controls"]):
        named = {each: f"answer {arm} on {each}" for each in evaluation["benchmarks"]}
        answers = {each: str(stages[name]) for each, name in named.items() if name in stages}
        # Of a run that failed, what is there may be half; else a benchmark lacks what this policy cannot do.
        if len(answers) == len(named) or (answers and parent.status == "FINISHED"):
            behind = Behind(store, answers, stages.get("diagnose"))
            found.append(
                Arm(
                    **labels,
                    arm=arm,
                    seed=asked["seed"],
                    recipe=asked["name"],
                    changes=changes(asked),
                    **behind.measured(),
                )
            )
    if not found:
        raise UsageError(f"pipeline run {parent.title} has no answers to measure")
    return found


def changes(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a pipeline that are not those of the shipped recipe of its name."""
    if asked["name"] not in recipes.names():
        return {}
    shipped = dict(flatten(recipes.load(asked["name"]).model_dump(mode="json")))
    return {
        name: _without_folders(value)
        for name, value in flatten(asked)
        if shipped.get(name) != value and not {*LEFT_OUT, "launch", "device"} & set(name.split("."))
    }


def _without_folders(value: Any) -> Any:
    """Where files lie on one machine says nothing about a run; their contents are known by hashes."""
    match value:
        case str():
            return Path(value).name if value.startswith(("/", "~", "./", "../")) else value
        case Mapping():
            return {name: _without_folders(each) for name, each in value.items() if name not in LEFT_OUT}
        case list() | tuple():
            return [_without_folders(each) for each in value]
    return value


class Behind:
    """What lies behind the answers of one policy."""

    def __init__(self, store: Store, answers: Mapping[str, str], diagnosis: str | None) -> None:
        self.store = store
        self.answers = {name: store.published(run_id) for name, run_id in answers.items()}
        above = next(iter(self.answers.values())).inputs["policy"]
        self.policy = store.published(above)
        self.stages: dict[str, Record] = {}
        while above:
            record = store.published(above)
            self.stages[record.stage] = record
            above = record.inputs.get("reward") or record.inputs.get("sft") or record.inputs.get("data", "")
        diagnosed = store.published(diagnosis) if diagnosis and "reward" in self.stages else None
        if diagnosed and store.published(diagnosed.inputs["reward"]).digest == self.stages["reward"].digest:
            self.stages["diagnose"] = diagnosed

    def measured(self) -> dict[str, Any]:
        first = next(iter(self.answers.values()))
        data = {name: each.config["benchmark"].get("content") for name, each in self.answers.items()}
        data["demonstrations"] = self.stages["subsample"].config["source"].get("content")
        data["backbone"] = (self.stages["sft"].config.get("backbone") or {}).get("content")
        settings = {name: _settings(each) for name, each in self.stages.items()}
        return {
            "settings": settings | {"answer": _settings(first)},
            "digests": {name: each.digest or "" for name, each in self.stages.items()}
            | {f"answers {name}": each.digest or "" for name, each in self.answers.items()},
            "data": {name: str(content) for name, content in data.items() if content},
            "results": {
                name: rounded(value)
                # Of stages that measure the same, that which is nearest to the policy counts.
                for each in reversed(self.stages.values())
                for name, value in each.results.items()
                if math.isfinite(value)
            },
            "training": self.training(),
            "seconds": {
                each.stage: round(each.seconds, 1) for each in self.stages.values() if each.seconds is not None
            },
            "benchmarks": {name: self._answers(each) for name, each in self.answers.items()},
            "started": f"{self.policy.started:%Y-%m-%d}",
        }

    def training(self) -> dict[str, dict[str, list[float | None]]]:
        """`rollout` by iteration and `train` by step, of what trained the policy where it answers as it came out."""
        found = {}
        answering = next(iter(self.answers.values())).config.get("policy") or {}
        as_trained = answering.get("type", "as_trained") == "as_trained"
        for kind in ("rollout", "train") if as_trained and self.policy.stage in (*TRAINED, "sft") else ():
            history = self.store.history(self.policy.id, f"{kind}/")
            names = sorted({name for values in history.values() for name in values})
            if history:
                found[kind] = {"step": [float(step) for step in history]} | {
                    name.partition("/")[2]: [_finite(values.get(name)) for values in history.values()] for name in names
                }
        return found

    def _answers(self, record: Record) -> Answers:
        rows = read_answers(self.store.fetch(record.id).path)
        gold = list(dict.fromkeys(name for row in rows for name in row.get("gold") or {}))
        each = {name: [(row.get("gold") or {}).get(name) for row in rows] for name in gold}
        if any(row["right"] is not None for row in rows):
            each["right"] = [row["right"] for row in rows]
        asked = canonical_json([[row["question"]["id"], row["question"]["turns"]] for row in rows])
        return Answers(
            temperature=_temperature(record),
            prompts=len(rows),
            questions=hashlib.sha256(asked.encode()).hexdigest()[:16],
            measures={name: rounded(value) for name, value in record.results.items() if math.isfinite(value)},
            by_prompt={name: by_prompt(values) for name, values in each.items()},
            primary=_primary(record, each),
            seconds=None if record.seconds is None else round(record.seconds, 1),
        )


def _primary(record: Record, found: Mapping[str, Any]) -> str:
    """The measure that a benchmark is about: the first gold measure, else whether results are right."""
    gold = benchmarks.gold(AnswerConfig.model_validate(record.config).benchmark)
    return gold.measures[0].name if gold else "right" if "right" in found else ""


def _temperature(record: Record) -> float:
    """That of the policy's own, where it has one, set or found."""
    own = (record.config.get("policy") or {}).get("temperature")
    own = record.results.get("match/temperature") if own is None else own
    return float(record.config["temperature"] if own is None else own)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else rounded(value)


def _settings(record: Record) -> dict[str, Any]:
    """The settings of an artifact without those at their defaults."""
    try:
        config = stage_named(record.stage).config.model_validate(record.config)
    except ValueError:
        return dict(_without_folders(record.config))
    return dict(_without_folders(_without_defaults(config)))


def _without_defaults(config: Config) -> dict[str, Any]:
    """The type of a section stays: without it nobody could tell which defaults."""
    plain = config.model_dump(mode="json")
    kept = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        # What a document leaves out is the default.
        if name in plain and (name == "type" or value != field.get_default(call_default_factory=True)):
            kept[name] = _without_defaults(value) if isinstance(value, Config) else plain[name]
    return kept


if __name__ == "__main__":
    main()
