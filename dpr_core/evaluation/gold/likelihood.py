"""Held-out likelihood: nats a token and perplexity of demonstrated responses under a policy, which draws nothing."""

import math

from dpr_core.config.gold import LikelihoodConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.gold import rows
from dpr_core.evaluation.gold.measures import Gold, Measure, Values
from dpr_core.evaluation.questions import Question

NATS = Measure("nats_per_token", "nats a token", weight="tokens", is_share=False)
PERPLEXITY = NATS._replace(name="perplexity", title="perplexity", of=NATS.name, shown=math.exp)


def load(config: LikelihoodConfig) -> list[Question]:
    """A question a row, its response as the reference that is scored."""
    found = rows.load(config)
    for row in found:
        if not row.response.strip():
            raise UsageError(
                f"{row.where} (id {row.id}) has no {config.columns.response!r}; name the column of the demonstrated "
                "responses: columns.response"
            )
    return [row.question(references=(row.response,)) for row in found]


def of_response(log_likelihood: float, tokens: int) -> Values:
    """Of the log-likelihood of one response, its end token counted."""
    return {NATS.name: -log_likelihood / tokens, "tokens": float(tokens)}


GOLD = Gold((NATS, PERPLEXITY))
