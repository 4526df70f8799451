"""What is said to a vLLM server, and how its answers are read: token ids in, token ids and log-probs out."""

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

ROUNDING = 1e-3
"""So far above 0 a log-prob may be."""

SHOWN = 500
"""Characters of what a server says that are passed on."""


class Died(Exception):
    """The server has failed; another one may not."""


@dataclass(frozen=True)
class ServedModel:
    """What a server says of its model."""

    model: str
    """Its name in requests."""
    root: str
    """Folder or hub id of the checkpoint that it was started with."""
    positions: int
    """Tokens that a sequence may have."""


class VllmClient:
    """One server, reached through `connection`. Failures that a restart may mend are Died."""

    def __init__(self, connection: Connection, name: str, seconds: float, at_once: int) -> None:
        self.connection = connection
        self.name = name
        self.seconds = seconds
        self.at_once = at_once

    def served(self) -> ServedModel:
        models = self._call("GET", "/v1/models")
        try:
            model = models["data"][0]
            return ServedModel(
                escape_control(str(model["id"])), escape_control(str(model["root"])), int(model["max_model_len"])
            )
        except (TypeError, LookupError, ValueError):
            raise DensePathError(f"{self.name} does not list a model of vLLM's at /v1/models") from None

    def load(self, weights: Path, version: str) -> None:
        """Put these weights in place of its own, and forget what was computed with the old ones."""
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(weights)}}
        self._call("POST", "/collective_rpc", reload)
        if self._call("POST", "/reset_prefix_cache").get("success") is not True:
            raise DensePathError(f"{self.name} keeps its prefix cache, because others use it: give this run its own")
        self._call("POST", "/update_weight_version", {"new_version": version})

    def version(self) -> str:
        """What its weights were called when they were loaded."""
        return str(self._call("GET", "/weight_info").get("weight_version"))

    def draw(
        self,
        model: str,
        prompts: Sequence[tuple[int, ...]],
        rows: Sequence[int],
        sampling: Sampling,
        seed: int,
        vocabulary: int,
        keep: Callable[[int, Completion], None],
    ) -> None:
        """Draw for the prompts of these rows, as many at once as allowed; each is kept as soon as it is there."""

        async def draw_all() -> None:
            places = asyncio.Semaphore(self.at_once)

            async def draw_row(row: int) -> None:
                body = request(model, prompts[row], sampling, row_seed(seed, row))
                async with places:
                    reply = self._read(await client.post("/v1/completions", json=body))
                try:
                    keep(row, completion(reply, prompts[row], sampling, vocabulary))
                except ValueError as error:
                    raise DensePathError(f"{self.name} returned what cannot be a response: {error}") from None

            async with self.connection.async_client(self.seconds, self.at_once) as client:
                tasks = [asyncio.create_task(draw_row(row)) for row in rows]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        try:
            asyncio.run(draw_all())
        except httpx.TransportError as error:
            raise Died(_in_a_line(error)) from None

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            with self.connection.client(self.seconds) as client:
                return self._read(client.request(method, path, json=body))
        except httpx.TransportError as error:
            raise Died(_in_a_line(error)) from None

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        path, status = response.url.path, response.status_code
        said = escape_control(" ".join(response.text.split())[:SHOWN])
        if status >= 500:
            raise Died(f"{path}: HTTP {status}: {said}")
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
            raise DensePathError(f"{self.name} refused a request: {path}: HTTP {status}: {said}")
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise DensePathError(f"{self.name} does not answer {path} as vLLM does: {said}")
        return document


def request(model: str, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
    """The whole distribution at the temperature, whatever the model's own generation settings say; one end token."""
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
    """Another one for each row: two prompts with one seed would be drawn with the same random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:7], "big")


def completion(reply: Mapping[str, Any], prompt: tuple[int, ...], sampling: Sampling, vocabulary: int) -> Completion:
    """What the server drew; ValueError where it is not a response to this prompt."""
    try:
        choice = reply["choices"][0]
        read, ids, log_probs = choice["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["token_logprobs"]
        drawn = Completion(prompt, tuple(map(int, ids)), tuple(map(float, log_probs)))
    except (LookupError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    response = drawn.response
    if tuple(read) != prompt:
        raise ValueError(f"it read the prompt {list(read)} in place of {list(prompt)}")
    if not 1 <= len(response) <= sampling.max_response_tokens:
        raise ValueError(f"{len(response)} tokens, where 1 to {sampling.max_response_tokens} were asked for")
    if len(drawn.log_probs) != len(response):
        raise ValueError(f"{len(drawn.log_probs)} log-probs of {len(response)} tokens")
    if unknown := [token for token in response if not 0 <= token < vocabulary]:
        raise ValueError(f"token {unknown[0]}, where the policy has {vocabulary}")
    if not all(log_prob <= ROUNDING for log_prob in drawn.log_probs):
        raise ValueError("a log-prob above 0")
    ended = response.index(sampling.end_token) + 1 if sampling.end_token in response else sampling.max_response_tokens
    if len(response) != ended:
        raise ValueError(f"{len(response)} tokens, of which {ended} should be there ({choice.get('finish_reason')})")
    return drawn


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {escape_control(' '.join(str(error).split())[:SHOWN])}"
