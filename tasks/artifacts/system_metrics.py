"""System metrics: how busy the machine is while a stage trains, as MLflow's own monitors read it."""

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from dpr_core.errors import UsageError
from tasks.artifacts.mlflow_client import system_monitors

logger = logging.getLogger("dense_path")

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
INTERVAL = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
SECONDS = 10.0
"""What takes less time than this is not watched."""
LONGEST_READING = 5.0
"""Seconds. A driver that hangs must not keep a stage from its end."""


@contextmanager
def watched(record: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
    """Inside the block a thread gives `record` the load of this machine, again and again."""
    if os.environ.get(SWITCH, "").strip().lower() in ("false", "0"):
        yield
        return
    every, ended = _interval(), threading.Event()
    thread = threading.Thread(target=_watch, args=(record, every, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LONGEST_READING)


def _watch(record: Callable[[Mapping[str, float]], None], every: float, ended: threading.Event) -> None:
    monitors = []
    while not ended.wait(every):
        # What is only for people must not end a stage.
        try:
            monitors = monitors or system_monitors()
            for monitor in monitors:
                monitor.collect_metrics()
            if ended.is_set():
                return
            record({name: value for monitor in monitors for name, value in monitor.aggregate_metrics().items()})
            for monitor in monitors:
                monitor.clear_metrics()
        except Exception as error:
            logger.warning("system metrics are not logged any more: %s", error)
            return


def _interval() -> float:
    setting = os.environ.get(INTERVAL, "").strip()
    try:
        seconds = float(setting) if setting else SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise UsageError(f"{INTERVAL}: {setting!r} is no number of seconds; it is {SECONDS:g} where it is not set")
    return seconds
