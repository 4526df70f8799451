"""HTTP client of a vLLM server: weight updates, and sampling with token ids in, token ids and log-probs out."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dpr_core.errors import DensePathError, UsageError
from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.vllm_server import Connection
from dpr_core.text import escape_control

ROUNDING_TOLERANCE = 1e-3
"""Greatest log-prob that counts as rounding of 0."""

MAX_ERROR_CHARACTERS = 500
"""Characters of a server's error that messages quote."""


class ServerFailedError(Exception):
    """The server has failed; a restart may help."""


@dataclass(frozen=True)
class ServedModel:
    """The model that a server lists."""

    model: str
    """The name in requests."""
    root: str
    """Folder or hub id of the checkpoint that the server was started with."""
    positions: int
    """The context length."""


class VllmClient:
    """A client of one server; failures that a restart may fix raise ServerFailedError."""

    def __init__(self, connection: Connection, name: str, seconds: float, at_once: int) -> None:
        self.connection = connection
        self.name = name
        self.seconds = seconds
        self.at_once = at_once

    def model_info(self) -> ServedModel:
        models = self._call("GET", "/v1/models")
        try:
            model = models["data"][0]
            return ServedModel(
                escape_control(str(model["id"])), escape_control(str(model["root"])), int(model["max_model_len"])
            )
        except (TypeError, LookupError, ValueError):
            raise DensePathError(f"{self.name} does not list a model of vLLM's at /v1/models") from None

    def load(self, weights: Path, version: str) -> None:
        """Reload the server's weights from a checkpoint, and reset its prefix cache."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}}
        self._call("POST", "/collective_rpc", reload)
        if self._call("POST", "/reset_prefix_cache").get("success") is not True:
            raise DensePathError(f"{self.name} keeps its prefix cache, because others use it: give this run its own")
        self._call("POST", "/update_weight_version", {"new_version": version})

    def version(self) -> str:
        """The version name of the loaded weights."""
        return str(self._call("GET", "/weight_info").get("weight_version"))

    def sample(
        self,
        model: str,
        prompts: Sequence[tuple[int, ...]],
        rows: Sequence[int],
        sampling: Sampling,
        seed: int,
        vocabulary: int,
        keep: Callable[[int, Completion], None],
    ) -> None:
        """Sample for the prompts of these rows concurrently; `keep` is called with each completion as it arrives."""

        async def sample_all() -> None:
            semaphore = asyncio.Semaphore(self.at_once)

            async def sample_row(row: int) -> None:
                body = request_body(model, prompts[row], sampling, row_seed(seed, row))
                async with semaphore:
                    reply = self._read(await client.post("/v1/completions", json=body))
                try:
                    keep(row, parse_completion(reply, prompts[row], sampling, vocabulary))
                except ValueError as error:
                    raise DensePathError(f"{self.name} returned what cannot be a response: {error}") from None

            async with self.connection.async_client(self.seconds, self.at_once) as client:
                tasks = [asyncio.create_task(sample_row(row)) for row in rows]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        try:
            asyncio.run(sample_all())
        except httpx.TransportError as error:
            raise ServerFailedError(_one_line(error)) from None

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            with self.connection.client(self.seconds) as client:
                return self._read(client.request(method, path, json=body))
        except httpx.TransportError as error:
            raise ServerFailedError(_one_line(error)) from None

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        path, status = response.url.path, response.status_code
        detail = escape_control(" ".join(response.text.split())[:MAX_ERROR_CHARACTERS])
        if status >= 500:
            raise ServerFailedError(f"{path}: HTTP {status}: {detail}")
        if status in (401, 403):
            raise UsageError(
                f"{self.name} refused the key (HTTP {status}); name the variable that holds it in "
                "rollouts.execution.api_key_variable"
            )
        if status == 404 and not path.startswith("/v1/"):
            raise UsageError(
                f"{self.name} has no {path}, so it cannot take weights: start vLLM 0.32 or newer with "
                "VLLM_SERVER_DEV_MODE=1"
            )
        if status >= 400:
            raise DensePathError(f"{self.name} refused a request: {path}: HTTP {status}: {detail}")
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise DensePathError(f"{self.name} does not answer {path} as vLLM does: {detail}")
        return document


def request_body(model: str, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
    """The body of a completion request: untruncated sampling, one end token, token ids and log-probs returned."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_response_tokens,
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "stop_token_ids": [sampling.end_token],
        "seed": seed,
        "logprobs": 0,
        "return_token_ids": True,
    }


def row_seed(seed: int, row: int) -> int:
    """A seed for each row: with one seed, all prompts would be sampled with the same random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:7], "big")


def parse_completion(
    reply: Mapping[str, Any], prompt: tuple[int, ...], sampling: Sampling, vocabulary: int
) -> Completion:
    """The completion in a reply; ValueError where it is not a valid response to this prompt."""
    try:
        choice = reply["choices"][0]
        echoed, ids, log_probs = choice["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["token_logprobs"]
        completion = Completion(prompt, tuple(map(int, ids)), tuple(map(float, log_probs)))
    except (LookupError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    response = completion.response
    if tuple(echoed) != prompt:
        raise ValueError(f"it read the prompt {list(echoed)} in place of {list(prompt)}")
    if not 1 <= len(response) <= sampling.max_response_tokens:
        raise ValueError(f"{len(response)} tokens, where 1 to {sampling.max_response_tokens} were asked for")
    if len(completion.log_probs) != len(response):
        raise ValueError(f"{len(completion.log_probs)} log-probs of {len(response)} tokens")
    if unknown := [token for token in response if not 0 <= token < vocabulary]:
        raise ValueError(f"token {unknown[0]}, where the policy has {vocabulary}")
    if not all(log_prob <= ROUNDING_TOLERANCE for log_prob in completion.log_probs):
        raise ValueError("a log-prob above 0")
    ended = response.index(sampling.end_token) + 1 if sampling.end_token in response else sampling.max_response_tokens
    if len(response) != ended:
        raise ValueError(f"{len(response)} tokens, of which {ended} should be there ({choice.get('finish_reason')})")
    return completion


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {escape_control(' '.join(str(error).split())[:MAX_ERROR_CHARACTERS])}"
