"""vLLM on the CPU, serving a judge whose verdict is known: a network that likes some characters more than others."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dpr_core.config.model import LabBackboneConfig
from dpr_core.lab.backbone import untrained

MODEL = "always-a"

LIKED = '"}{:,A'
"""Most liked first. Where only JSON of the verdict's schema may be written, greedy choice writes verdict A at once."""

START_SECONDS = 300.0

CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True)
class Server:
    """A running server, and how long it took until it answered."""

    url: str
    seconds: float


def save_judge(folder: Path, positions: int) -> None:
    """A Hugging Face folder with network, tokenizer and chat template."""
    model, tokenizer = untrained(LabBackboneConfig(width=64, layers=1, heads=2, feed_forward=64))
    model.config.max_position_embeddings = positions
    with torch.no_grad():
        # Whatever was read, the last hidden state is all ones, so that the output layer alone decides.
        model.get_input_embeddings().weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        scores = model.get_output_embeddings().weight.zero_()
        for place, character in enumerate(LIKED):
            scores[tokenizer.convert_tokens_to_ids(character)] = 1.0 - place / len(LIKED)
    tokenizer.chat_template = CHAT
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(environment: Path, folder: Path, log: Path, positions: int = 8192) -> Iterator[Server]:
    """Serve `folder` on a free port of the loopback interface; what the server says goes to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Compiling would take longer than all that is asked here.
    command = (
        f"{environment}/bin/python -m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port {port} "
        f"--served-model-name {MODEL} --dtype float32 --max-model-len {positions} --enforce-eager"
    )
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command.split(), "--model", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_variables(folder.parent),
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _answers(f"{url}/health"):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise RuntimeError(f"vLLM did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield Server(f"{url}/v1", time.monotonic() - started)
    finally:
        _end(process)


def _variables(cache: Path) -> Mapping[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(cache / "vllm")}
    return {**os.environ, **offline, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The server and the engine that it started, which have a session of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            print("vLLM did not end when it was asked to", file=sys.stderr)
