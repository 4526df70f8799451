"""Upload of a model to the Hugging Face hub, with a model card made from its run."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpr_core import hub
from dpr_core.config.training import LengthsConfig, SFTConfig
from dpr_core.data.subsample import DEMONSTRATIONS_FILE
from dpr_core.errors import UsageError
from dpr_core.files import expanded
from dpr_core.models import packaged
from dpr_core.redaction import redact
from dpr_core.reporting.model_card import FILE, Licence, ModelCard, Step, as_markdown
from dpr_core.reporting.report import ReportTable
from flows.export import appearing, checkpoint_folders, checkpoint_name, refuse_taken, write_checkpoint
from tasks.artifacts.identity import Manifest
from tasks.artifacts.run_records import Record, flatten
from tasks.artifacts.store import Artifact, Store
from tasks.registry import stage_named
from tasks.stages.judgments import BASELINE
from tasks.stages.lineage import KEPT, TRAINED, Lineage
from tasks.stages.report import TABLE

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")
"""How the hub writes licences: apache-2.0, llama3.1."""

UNUSED_BY_IMPORTS = {*SFTConfig.model_fields} - {*LengthsConfig.model_fields, "backbone", "checkpoints", "imported"}
"""What an import has by default alone, and its run did otherwise."""

OWN = "the lab's own"
"""What a program makes and nobody else has."""


def push(
    store: Store,
    reference: str,
    repository: str,
    *,
    part: str | None = None,
    licence: str | None = None,
    private: bool = False,
    branch: str | None = None,
    update: bool = False,
    folder: Path | None = None,
) -> dict[str, str | None]:
    """Upload a checkpoint with its card; `folder` takes in its place what would be uploaded."""
    if not REPOSITORY.fullmatch(repository):
        raise UsageError(f"{repository!r} is no name of a repository; give one such as your-name/dpr-model")
    if licence is not None and not LICENCE.fullmatch(licence):
        raise UsageError(f"--license {licence}: the hub writes licences as in apache-2.0, llama3.1 or other")
    if folder is not None:
        refuse_taken(folder)
    artifact = store.fetch(reference, stages=("sft", "reward", *TRAINED))
    sources = checkpoint_folders(store, artifact, part)
    name = checkpoint_name(artifact, sources)
    card = redact(as_markdown(card_of(store, artifact, sources, repository, licence)))
    pushed = {"id": artifact.id, "checkpoint": name, "repository": repository, "folder": None, "commit": None}
    if folder is not None:
        with appearing(folder) as target:
            write_checkpoint(store, artifact, sources, target)
            (target / FILE).write_text(card, encoding="utf-8")
        return {**pushed, "folder": str(folder)}
    with tempfile.TemporaryDirectory(prefix="dpr-push-") as work:
        target = Path(work)
        write_checkpoint(store, artifact, sources, target, copy=os.symlink)
        (target / FILE).write_text(card, encoding="utf-8")
        message = f"{name} of {artifact.digest[:16]}"
        commit = hub.upload(target, repository, message=message, private=private, branch=branch, update=update)
    return {**pushed, "commit": commit}


def card_of(store: Store, artifact: Artifact, sources: list[Path], repository: str, licence: str | None) -> ModelCard:
    """What the store knows of a model: of a reward, of the SFT run that both of its models are from."""
    model = Lineage(store).ancestor(artifact, "sft") if artifact.stage == "reward" else artifact
    line = list(_line(store, model.id))
    made = [(record.stage, store.manifest(record.id)) for record in line]
    manifests = dict(made)
    steps = [_step(*each) for each in made]
    name = checkpoint_name(artifact, sources)
    backbone = _backbone(manifests["sft"])
    read = [manifest.config.get("source") or {} for _, manifest in made]
    return ModelCard(
        repository,
        f"{steps[-1].what} Weights: {name}. Made with dense-path, which implements Dense-Path REINFORCE "
        "(arXiv 2510.02493).",
        licence_of(backbone, licence),
        dict(_facts(line[-1], manifests, backbone)),
        steps,
        manifests["subsample"].config["template"] if "subsample" in manifests else {},
        base_model=_on_hub(backbone),
        datasets=[source["name"] for source in read if source.get("type") == "hub" and not source["content"]],
        results=_results(store, model, sources),
    )


def _backbone(sft: Manifest) -> Mapping[str, Any] | None:
    """What an SFT run started from; of an imported one that does not say it, its end."""
    settings = SFTConfig.model_validate(sft.config)
    if settings.imported is not None and settings.imported.hides(settings.backbone):
        return settings.imported.final.model_dump()
    backbone: Mapping[str, Any] | None = sft.config.get("backbone")
    return backbone


def licence_of(backbone: Mapping[str, Any] | None, stated: str | None) -> Licence:
    """That of a backbone: as stated, or as its folder or its card on the hub has it."""
    if stated is not None:
        return Licence(stated, f"{stated}, as whoever uploaded this states.")
    if not backbone:
        return Licence(None, "none; its network was taught from scratch, on a task that a program makes.")
    folder = expanded(backbone["name"])
    if (source := packaged.origin(folder)) is not None:
        return _licence(source.licence, f"{source.licence}, that of {source.hub}.")
    card = _card_metadata(folder, backbone)
    if isinstance(licence := card.get("license"), str) and licence:
        name, link = (text if isinstance(text := card.get(f"license_{key}"), str) else None for key in ("name", "link"))
        return _licence(licence, f"{name or licence}, as its own card has it.", name, link)
    return Licence("unknown", "not known; find it out before you use this model.")


def _licence(text: str, words: str, name: str | None = None, link: str | None = None) -> Licence:
    if LICENCE.fullmatch(text.lower()):
        return Licence(text.lower(), words, name, link)
    return Licence("other", words, name=text)


def _card_metadata(folder: Path, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Of a backbone's README.md, if one can be had."""
    from huggingface_hub import hf_hub_download, metadata_load

    try:
        if folder.is_dir() or backbone["content"]:
            return metadata_load(folder / FILE) or {}
        return metadata_load(hf_hub_download(backbone["name"], FILE, revision=backbone["revision"])) or {}
    # Somebody else's card may be damaged in any way, or out of reach; then the licence is said to be unknown.
    except Exception:
        return {}


def _on_hub(backbone: Mapping[str, Any] | None) -> str | None:
    if not backbone:
        return None
    if (source := packaged.origin(expanded(backbone["name"]))) is not None:
        return source.hub
    return None if backbone["content"] else backbone["name"]


def _line(store: Store, run_id: str) -> Iterator[Record]:
    """What a model was made from, and the model itself, in the order in which they were done."""
    found: dict[str, Record] = {}
    waiting = [run_id]
    while waiting:
        record = store.published(waiting.pop(0))
        # What comes again was needed earlier.
        found.pop(record.id, None)
        found[record.id] = record
        waiting += record.inputs.values()
    yield from reversed(found.values())


def _facts(
    model: Record, manifests: Mapping[str, Manifest], backbone: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    if (data := manifests.get("subsample")) is not None:
        source = data.config["source"]
        [digest] = [entry["sha256"] for entry in data.files if entry["path"] == DEMONSTRATIONS_FILE]
        name = _shown(source.get("name") or source.get("path") or OWN)
        yield "Demonstrations", f"{name}, up to {data.config['size']:,} rows, SHA-256 {digest}"
    whose = backbone or {"name": OWN}
    at = f", revision {whose['revision']}" if whose.get("revision") else ""
    at += f", hash of its files {whose['content']}" if whose.get("content") else ""
    known = backbone == manifests["sft"].config.get("backbone")
    yield "Backbone" if known else "Imported, of an unknown backbone", f"{_shown(whose['name'])}{at}"
    versions = ", ".join(f"{name} {version}" for name, version in manifests[model.stage].versions.items())
    yield "Programs", f"{versions}{f', commit {model.commit}' if model.commit else ''}"


def _step(stage: str, manifest: Manifest) -> Step:
    left_out = UNUSED_BY_IMPORTS if manifest.config.get("imported") else {"execution"}
    settings = {name: value for name, value in manifest.config.items() if name not in left_out}
    what = stage_named(stage).describe(stage_named(stage).config.model_validate(manifest.config))
    flat = {name: value for name, value in flatten(settings) if value is not None}
    for value in sorted((value for value in flat.values() if value != _shown(value)), key=len, reverse=True):
        what = what.replace(value, _shown(value))
    return Step(stage, what, manifest.digest(), {name: _shown(value) for name, value in flat.items()})


def _shown(value: Any) -> Any:
    """A folder of this machine is nobody else's business but for its own name."""
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def _results(store: Store, model: Artifact, sources: list[Path]) -> ReportTable | None:
    """Of the newest report that has any: the rows of this model, and of what it was judged against."""
    if sources == [Lineage(store).policy_folder(model)]:
        policy: dict[str, Any] = {"type": "as_trained"}
    elif sources[0].parent.name == KEPT:
        policy = {"type": "kept", "kl": float(sources[0].name)}
    else:
        return None
    records = [record for record in store.records() if record.finished]
    same = {record.id for record in records if record.digest == model.digest}
    answers = {
        record.id
        for record in records
        if record.stage == "answer"
        and record.inputs.get("policy") in same
        and policy.items() <= record.config.get("policy", {}).items()
    }
    judged = {record.id: record for record in records if record.stage == "judge"}
    for report in (record for record in records if record.stage == "report"):
        ours: set[tuple[str, str]] = set()
        judges: dict[str, str] = {}
        for role, run_id in report.inputs.items():
            name, _, benchmark = role.partition(" on ")
            judgment = judged.get(run_id)
            if run_id in answers or (judgment and judgment.inputs.get("candidate") in answers):
                ours.add((name, benchmark))
            if judgment and judgment.inputs.get("baseline") in answers:
                ours.add((BASELINE, benchmark))
            if judgment:
                by = judgment.config.get("by", {})
                judges[f"{benchmark} judged by"] = ", ".join(filter(None, (by.get("type"), by.get("model"))))
        if ours:
            values = json.loads((store.fetch(report.id).path / TABLE).read_text(encoding="utf-8"))
            return _only(ReportTable.of(values), ours, judges)
    return None


def _only(table: ReportTable, ours: set[tuple[str, str]], judges: Mapping[str, str]) -> ReportTable:
    benchmarks = {benchmark for _, benchmark in ours}
    alone = all(policy == table.baseline for policy, _ in ours)
    rows = [
        replace(row, is_judged=row.is_judged and not alone)
        for row in table.rows
        if row.benchmark in benchmarks and (row.is_baseline or (row.policy, row.benchmark) in ours)
    ]
    known = {} if alone else {name: by for name, by in judges.items() if name.partition(" judged by")[0] in benchmarks}
    return replace(table, title="Results", rows=tuple(rows), provenance=known)
