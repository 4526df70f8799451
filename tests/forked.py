"""A fork server: Python programs in processes of their own that start with their imports done.

The server has imported what `dpr` needs, which takes seconds, and nothing has run in it. What to run is said as to
`python` itself: `-m module`, `-c code` or a script, and its arguments. Where how a process starts or what it imports
is the point of a test, it uses `subprocess`.
"""

import atexit
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import IO, Any

PRELOAD = [
    "torch",
    "transformers",
    "accelerate",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "flows.cli.benchmark",
    "flows.cli.inspect_view",
    "flows.cli.plan",
    "flows.cli.resume",
    "flows.placed",
    "dpr_core.training.reinforce_loop",
    "dpr_core.training.self_play_loop",
]


def context() -> ForkServerContext:
    """The context of the one fork server that these tests have."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    return server


class Forked:
    """A process with as much of `subprocess.Popen` as these tests use; its stdout and stderr are text to read."""

    def __init__(
        self, arguments: Sequence[object], env: Mapping[str, str], cwd: Path | None = None, new_session: bool = False
    ) -> None:
        self.stdout, out = _pipe()
        self.stderr, err = _pipe()
        words = [str(word) for word in arguments]
        where = str(cwd or Path.cwd())
        self._process = context().Process(
            target=_run, args=(words, dict(env), where, new_session, _Sent(out), _Sent(err))
        )
        self._process.start()
        os.close(out)
        os.close(err)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int:
        code = self.poll()
        assert code is not None, "it still runs"
        return code

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Everything that it still prints; one that takes longer is killed."""
        with ThreadPoolExecutor(2) as pool:
            out, err = pool.submit(self.stdout.read), pool.submit(self.stderr.read)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return out.result(), err.result()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def run(
    arguments: Sequence[object],
    env: Mapping[str, str],
    cwd: Path | None = None,
    new_session: bool = False,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Start it and wait for its end."""
    process = Forked(arguments, env, cwd, new_session)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(list(arguments), process.returncode, out, err)


def _pipe() -> tuple[IO[str], int]:
    ours, theirs = os.pipe()
    return os.fdopen(ours, encoding="utf-8"), theirs


class _Sent:
    """A file descriptor that is another process's own once it is unpickled there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (DupFd(self.descriptor),)


def _received(sent: Any) -> int:
    descriptor: int = sent.detach()
    return descriptor


def _run(words: list[str], env: dict[str, str], cwd: str, new_session: bool, out: int, err: int) -> None:
    """What `python` would do with these words, in a child of the fork server."""
    if new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    _read_again(env)
    first, *rest = words
    try:
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), vars(main))
        else:
            sys.argv = words
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _read_again(env: Mapping[str, str]) -> None:
    """What libraries have set up when they were imported, by another environment or before the program itself."""
    import torch
    from prefect.context import refresh_global_settings_context

    logging.getLogger().handlers.clear()
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    refresh_global_settings_context()
