"""A language model as rater, behind any endpoint that speaks OpenAI's chat completions."""

from dataclasses import replace

from dpr_core.config import evaluation as settings
from dpr_core.evaluation.cache import VerdictCache, key_of
from dpr_core.evaluation.endpoint import Endpoint
from dpr_core.evaluation.rating.rater import Prompts, Rating, Turn


class ChatRater:
    """Asks for one rating a request, and nothing twice that it has in its cache."""

    def __init__(
        self,
        config: settings.ChatCompletionsConfig,
        execution: settings.JudgeExecutionConfig,
        prompts: Prompts,
        cache: VerdictCache | None = None,
        identity: str = "",
    ) -> None:
        self.endpoint = Endpoint(config, execution)
        self._prompts = prompts
        self._cache = cache
        self._identity = identity
        self._reused = 0

    async def rate(self, turn: Turn) -> Rating:
        shown, cut = within_limit(turn, self.endpoint.config.max_answer_characters)
        request, key = self._prompts.request(shown), key_of(self._identity, turn)
        known = self._cache.read(key) if self._cache is not None else None
        if known is not None:
            self._reused += 1
            return Rating(float(known[0]), known[1], request, known[2])
        reply = await self.endpoint.ask(request.messages)
        score = self._prompts.read(reply.text) if reply.is_whole else None
        details = {**reply.details, "answers_cut": cut} if cut else reply.details
        if score is not None and self._cache is not None:
            self._cache.keep(key, str(score), reply.text, details)
        return Rating(score, reply.text, request, details)

    def status(self) -> str:
        reused = f"{self._reused} from the cache" if self._reused else ""
        return ", ".join(part for part in (self.endpoint.status(), reused) if part)

    async def close(self) -> None:
        await self.endpoint.close()


def within_limit(turn: Turn, characters: int) -> tuple[Turn, int]:
    """The turn with no answer longer than the limit, and how many had to be cut."""
    answers = tuple(text[:characters] for text in turn.answers)
    return replace(turn, answers=answers), sum(a != b for a, b in zip(answers, turn.answers, strict=True))
