"""An engine that says what it was told to, for tests of what stands behind the Protocol."""

from collections.abc import Mapping, Sequence

from dpr_core.rollouts.engine import Completion, Progress, Sampling


class ScriptedEngine:
    def __init__(self, responses: Mapping[tuple[int, ...], tuple[int, ...]], log_prob: float = -1.0) -> None:
        self.responses = responses
        self.log_prob = log_prob
        self.version = 0

    def refresh(self, version: int) -> None:
        self.version = version

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: Progress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        for row, prompt in enumerate(prompts):
            response = self.responses[prompt][: sampling.max_response_tokens]
            completions.setdefault(row, Completion(prompt, response, (self.log_prob,) * len(response)))
        return [completions[row] for row in range(len(prompts))]
