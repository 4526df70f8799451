"""deployments/: every file for an engine is what that engine takes, and all speak of this version."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.templating import apply_values

from deployments import setup
from dpr_core import __version__
from flows import recipes
from tasks.placement import REFUSED
from tasks.prefect_task import RAN, REUSED

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = ROOT / "deployments"
TEMPLATES = {"cpu": None, "gpu": 1, "gpu8": 8}


def text(name: str) -> str:
    return (DEPLOYMENTS / name).read_text(encoding="utf-8")


def settings_of_compose(**more: str) -> dict[str, str]:
    lines = [line for line in text("env.example").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines) | more


@pytest.fixture
def compose(tmp_path: Path) -> Any:
    """What becomes of compose.yaml with an environment file."""
    plugin = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    command = ["docker", "compose"] if plugin else ["docker-compose"]
    if shutil.which(command[0]) is None:
        pytest.skip("there is no docker compose: apt-get install docker-compose")

    def config(**settings: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "env"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        options = ["--env-file", str(file), "--file", str(DEPLOYMENTS / "compose.yaml"), "config"]
        return subprocess.run([*command, *options], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})

    return config


SECRETS = {"POSTGRES_PASSWORD": "one", "S3_SECRET_KEY": "two", "PREFECT_AUTH": "three:four"}


def test_compose_takes_its_file(compose: Any) -> None:
    done = compose(**settings_of_compose(**SECRETS, OPENAI_API_KEY="five") | {"COMPOSE_PROFILES": "gpu,no-gpu"})
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    workers = {"worker-cpu", "worker-gpu", "worker-no-gpu"}
    assert {"postgres", "s3", "mlflow", "prefect", "setup", *workers} == set(services)
    ours = {name for name, each in services.items() if each["image"] == f"dense-path:{__version__}"}
    assert ours == {"mlflow", "prefect", "setup", *workers}
    given = {name for name, each in services.items() if "five" in each.get("environment", {}).values()}
    assert given == workers
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    # Whether or not there is a GPU, somebody serves its pool.
    profiles = yaml.safe_load(text("compose.yaml"))["services"]["worker-no-gpu"]["profiles"]
    assert [settings_of_compose()["COMPOSE_PROFILES"]] == profiles
    assert "--pool=gpu" in services["worker-no-gpu"]["command"]


@pytest.mark.parametrize("secret", ["POSTGRES_PASSWORD", "S3_SECRET_KEY", "PREFECT_AUTH"])
def test_compose_begins_nothing_without_a_secret(compose: Any, secret: str) -> None:
    done = compose(**settings_of_compose(**SECRETS | {secret: ""}))
    assert done.returncode != 0
    assert f"set {secret} in deployments/.env" in done.stderr


def test_all_files_speak_of_this_version() -> None:
    assert settings_of_compose()["DENSE_PATH_VERSION"] == __version__
    assert f"VERSION={__version__} " in text("Dockerfile")
    prefect = re.search(r"^prefect==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert prefect is not None
    assert f"prefecthq/prefect:{prefect[1]}-python3.11-kubernetes" in text("kubernetes/worker.yaml")
    for name in TEMPLATES:
        properties = json.loads(text(f"kubernetes/{name}.json"))["variables"]["properties"]
        assert properties["image"]["default"] == f"dense-path:{__version__}"
    assert f"image: dense-path:{__version__}\n" in text("kubernetes/ray.yaml")
    ray = re.search(r"ray\[default,train\]==([0-9.]+)\*", (ROOT / "pyproject.toml").read_text())
    assert ray is not None
    assert f"rayVersion: {ray[1]}" in text("kubernetes/ray.yaml")


@pytest.mark.parametrize(("name", "gpus"), TEMPLATES.items())
def test_a_template_makes_a_job_of_kubernetes(name: str, gpus: int | None) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    template = json.loads(text(f"kubernetes/{name}.json"))
    WorkPoolCreate(name=name, type="kubernetes", base_job_template=template)
    properties = template["variables"]["properties"]
    values = {key: value["default"] for key, value in properties.items() if "default" in value}
    values |= {"command": ["prefect", "flow-run", "execute"], "labels": {}, "name": "x"}
    values["env"] = [{"name": key, "value": value} for key, value in values["env"].items()]
    job = apply_values(template["job_configuration"]["job_manifest"], values)
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
    # Prefect's worker asks for these two at a place where Kubernetes does not know them.
    del pod["parallelism"], pod["completions"]
    kubernetes_validate.validate(job, "1.34", strict=True)


def test_templates_differ_in_machines_alone() -> None:
    def common(name: str) -> str:
        template = json.loads(text(f"kubernetes/{name}.json"))
        pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
        for key in ("nodeSelector", "tolerations"):
            pod.pop(key, None)
        pod["containers"][0]["resources"]["limits"].pop("nvidia.com/gpu", None)
        del pod["volumes"][1]["emptyDir"]["sizeLimit"]
        for key in ("cpu", "memory"):
            del template["variables"]["properties"][key]["default"]
        return json.dumps(template)

    assert len({common(name) for name in TEMPLATES}) == 1


def test_the_workers_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = list(yaml.safe_load_all(text("kubernetes/worker.yaml")))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    containers = manifests[-1]["spec"]["template"]["spec"]["containers"]
    assert [f"--pool={name}" for name in TEMPLATES] == [each["args"][4] for each in containers]


def test_the_ray_cluster_of_kubernetes_has_a_gpu_for_each_rank_and_keys_in_its_nodes_alone() -> None:
    """KubeRay's own definition is not at hand: what is Kubernetes' in it is held against that."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = yaml.safe_load(text("kubernetes/ray.yaml"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    head, node = cluster["headGroupSpec"]["template"], group["template"]
    for pod in (head, node):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **pod}
        kubernetes_validate.validate(whole, "1.34", strict=True)
        [container] = pod["spec"]["containers"]
        assert {"secretRef": {"name": "dense-path"}} in container["envFrom"]
        assert [each["name"] for each in container["env"]] == ["RAY_USAGE_STATS_ENABLED"]
    assert "nvidia.com/gpu" not in head["spec"]["containers"][0]["resources"]["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # no rank beside `dpr`
    assert "persistentVolumeClaim" not in node["spec"]["volumes"][0]
    assert "runtimeEnvYAML" not in job["spec"]
    gpus = node["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    command, recipe = job["spec"]["entrypoint"].rsplit(" ", 1)
    launch = recipes.load(recipe).reinforce.execution.launch
    assert (command, launch.engine) == ("dpr run", "ray")
    assert launch.processes == gpus * group["replicas"]
    assert launch.fewest == gpus * group["minReplicas"]


def test_automations_are_what_prefect_takes() -> None:
    read = yaml.safe_load(text("automations.yaml"))["automations"]
    notify = text("notifications.yaml").replace("BLOCK", "00000000-0000-0000-0000-000000000000")
    names = [AutomationCore.model_validate(each).name for each in [*read, *yaml.safe_load(notify)["automations"]]]
    assert names[:2] == ["crash-zombies", "resume-crashed"]
    assert len(set(names)) == len(names)
    # What is deployed is resumed, but for the stages that a controller starts again.
    deployed = yaml.safe_load(text("prefect.yaml"))["deployments"]
    flows = {resolve_name(each["entrypoint"]).name for each in deployed}
    resumed = read[1]["trigger"]["match_related"][0]["prefect.resource.name"]
    assert flows == {*resumed, "placed"}
    # No process is missed of what has ended, or waits for another.
    ended = {f"prefect.flow-run.{name}" for name in (RAN, REUSED, REFUSED, "AwaitingRetry")}
    assert ended < set(read[0]["trigger"]["expect"])


def test_a_setup_says_which_server_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(SystemExit, match="PREFECT_API_URL is not"),
    ):
        setup.main()
    nowhere = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(nowhere), pytest.raises(SystemExit, match="the Prefect server at http://127.0.0.1:9/api: "):
        setup.main()


def test_the_image_is_made_of_files_that_are_there_and_is_not_roots() -> None:
    instructions = re.findall(r"^([A-Z]+) (.*)$", text("Dockerfile"), re.MULTILINE)
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [words for name, words in instructions if name == "COPY" and "--from" not in words]
    sources = [source for words in copied for source in words.split()[:-1]]
    assert set(sources) == set(shown)
    assert all((ROOT / source).exists() for source in sources)
    assert [words for name, words in instructions if name == "USER"] == ["10001"]


@pytest.mark.parametrize("name", ["worker.sh", "slurm/job.sh", "slurm/ray.sh"])
def test_scripts_are_read_by_bash(name: str) -> None:
    assert os.access(DEPLOYMENTS / name, os.X_OK)
    subprocess.run(["bash", "-n", str(DEPLOYMENTS / name)], check=True)


def test_a_worker_that_is_to_end_ends_its_flow_runs_first(tmp_path: Path) -> None:
    """By itself Prefect's worker waits for them, however long they take."""
    prefect = tmp_path / "prefect"
    prefect.write_text(f"""#!{sys.executable}
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = '''
import signal, sys, time
def ended(number, frame):
    time.sleep(0.3)
    open({str(tmp_path / "ended")!r}, "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, ended)
print(*sys.argv[1:], flush=True)
time.sleep(60)
'''
subprocess.run([sys.executable, "-c", code, *sys.argv[1:]], start_new_session=True)
signal.pause()
""")
    prefect.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [str(DEPLOYMENTS / "worker.sh"), "--pool", "gpu"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "worker start --pool gpu\n"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 128 + signal.SIGTERM
    assert (tmp_path / "ended").exists()


def test_a_ray_cluster_of_slurm_whose_time_is_over_keeps_what_is_done_and_is_queued_again(tmp_path: Path) -> None:
    """What ends `ray symmetric-run` by a signal would kill its command at once: the command is told by itself."""

    def program(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    program("srun", 'shift; exec "$@"')
    program("ray", f'echo "$RAY_ADDRESS $*" >{tmp_path}/ray.log; while [ "$1" != -- ]; do shift; done; shift; "$@"')
    program("scontrol", f'echo "$*" >{tmp_path}/scontrol.log')
    program("dpr", f"trap 'touch {tmp_path}/kept; exit 143' TERM; echo \"$*\"; while :; do sleep 0.05; done")
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DPR_HOME": str(tmp_path),
        "SLURM_JOB_ID": "10007",
        "SLURM_JOB_NUM_NODES": "2",
    }
    script = str(DEPLOYMENTS / "slurm" / "ray.sh")
    with subprocess.Popen([script, "dpr", "run", "x y"], env=variables, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "run x y\n"
        job.send_signal(signal.SIGUSR1)
        job.wait(20)
    assert (tmp_path / "kept").exists()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 10007\n"
    address, _, rest = (tmp_path / "ray.log").read_text().partition(" ")
    assert address.endswith(":20007")
    assert rest.startswith(f"symmetric-run --address {address} --min-nodes 2 -- ")
    # A cluster that does not come up is told by `ray symmetric-run` in words alone.
    program("ray", "exit 0")
    assert subprocess.run([script, "dpr"], env=variables).returncode == 1
