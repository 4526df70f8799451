"""A vLLM server's stand-in on the loopback interface: it draws with weights that it was given, and can be broken."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dpr_core.models.checkpoints import load_model
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from tests.loopback import Call, Loopback, Reply, refused

Change = Callable[[dict[str, Any]], None]


class LoopbackVllm(Loopback):
    """As it starts it holds the checkpoint at `root`. It dies when it should draw for the `deaths`-th time from now on,
    and comes back with the weights it had at first."""

    def __init__(self, root: Path, positions: int = 32) -> None:
        super().__init__(self._draw)
        self.url = self.url.removesuffix("/v1")
        self.root = root
        self.positions = positions
        self.drawn: list[dict[str, Any]] = []
        """Every request that was answered."""
        self.asked: list[str] = []
        """What was said to it besides: the path, and what stands in it for the weights."""
        self.deaths: list[int] = []
        """Of the coming requests for a response, the numbers of those that kill it; see `die_at`."""
        self.change: Change = lambda choice: None
        """Spoils a response."""
        self.development = True
        self.key: str | None = None
        self.lock = threading.Lock()
        self._count = 0
        self._restart()
        for method, path, answer in (
            ("GET", "/health", lambda call: Reply({})),
            ("GET", "/v1/models", self._models),
            ("POST", "/v1/completions", self._locked),
        ):
            self.route(method, path, answer)
        for method, path, answer in (
            ("POST", "/collective_rpc", self._load),
            ("POST", "/reset_prefix_cache", self._reset),
            ("POST", "/update_weight_version", self._rename),
            ("GET", "/weight_info", lambda call: Reply({"weight_version": self.weights})),
        ):
            self.route(method, path, self._if_in_development(answer))

    def die_at(self, *requests: int) -> None:
        """Counted from now on, from 0."""
        self.deaths = [self._count + number for number in requests]

    def reply(self, call: Call) -> Reply:
        if self.key and call.path.startswith("/v1") and call.headers.get("authorization") != f"Bearer {self.key}":
            return Reply({"error": "Unauthorized"}, 401)
        return super().reply(call)

    def _restart(self) -> None:
        self.weights = "default"
        self.model: PreTrainedModel = load_model(self.root)

    def _if_in_development(self, answer: Callable[[Call], Reply]) -> Callable[[Call], Reply]:
        return lambda call: answer(call) if self.development else Reply({"detail": "Not Found"}, 404)

    def _models(self, call: Call) -> Reply:
        return Reply({"data": [{"id": "served", "root": str(self.root), "max_model_len": self.positions}]})

    def _load(self, call: Call) -> Reply:
        assert call.json["method"] == "reload_weights"
        path = Path(call.json["kwargs"]["weights_path"])
        self.asked.append(f"load {path.name}")
        with self.lock:
            self.model = load_model(path)
        return Reply({"results": [None]})

    def _reset(self, call: Call) -> Reply:
        self.asked.append("reset")
        return Reply({"success": True})

    def _rename(self, call: Call) -> Reply:
        self.weights = call.json["new_version"]
        self.asked.append(f"version {self.weights.rpartition('-')[2]}")
        return Reply({"success": True})

    def _locked(self, call: Call) -> Reply:
        with self.lock:
            return self._draw(call)

    def _draw(self, call: Call) -> Reply:
        asked = call.json
        self._count += 1
        if self._count - 1 in self.deaths:
            self._restart()
            return Reply({}, length=0)
        if self.deaths and self.weights == "default":
            return refused(500, "EngineCore encountered an issue.")
        (end,) = asked["stop_token_ids"]
        sampling = Sampling(asked["temperature"], asked["max_tokens"], end)
        (drawn,) = InProcessEngine(self.model).generate([tuple(asked["prompt"])], sampling, asked["seed"])
        choice = {
            "prompt_token_ids": list(drawn.prompt),
            "token_ids": list(drawn.response),
            "logprobs": {"token_logprobs": list(drawn.log_probs)},
            "finish_reason": "stop" if drawn.ended(end) else "length",
        }
        self.change(choice)
        self.drawn.append(asked)
        return Reply({"choices": [choice]})


@contextmanager
def serving(root: Path, positions: int = 32) -> Iterator[LoopbackVllm]:
    with LoopbackVllm(root, positions) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
            # While transformers loads a model in one thread, those made in another have no tied weights.
            with server.lock:
                server.deaths = []
