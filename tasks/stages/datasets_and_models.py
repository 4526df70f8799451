"""What MLflow lists beside the run of a stage: the datasets it reads, the models it makes, the model it measures."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol

from dpr_core.config.base import StageConfig
from dpr_core.config.data import FileSourceConfig, HubSourceConfig, LabSourceConfig
from dpr_core.config.evaluation import AnswerConfig, AsTrainedConfig, Benchmark, FileBenchmarkConfig, KeptConfig
from dpr_core.config.official import HostedFileConfig
from dpr_core.files import expanded
from tasks.artifacts.identity import canonical_json
from tasks.artifacts.listed import Dataset, Model, model_uri
from tasks.artifacts.store import Artifact, Record
from tasks.stages.lineage import KEPT, TRAINED

SAMPLES = {"subsample": "demonstrations", "prompts": "prompts"}
COLUMNS = ("id", "system", "prompt", "response")
TRAINING = ("sft", *TRAINED)


class Records(Protocol):
    def record(self, run_id: str) -> Record: ...

    def fetch(self, run_id: str) -> Artifact: ...


def datasets_read(config: StageConfig, inputs: Mapping[str, Artifact], store: Records) -> list[Dataset]:
    """The benchmark of answers; else a source of rows, and the samples that a stage was given or its model learned."""
    if (benchmark := getattr(config, "benchmark", None)) is not None:
        return [of_benchmark(benchmark)]
    source = getattr(config, "source", None)
    samples = [each for each in inputs.values() if each.stage in SAMPLES]
    if not samples:
        behind = (each.inputs for each in inputs.values() if each.stage in ("sft", "reward"))
        samples = [store.fetch(data) for each in behind if (data := _data_behind(each, store)) is not None]
    return ([] if source is None else [_of_source(source, config.seed)]) + [_of_sample(each) for each in samples]


def _data_behind(inputs: Mapping[str, str], store: Records) -> str | None:
    """The demonstrations of an SFT run, or of the one behind a reward, by its inputs."""
    return _data_behind(store.record(inputs["sft"]).inputs, store) if "sft" in inputs else inputs.get("data")


def _of_sample(artifact: Artifact) -> Dataset:
    from dpr_core.data.subsample import SUMMARY_FILE

    summary = json.loads((artifact.path / SUMMARY_FILE).read_bytes())
    place = {"uri": f"runs:/{artifact.id}/output"}
    name, digest, rows = SAMPLES[artifact.stage], summary["content_hash"], summary["kept"]
    return Dataset(name, digest, "local", place, "training", COLUMNS, rows)


def _of_source(source: LabSourceConfig | FileSourceConfig | HubSourceConfig, seed: int) -> Dataset:
    if isinstance(source, LabSourceConfig):
        written = {"seed": seed, **source.model_dump(mode="json")}
        return Dataset(f"lab {source.task.type}", _hash(written), "code", written, "training", COLUMNS, source.rows)
    columns = tuple(column for column in source.columns.model_dump().values() if isinstance(column, str))
    digest = source.content or _hash(source.model_dump(mode="json"))
    if isinstance(source, FileSourceConfig):
        name = PurePosixPath(source.path).name
        return Dataset(name, digest, "local", _file(source.path, source.content), "training", columns)
    if expanded(source.name).is_dir():
        return Dataset(source.name, digest, "local", _file(source.name, source.content), "training", columns)
    place = _on_hub(source.name, source.revision, config_name=source.subset, split=source.split)
    return Dataset(source.name, digest, "hugging_face", place, "training", columns)


def of_benchmark(benchmark: Benchmark) -> Dataset:
    """Its digest is that of its settings, a hash of the questions among them: which are asked depends on both."""
    digest, rows = _hash(benchmark.model_dump(mode="json")), getattr(benchmark, "prompts", None)
    kind, place = "code", benchmark.model_dump(mode="json")
    if isinstance(benchmark, FileBenchmarkConfig | HostedFileConfig) and benchmark.path is not None:
        kind, place = "local", _file(benchmark.path, benchmark.content)
    elif isinstance(benchmark, HostedFileConfig):
        kind = "hugging_face"
        place = _on_hub(str(benchmark.repository), benchmark.revision, data_files=benchmark.file)
    return Dataset(benchmark.type, digest, kind, place, "evaluation", rows=rows)


def _file(path: str, content: str | None) -> dict[str, Any]:
    return {"uri": path, "sha256": content}


def _on_hub(path: str, revision: str | None, **what: str | None) -> dict[str, Any]:
    return {"path": path, "revision": revision, "trust_remote_code": False, **what}


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()


def models_made(stage: str, name: str, files: Iterable[str], results: Iterable[str], last_step: int) -> list[Model]:
    """Those whose files a payload has: the checkpoints of SFT, the policy of a method, and those it kept on the way."""
    if stage not in TRAINING:
        return []
    parents = {parts for file in files if (parts := PurePosixPath(file).parts[:-1])}
    made = []
    for *above, part in sorted(parents):
        if above == ["checkpoints"]:
            step = last_step if part == "ema" else math.floor(round(float(part) * last_step, 9))
            own = set(results) if part == "1.0" else set()
            made.append(Model(f"{name} {part}", f"checkpoints/{part}", step, own, part not in ("1.0", "ema")))
        elif above == [KEPT]:
            own = {each for each in results if each.startswith(f"{KEPT}/{part}/")}
            made.append(Model(f"{name} {part}", f"{KEPT}/{part}", last_step, own))
        elif (*above, part) == ("policy",):
            own = {each for each in results if not each.startswith(f"{KEPT}/")}
            made.append(Model(name, "policy", last_step, own))
    return made


def model_measured(config: StageConfig, inputs: Mapping[str, Artifact], store: Records) -> tuple[str, Dataset] | None:
    """The weights that answered a benchmark, for their answers or what these were judged or rated to be worth; None of
    a control that changes how a model draws."""
    asked: Any = config
    sources = {role: artifact.id for role, artifact in inputs.items()}
    if answers := inputs.get("candidate") or inputs.get("answers"):
        asked, sources = AnswerConfig.model_validate(answers.config), answers.inputs
    if not isinstance(asked, AnswerConfig) or not isinstance(asked.policy, AsTrainedConfig | KeptConfig):
        return None
    record = store.record(sources["policy"])
    if record.stage == "reward":
        record = store.record(record.inputs["sft"])
    folder = "checkpoints/1.0" if record.stage == "sft" else "policy"
    if isinstance(asked.policy, KeptConfig):
        folder = f"{KEPT}/{asked.policy.kl:g}"
    return model_uri(record.id, folder), of_benchmark(asked.benchmark)
