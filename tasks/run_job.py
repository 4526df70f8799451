"""A stage from its job: in this process, or in ranks that it starts, with progress on stderr."""

from tasks.launch.ranks import run_ranks
from tasks.run_stage import Outcome, StageJob
from tasks.running.observer import OBSERVER


def run_job(job: StageJob) -> Outcome:
    """Run a stage, or reuse its artifact."""
    from tasks.running.progress import StageProgress

    with StageProgress(job.name, OBSERVER.get().progress) as progress:
        return job.run(progress, in_ranks=run_ranks)
