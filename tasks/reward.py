"""Recover the dense reward of an SFT run, and measure it on demonstrations."""

import json
from itertools import islice
from typing import TYPE_CHECKING, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.training import RewardConfig, SFTConfig
from dpr_core.errors import UsageError
from tasks.lineage import Lineage, checkpoint
from tasks.stage import Stage, Workspace

if TYPE_CHECKING:
    from dpr_core.credit import ScoredText
    from dpr_core.data.rows import Demonstration

CREDIT_PAGE = "credit.html"
TEXTS_ON_PAGE = 12


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    from dpr_core.data.encoding import encode_prompt, encode_response
    from dpr_core.models.credit import GivenText, assign_credit
    from dpr_core.reporting import credit, plots

    settings = cast(RewardConfig, config)
    lineage = Lineage(work.store)
    sft = work.input("sft")
    checkpoint(sft, settings.reference)
    tokenizer, renderer = lineage.tokenizer(sft), lineage.renderer(sft)
    limits = SFTConfig.model_validate(sft.config)

    def learned_whole(row: "Demonstration") -> bool:
        prompt = encode_prompt(tokenizer, renderer.render(row.prompt, row.system))
        response = encode_response(tokenizer, row.response)
        return len(prompt) <= limits.max_prompt_tokens and len(response) <= limits.max_response_tokens

    rows = list(islice(filter(learned_whole, lineage.demonstrations(sft)), settings.probe_demonstrations))
    if not rows:
        raise UsageError("no demonstration is short enough for SFT's length limits, so there is nothing to score")
    texts = [GivenText(row.prompt, row.response, row.system) for row in rows]
    scored = assign_credit(lineage.dense_reward(sft, settings), tokenizer, renderer, texts, on_progress=work.advance)
    with (work.output / "demonstrations.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(credit.as_json(text), ensure_ascii=False) + "\n" for text in scored)
    provenance = {"Formula": settings.formula, "Reference": f"{settings.reference:g} of the SFT run"}
    page = credit.as_html(scored[:TEXTS_ON_PAGE], "Token credit on demonstrations", provenance)
    (work.output / CREDIT_PAGE).write_text(page, encoding="utf-8")
    plots.lines(
        work.scratch / "reward_by_position.png",
        "Mean token reward on demonstrations",
        "position in the response",
        {"reward": by_position(scored)},
    )
    work.run.file(work.scratch / "reward_by_position.png", "plots")
    return statistics(scored)


def statistics(scored: "list[ScoredText]") -> dict[str, float]:
    """What the reward looks like on demonstrations."""
    rewards = [token.reward for text in scored for token in text.tokens]
    mean = sum(rewards) / len(rewards)
    return {
        "reward/token_mean": mean,
        "reward/token_deviation": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5,
        "reward/end_token_mean": sum(text.tokens[-1].reward for text in scored) / len(scored),
        "reward/return_mean": sum(text.tokens[0].return_ for text in scored) / len(scored),
    }


def by_position(scored: "list[ScoredText]") -> list[tuple[float, float]]:
    """Mean reward at each position, over the responses that reach it."""
    longest = max(len(text.tokens) for text in scored)
    at = [[text.tokens[t].reward for text in scored if len(text.tokens) > t] for t in range(longest)]
    return [(float(t), sum(values) / len(values)) for t, values in enumerate(at)]


def describe(config: StageConfig) -> str:
    settings = cast(RewardConfig, config)
    return f"Token reward, {settings.formula}, against the checkpoint at {settings.reference:g} of the SFT run."


STAGE = Stage(name="reward", version=1, config=RewardConfig, inputs={"sft": ("sft",)}, body=body, describe=describe)
