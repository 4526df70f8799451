"""A language model as judge, behind any endpoint that speaks OpenAI's chat completions."""

from collections.abc import Sequence
from dataclasses import replace

from dpr_core.config import evaluation as settings
from dpr_core.evaluation.endpoint import Endpoint, Messages, Reply, SchemaRefused
from dpr_core.evaluation.judge import Answer, Comparison, Judgment, Verdict
from dpr_core.evaluation.prompts import SCHEMA, read_json_verdict, read_verdict, request_messages


class OpenAIJudge:
    """Asks for reasons and a verdict: as JSON of a schema where the endpoint takes one, as a line of text elsewhere."""

    def __init__(self, config: settings.ChatJudgeConfig, execution: settings.JudgeExecutionConfig) -> None:
        self.endpoint = Endpoint(config, execution)
        self._may_change = config.verdicts == "auto"
        self._as_json = config.verdicts != "text"
        self._json_was_read = config.verdicts == "schema"

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        """Every comparison is asked by itself."""

    async def compare(self, comparison: Comparison) -> Judgment:
        shown, cut = within_limit(comparison, self.endpoint.config.max_answer_characters)
        reply, as_json = await self._ask(shown)
        judgment = judgment_of(reply, as_json)
        if judgment.verdict is not Verdict.UNREADABLE:
            self._json_was_read |= as_json
        elif as_json and reply.is_whole and not self._json_was_read:
            # Some endpoints take a schema and then pay no heed to it.
            self._as_json = False
            judgment = judgment_of(*await self._ask(shown))
        return replace(judgment, details={**judgment.details, "answers_cut": cut}) if cut else judgment

    async def _ask(self, comparison: Comparison) -> tuple[Reply, bool]:
        """The reply, and whether it should be JSON."""
        as_json = self._as_json
        try:
            return await self.endpoint.ask(*request(comparison, as_json)), as_json
        except SchemaRefused:
            if not self._may_change:
                raise
            self._as_json = False
            return await self.endpoint.ask(*request(comparison, as_json=False)), False

    def status(self) -> str:
        return self.endpoint.status()

    async def close(self) -> None:
        await self.endpoint.close()


def request(comparison: Comparison, as_json: bool) -> tuple[Messages, dict[str, object] | None]:
    """The messages, and the schema of the reply."""
    return request_messages(comparison, as_json), SCHEMA if as_json else None


def judgment_of(reply: Reply, as_json: bool) -> Judgment:
    """The verdict of a reply that was not cut short; what was is unreadable."""
    read = read_json_verdict if as_json else read_verdict
    verdict = read(reply.text) if reply.is_whole else Verdict.UNREADABLE
    return Judgment(verdict, reply.text, {**reply.details, "verdicts": "schema" if as_json else "text"})


def within_limit(comparison: Comparison, characters: int) -> tuple[Comparison, int]:
    """The comparison with no turn longer than the limit, and how many of its answers had to be cut."""
    answers = (comparison.first, comparison.second)
    cut = [Answer(tuple(turn[:characters] for turn in answer.turns)) for answer in answers]
    return replace(comparison, first=cut[0], second=cut[1]), sum(a != b for a, b in zip(answers, cut, strict=True))
