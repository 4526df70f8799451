"""Fault injection in one `dpr` command: it dies amid its writing, its clock jumps, its files cannot grow.

    python -m tests.soak.child '{"ready": "file", "clock": [0.5, -86400]}' run demo

`ready` names a file to make when the command begins, `die_at` the write after which it kills its process group,
`clock` after how many seconds the clock jumps and by how many, `file_bytes` how long a file may become.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "shutil.rmtree"}
"""Audit events of the file system; a kill comes before what they announce."""


def main() -> None:
    faults = json.loads(sys.argv[1])
    sys.argv = ["dpr", *sys.argv[2:]]
    from flows.cli.__main__ import main as dpr

    if "file_bytes" in faults:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["file_bytes"],) * 2)
    if "clock" in faults:
        jump(*faults["clock"])
    if "die_at" in faults:
        die_at(faults["die_at"])
    Path(faults["ready"]).touch()
    dpr()


def jump(after: float, by: float) -> None:
    """Move the wall clock of this process; the monotonic one goes on."""
    clock, nanoseconds, begun = time.time, time.time_ns, time.monotonic()

    def moved() -> float:
        return by if time.monotonic() - begun > after else 0.0

    time.time = lambda: clock() + moved()
    time.time_ns = lambda: nanoseconds() + int(moved() * 1e9)


def die_at(number: int) -> None:
    """Die at the n-th write: of a file or folder of the home, or a request to MLflow, before it or after it."""
    from tasks.artifacts.mlflow_client import MlflowClient

    passed, home, request = 0, os.environ["DPR_HOME"], MlflowClient.__getattr__

    def write() -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and str(arguments[0]).startswith(home) and "locks" not in str(arguments[0]):
            write()

    def counted(client: MlflowClient, name: str) -> Any:
        method = request(client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            write()
            result = method(*args, **kwargs)
            write()
            return result

        return call

    sys.addaudithook(on_event)
    MlflowClient.__getattr__ = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
