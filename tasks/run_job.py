"""A stage from its job: in this process, or in ranks that it starts, with progress on stderr."""

from tasks.artifacts.store import Store
from tasks.launch.ranks import run_ranks
from tasks.registry import stage_named
from tasks.run_stage import Outcome, StageJob, run_stage
from tasks.running.observer import OBSERVER


def run_job(job: StageJob) -> Outcome:
    """Run a stage, or reuse its artifact."""
    from tasks.running.progress import StageProgress

    with StageProgress(job.name, OBSERVER.get().progress) as progress:
        return run_stage(
            stage_named(job.stage),
            job.config,
            job.inputs,
            store=Store.open(retry=True),
            parent=job.parent,
            name=job.name,
            not_before=job.not_before,
            origin=job.origin,
            progress=progress,
            in_ranks=run_ranks,
        )
