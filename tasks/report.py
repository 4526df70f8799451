"""One table of every policy over every benchmark."""

import json
from typing import Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import ReportConfig
from dpr_core.errors import UsageError
from tasks.answer import read_answers, statistics
from tasks.judge import WIN_RATE
from tasks.stage import Stage, Workspace
from tasks.tracking import Artifact

TABLE = "table.json"


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    """Each input is a judge artifact; its role, "policy on benchmark", names the row."""
    from dpr_core.judging import canaries
    from dpr_core.reporting import plots, report
    from dpr_core.reporting.published import published

    settings = cast(ReportConfig, config)
    rows: dict[tuple[str, str], report.Row] = {}
    baselines: dict[str, str] = {}
    notes: list[str] = []
    for role in work.inputs:
        judged = work.input(role)
        policy, _, benchmark = role.partition(" on ")
        baseline, candidate = (work.artifact(judged.inputs[side]) for side in ("baseline", "candidate"))
        sft = work.artifact(baseline.inputs["policy"])
        if sft.stage != "sft":
            raise UsageError(f"{role}: judged against {baseline.id[:8]}, whose answers are not those of an SFT model")
        if baselines.setdefault(benchmark, baseline.id) != baseline.id:
            raise UsageError(f"the judgments on {benchmark} are against different SFT answers; report them apart")
        rows.setdefault(("SFT", benchmark), report.Row("SFT", benchmark, is_baseline=True, **_measured(baseline)))
        for complaint in canaries.complaints(work.store.record(judged.id).results):
            notes.append(f"Canaries of {role}: {complaint}")
        win = json.loads((judged.path / WIN_RATE).read_text(encoding="utf-8"))
        # A judge that checks results cannot favour a position.
        sees_order = judged.config["by"]["type"] != "verifiable"
        rows[policy, benchmark] = report.Row(
            policy,
            benchmark,
            win_rate=win["win_rate"],
            win_rate_interval=None if win["low"] is None else (win["low"], win["high"]),
            contradiction_rate=win["contradiction_rate"] if sees_order else None,
            first_position_rate=win["first_position_rate"] if sees_order else None,
            published=published(
                (sft.config["backbone"] or {}).get("name", ""), policy, candidate.config["benchmark"]["type"]
            ),
            **_measured(candidate),
        )
    table = report.Table(settings.title, tuple(rows.values()), notes=tuple(notes))
    (work.output / TABLE).write_text(
        json.dumps(report.as_dict(table), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (work.output / "report.md").write_text(report.as_markdown(table), encoding="utf-8")
    (work.output / "report.html").write_text(report.as_html(table), encoding="utf-8")
    bars = [
        (f"{row.policy} ({row.benchmark})", row.win_rate, *row.win_rate_interval)
        for row in rows.values()
        if row.win_rate is not None and row.win_rate_interval is not None
    ]
    if bars:
        plots.intervals(work.scratch / "win_rates.png", f"{table.estimand} (%)", bars, even=50)
        work.run.file(work.scratch / "win_rates.png", "plots")
    return {
        f"{row.benchmark}/{row.policy}/{name}": float(value)
        for row in rows.values()
        for name in ("win_rate", "accuracy", "response_tokens", "kl_to_sft")
        if (value := getattr(row, name)) is not None
    }


def _measured(answers: Artifact) -> dict[str, Any]:
    values = statistics(read_answers(answers.path))
    return {
        "prompts": int(values["answer/prompts"]),
        "response_tokens": values["answer/response_tokens"],
        "cut_share": values["answer/cut_share"],
        "accuracy": values.get("answer/accuracy"),
        "kl_to_sft": values.get("answer/kl_to_sft"),
    }


def describe(config: StageConfig) -> str:
    return f"{cast(ReportConfig, config).title}: every policy over every benchmark."


STAGE = Stage(name="report", version=1, config=ReportConfig, inputs={"*": ("judge",)}, body=body, describe=describe)
