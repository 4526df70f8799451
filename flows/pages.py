"""Pages of artifacts for a browser: a report's, and the token credit of a reward."""

import os
import sys
import webbrowser
from pathlib import Path

from dpr_core.errors import UsageError
from tasks.artifacts.store import Store
from tasks.stages.report import BESIDE
from tasks.stages.report import PAGE as REPORT_PAGE
from tasks.stages.reward import BESIDE as CREDIT
from tasks.stages.reward import CREDIT_PAGE


def report_page(store: Store, run_id: str) -> Path:
    """The copy beside the payload links to the artifacts."""
    return store.beside(run_id, f"{BESIDE}/{REPORT_PAGE}") or store.fetch(run_id).path / REPORT_PAGE


def credit_page(store: Store, run_id: str) -> Path:
    return store.beside(run_id, f"{CREDIT}/{CREDIT_PAGE}") or store.fetch(run_id).path / CREDIT_PAGE


PAGES = {"report": report_page, "reward": credit_page}


def page_of(store: Store, reference: str) -> Path:
    """The page of an artifact, or that of the report of a pipeline's run."""
    pipeline = store.parent_runs.find(reference)
    if pipeline is not None:
        stages = store.parent_runs.document(pipeline.id)["stages"] if pipeline.status == "FINISHED" else []
        reports = [entry["id"] for entry in stages if entry["stage"] == "report"]
        if not reports:
            raise UsageError(f"the pipeline {pipeline.title} has no report; dpr show {pipeline.id[:8]} has its stages")
        return report_page(store, reports[-1])
    record = store.record(reference)
    if record.stage not in PAGES:
        raise UsageError(
            f"{record.title} is an artifact of stage {record.stage}, which has no page; those of stage "
            f"{' and '.join(PAGES)} have one. In MLflow it is at {store.run_url(record.id)}"
        )
    return PAGES[record.stage](store, record.id)


def open_in_browser(page: Path) -> bool:
    """Whether there was a browser with windows to open it: one for terminals would take this one over."""
    windows = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    try:
        return windows and webbrowser.open(page.as_uri())
    except webbrowser.Error:
        return False
