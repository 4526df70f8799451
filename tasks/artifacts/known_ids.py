"""IDs out of the home's own database, read without MLflow: completing a command has no second to spare."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tasks.local_home import home_folder

MOST = 200
SECONDS = 0.5
"""How long a database in use is waited for."""


class Known(NamedTuple):
    """An artifact, or a pipeline's run, by its tags."""

    id: str
    stage: str | None
    """None of a pipeline's run."""
    name: str
    status: str
    started: datetime


def known(prefix: str = "", stage: str | None = None) -> Iterator[Known]:
    """Those whose IDs begin with `prefix`, newest first; none where the store is elsewhere."""
    query = """
        SELECT run.run_uuid, stage.value, coalesce(name.value, pipeline.value, stage.value), run.status, run.start_time
        FROM runs AS run
        LEFT JOIN tags AS stage ON stage.run_uuid = run.run_uuid AND stage.key = 'dpr.stage'
        LEFT JOIN tags AS name ON name.run_uuid = run.run_uuid AND name.key = 'dpr.name'
        LEFT JOIN tags AS pipeline ON pipeline.run_uuid = run.run_uuid AND pipeline.key = 'dpr.pipeline'
        WHERE run.lifecycle_stage = 'active' AND substr(run.run_uuid, 1, length(?1)) = ?1
        AND coalesce(stage.value, pipeline.value) IS NOT NULL AND (?2 IS NULL OR stage.value = ?2)
        ORDER BY run.start_time DESC LIMIT ?3
    """
    for run_id, of, name, status, started in _rows(query, prefix.lower(), stage, MOST):
        yield Known(run_id, of, name, status.lower(), datetime.fromtimestamp(started / 1000, UTC))


def known_models() -> Iterator[tuple[str, str, int]]:
    """The registered models by name, each with its aliases and the versions that they point at."""
    return _rows("SELECT name, alias, version FROM registered_model_aliases ORDER BY name, alias LIMIT ?", MOST)


def _rows(query: str, *values: object) -> Iterator[Any]:
    database = home_folder() / "mlflow.db"
    if os.environ.get("MLFLOW_TRACKING_URI", "").strip() or not database.is_file():
        return
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=SECONDS)) as connection:
        yield from connection.execute(query, values)
