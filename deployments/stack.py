"""The topology of a company as processes of one machine: databases, an S3 server, MLflow, Prefect, and a worker a pool.

`python -m deployments.stack start` starts what does not run yet, `status` tells of it, `stop` ends it and removes what
it made: the S3 server keeps all in memory. docs/operations.md has the rest.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from deployments.servers import (
    POSTGRESQL,
    Server,
    answering,
    create_database,
    free_port,
    mlflow_server,
    postgresql,
    s3_server,
)

ROOT = Path(__file__).parents[1]
SLOTS = {"cpu": 8, "gpu": 1}
"""Of the worker on each pool: a GPU does one stage at a time."""

BUCKET = "artifacts"
LOCAL = "127.0.0.1"

NEXT = """
To use it, in a shell (its DPR_HOME is {shell}):

  source {environment}
  prefect deployment run dense-path/run --watch
  dpr run demo --place "sft,reward,reinforce,answer=gpu" --place "*=cpu"

`make stack` starts again what was killed, `make stack-stop` ends all and removes what was made."""


class Stack:
    """The servers, in the order of their start, under a folder that remembers ports and passwords."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        remembered = folder / "ports.json"
        if not remembered.exists():
            folder.mkdir(parents=True, exist_ok=True)
            ports = {name: free_port() for name in ("postgresql", "s3", "mlflow", "prefect")}
            remembered.touch(mode=0o600)
            remembered.write_text(json.dumps({**ports, "password": secrets.token_hex(16)}))
        known = json.loads(remembered.read_text())
        self._password: str = known["password"]
        self.prefect = f"http://{LOCAL}:{known['prefect']}"
        self.mlflow = f"http://{LOCAL}:{known['mlflow']}"
        self._s3 = f"http://{LOCAL}:{known['s3']}"
        self._database = f"owner:{self._password}@{LOCAL}:{known['postgresql']}"
        self.servers = {
            "postgresql": postgresql(folder / "postgresql", self._password, known["postgresql"])[0],
            "s3": s3_server(folder, known["s3"])[0],
            "mlflow": self._mlflow(known["mlflow"]),
            "prefect": self._prefect(known["prefect"]),
            **{f"worker-{pool}": self.worker(pool, pool, slots) for pool, slots in SLOTS.items()},
        }

    def environment(self, name: str) -> dict[str, str]:
        """What a worker, or a shell, needs to know; its home is its own, as on a machine of its own."""
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return {
            "DPR_HOME": str(home),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": f"{self.prefect}/api",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "DPR_STATES": f"s3://{BUCKET}/states",
            **self._s3_access(),
            "NO_PROXY": LOCAL,
            "DO_NOT_TRACK": "true",
        }

    def start(self) -> None:
        """Start all that does not run, and return when all answers."""
        begun = self._begin("postgresql", "s3")
        self._make_databases()
        begun += self._begin("mlflow", "prefect")
        if {"s3", "prefect"} & {*begun}:
            self._set_up()
        self._begin(*(f"worker-{pool}" for pool in SLOTS))
        sourced = self.folder / "environment"
        sourced.touch(mode=0o600)
        exported = self.environment("shell").items()
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exported]
        lines += [f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n"]
        sourced.write_text("".join(lines))

    def stop(self) -> None:
        """End all, newest first, and remove all but the logs."""
        for server in reversed(self.servers.values()):
            server.stop()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".log":
                path.unlink()

    def status(self) -> dict[str, str]:
        """What runs, with its address."""
        addresses = {"s3": self._s3, "mlflow": self.mlflow, "prefect": self.prefect}
        addresses["postgresql"] = self._database.partition("@")[2]
        found = {}
        for name, server in self.servers.items():
            process = server.main()
            runs = "does not run" if process is None else f"process {process.pid}"
            found[name] = f"{runs:<16} {addresses.get(name, ''):<24} {server.log}"
        return found

    def runs(self) -> bool:
        return all(server.main() is not None for server in self.servers.values())

    def api(self, path: str, body: object = None, method: str = "POST") -> Any:
        """Ask Prefect's server, or tell it."""
        method, url = ("GET" if body is None else method), f"{self.prefect}/api/{path}"
        answer = httpx.request(method, url, json=body, timeout=30, trust_env=False)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _begin(self, *names: str) -> list[str]:
        begun = [name for name in names if self.servers[name].main() is None]
        for name in begun:
            self.servers[name].begin()
        for name in begun:
            self.servers[name].wait()
        return begun

    def _make_databases(self) -> None:
        made = self.folder / "databases"
        if not made.exists():
            for name in ("mlflow", "prefect"):
                create_database(name, int(self._database.rpartition(":")[2]), self._password)
            made.touch()

    def _set_up(self) -> None:
        command = [sys.executable, str(ROOT / "deployments" / "setup.py"), "--bucket", BUCKET]
        environment = _without_settings() | self.environment("shell")
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"deployments/setup.py failed:\n{(done.stdout + done.stderr)[-3000:]}")

    def _s3_access(self) -> dict[str, str]:
        return {
            "MLFLOW_S3_ENDPOINT_URL": self._s3,
            "AWS_ACCESS_KEY_ID": "stack",
            "AWS_SECRET_ACCESS_KEY": self._password,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _mlflow(self, port: int) -> Server:
        # In the environment, since the arguments of a process are seen by every user of its machine.
        environment = _without_settings() | {"MLFLOW_BACKEND_STORE_URI": f"postgresql://{self._database}/mlflow"}
        options = ["--no-serve-artifacts", "--default-artifact-root", f"s3://{BUCKET}/runs"]
        return mlflow_server(self.folder, *options, port=port, environment=environment)[0]

    def _prefect(self, port: int) -> Server:
        environment = _without_settings() | {
            "PREFECT_HOME": self.environment("server")["PREFECT_HOME"],
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{self._database}/prefect",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "true",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOCAL, "--port", str(port)]
        ready = answering(f"{self.prefect}/api/health")
        return Server(command, self.folder / "prefect.log", ready, environment=environment)

    def worker(self, name: str, pool: str, slots: int = 1, **more: str) -> Server:
        """A worker with a home of its own."""
        environment = _without_settings() | self.environment(f"worker-{name}") | more
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "2"
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
        command += ["--limit", str(slots)]

        def ready() -> bool:
            online = self.api(f"work_pools/{pool}/workers/filter", {})
            return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in online)

        return Server(command, self.folder / f"worker-{name}.log", ready, environment=environment)


def _without_settings() -> dict[str, str]:
    """The environment without anything of the user's own servers."""
    settings = ("DPR_", "PREFECT_", "MLFLOW_", "AWS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["start", "stop", "status"])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "stack", help="default: build/stack")
    arguments = parser.parse_args()
    if not (POSTGRESQL / "initdb").exists():
        raise SystemExit(f"error: there is no PostgreSQL 15 in {POSTGRESQL}: apt-get install postgresql-15")
    try:
        stack = Stack(arguments.folder.resolve())
        if arguments.what == "stop":
            return stack.stop()
        if arguments.what == "start":
            stack.start()
    except RuntimeError as error:
        raise SystemExit(f"error: {error}") from None
    for name, line in stack.status().items():
        print(f"{name:<12} {line}")
    if arguments.what == "start":
        print(NEXT.format(shell=stack.environment("shell")["DPR_HOME"], environment=stack.folder / "environment"))
    elif not stack.runs():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
