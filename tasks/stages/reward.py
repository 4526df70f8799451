"""Recover the dense reward of an SFT run, and measure it on demonstrations."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reward import AS_SFT, BACKBONE, MEASURED, RewardConfig, RewardDefinitionConfig, named
from dpr_core.config.training import SFTConfig
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import REWARD, Lineage, checkpoints
from tasks.stages.sft import check_backbones, pinned

if TYPE_CHECKING:
    from dpr_core.data.encoding import TokenSequence
    from dpr_core.models.dense_reward import GivenText, ScoredTokens

logger = logging.getLogger("dense_path")

CREDIT_PAGE = "credit.html"
"""In the payload as its version has it, and beside it, in the folder `BESIDE`, as it is to be read."""

BESIDE = "credit"
TEXTS_ON_PAGE = 12


def body(config: StageConfig, work: Work) -> dict[str, float]:
    from dpr_core.masking import mean_by_position
    from dpr_core.models.dense_reward import credit_of, encode_texts
    from dpr_core.reporting import payload_credit, plots, token_credit

    settings = cast(RewardConfig, config)
    lineage = Lineage(work.store)
    sft = work.input("sft")
    tokenizer, renderer = lineage.tokenizer(sft), lineage.renderer(sft)
    texts = probes(lineage, sft, settings.probe_demonstrations)
    sequences = encode_texts(tokenizer, renderer, texts)
    definition = chosen(settings, lineage, sft, sequences)
    if settings.arithmetic == MEASURED:
        definition = with_arithmetic(definition, lineage, sft, sequences, settings.execution)
    reward = lineage.defined_reward(sft, definition, settings.execution)
    scores = reward.scores(sequences, work.advance)
    scored = reward.of_scores(*scores, sequences)
    if settings.normalise:
        raw = replace(reward, clip_above=None).of_scores(*scores, sequences)
        definition = definition.model_copy(update={"scale": deviation(raw)})
        scored = replace(reward, scale=definition.scale).of_scores(*scores, sequences)
    (work.output / REWARD).write_text(definition.model_dump_json(indent=2) + "\n", encoding="utf-8")
    credited = credit_of(tokenizer, texts, sequences, scored)
    with (work.output / "demonstrations.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(token_credit.as_json(text), ensure_ascii=False) + "\n" for text in credited)
    provenance = definition.provenance()
    (work.scratch / BESIDE).mkdir(exist_ok=True)
    for folder, form in ((work.output, payload_credit), (work.scratch / BESIDE, token_credit)):
        page = form.as_html(credited[:TEXTS_ON_PAGE], "Token credit on demonstrations", provenance)
        (folder / CREDIT_PAGE).write_text(page, encoding="utf-8")
    work.file(work.scratch / BESIDE / CREDIT_PAGE, BESIDE)
    by_position = mean_by_position(scored.rewards, scored.mask)
    plots.lines(
        work.scratch / "reward_by_position.png",
        "Mean token reward on demonstrations",
        "position in the response",
        {"reward": [(float(t), value) for t, value in enumerate(by_position)]},
    )
    work.file(work.scratch / "reward_by_position.png", "plots")
    return statistics(scored) | constants(definition)


def probes(lineage: Lineage, sft: Artifact, count: int) -> "list[GivenText]":
    """The first demonstrations that SFT saw whole."""
    from dpr_core.models.dense_reward import GivenText, encode_texts

    tokenizer, renderer = lineage.tokenizer(sft), lineage.renderer(sft)
    limits = SFTConfig.model_validate(sft.config)

    def learned_whole(text: GivenText) -> bool:
        [sequence] = encode_texts(tokenizer, renderer, [text])
        return len(sequence.prompt) <= limits.max_prompt_tokens and len(sequence.response) <= limits.max_response_tokens

    rows = (
        GivenText(row.prompt, row.response, row.system, row.answer, row.history) for row in lineage.demonstrations(sft)
    )
    texts = list(islice(filter(learned_whole, rows), count))
    if not texts:
        raise UsageError("no demonstration is short enough for SFT's length limits, so there is nothing to score")
    return texts


def chosen(
    settings: RewardConfig, lineage: Lineage, sft: Artifact, demonstrations: "Sequence[TokenSequence]"
) -> RewardDefinitionConfig:
    """What the settings say, with the reference named outright."""
    reference: tuple[float | Literal["ema"], ...] = settings.fractions()
    candidates: dict[float, float] = {}
    if settings.reference == "ema":
        reference = ("ema",)
    elif settings.reference == "validated":
        candidates = validated(settings, lineage, sft, demonstrations)
        best = max(candidates, key=lambda fraction: candidates[fraction])
        reference = (best,)
    return RewardDefinitionConfig(
        formula=settings.formula,
        reference=reference,
        teacher=settings.teacher,
        clip_above=settings.clip_above,
        seed=settings.seed,
        arithmetic=None if settings.arithmetic in ("auto", AS_SFT, MEASURED) else settings.arithmetic,
        candidates={f"{fraction:g}": score for fraction, score in candidates.items()},
    )


def with_arithmetic(
    definition: RewardDefinitionConfig,
    lineage: Lineage,
    sft: Artifact,
    demonstrations: "Sequence[TokenSequence]",
    execution: ExecutionConfig,
) -> RewardDefinitionConfig:
    """Bfloat16 where the reward can bear its rounding, measured on demonstrations, else float32."""
    from dpr_core.diagnostics.rounding import PROBES, fastest, rounding_shares

    backbone = lineage.backbone(sft)
    if not backbone.takes_float32:
        logger.warning(
            "reward: its rounding is not measured, since %s computes nothing in float32; it is computed as SFT was",
            backbone.attention,
        )
        return definition
    reward = lineage.defined_reward(sft, definition, execution, keep_weights=True)
    shares = rounding_shares(reward, demonstrations[:PROBES], ["bfloat16"])
    arithmetic = fastest(shares)
    logger.info(
        "reward: computed in %s; rounding over its deviation: %s",
        arithmetic,
        ", ".join(f"{share:.2g} in {name}" for name, share in shares.items()),
    )
    return definition.model_copy(update={"arithmetic": arithmetic, "rounding": dict(shares)})


def validated(
    settings: RewardConfig, lineage: Lineage, sft: Artifact, demonstrations: "Sequence[TokenSequence]"
) -> dict[float, float]:
    """How well each kept checkpoint, as the reference, finds corrupted tokens; the end of the run is no candidate."""
    from dpr_core.diagnostics.corruption import detection_by_candidate

    kept = {part: folder for part, folder in checkpoints(sft).items() if isinstance(part, float) and part < 1}
    if not kept:
        raise UsageError(
            f"SFT artifact {sft.id} keeps nothing but its end, so there is no reference to choose; "
            f"make one that does: dpr rerun {sft.id[:8]} --set 'checkpoints=[0.25, 0.5, 0.75]'"
        )
    load = partial(lineage.load, like=sft, execution=settings.execution, frozen=True)
    return detection_by_candidate(
        load(lineage.sft_folder(sft)),
        {fraction: partial(load, folder) for fraction, folder in kept.items()},
        demonstrations,
        settings.seed,
        settings.execution.tokens_per_micro_batch,
    )


def deviation(raw: "ScoredTokens") -> float:
    """Of the token reward on demonstrations, before it is scaled or clipped."""
    found = float(raw.rewards[raw.mask].std(correction=0))
    if not found > 0:
        raise UsageError("the token reward is the same everywhere on demonstrations, so normalise has nothing to do")
    return found


def statistics(scored: "ScoredTokens") -> dict[str, float]:
    """What the reward looks like on demonstrations, and how far apart the soft values of its two models are."""
    rewards, gap = scored.rewards[scored.mask], scored.value_gap[scored.mask]
    last = scored.rewards.gather(1, scored.mask.sum(dim=1, keepdim=True) - 1)
    return {
        "reward/token_mean": float(rewards.mean()),
        "reward/token_deviation": float(rewards.std(correction=0)),
        "reward/end_token_mean": float(last.mean()),
        "reward/return_mean": float(scored.rewards.sum(dim=1).mean()),
        "reward/value_gap_mean": float(gap.mean()),
        "reward/value_gap_rms": float(gap.square().mean().sqrt()),
    }


def constants(definition: RewardDefinitionConfig) -> dict[str, float]:
    """What was measured or chosen to define the reward."""
    found = {f"reward/detection_auroc/{name}": score for name, score in definition.candidates.items()}
    if definition.candidates:
        found["reward/chosen_reference"] = cast(float, definition.reference[0])
    found |= {f"reward/rounding_share/{name}": share for name, share in definition.rounding.items()}
    return found | {"reward/scale": definition.scale}


def describe(config: StageConfig) -> str:
    settings = cast(RewardConfig, config)
    if isinstance(settings.reference, str):
        against = {"ema": "the moving average", "validated": "a checkpoint, chosen by validation,"}[settings.reference]
    elif isinstance(settings.reference, tuple):
        against = f"the mean of the checkpoints at {', '.join(map(named, settings.reference))}"
    elif settings.reference == BACKBONE:
        against = "the backbone"
    else:
        against = f"the checkpoint at {settings.reference:g}"
    of = "" if settings.teacher is None else f" of the teacher {settings.teacher.name}"
    return f"Token reward, {settings.formula}{of}, against {against} of the SFT run."


def pin(config: RewardConfig) -> RewardConfig:
    return config.model_copy(update={"teacher": pinned(config.teacher)})


def preflight(configs: Sequence[RewardConfig], planning: bool = False) -> None:
    """A teacher that cannot be had is better known before SFT."""
    check_backbones([config.teacher for config in configs], "reward.teacher.name")


STAGE = Stage(
    name="reward",
    version=2,
    config=RewardConfig,
    inputs={"sft": ("sft",)},
    body=body,
    describe=describe,
    shared=True,
    pin=pin,
    preflight=preflight,
    settle=lambda config, inputs: config.settled(inputs["sft"]),
)
