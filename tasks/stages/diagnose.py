"""Measure a reward before anything is trained on it, and say go, caution or stop."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.data import LabSourceConfig, SubsampleConfig
from dpr_core.config.reward import DiagnoseConfig
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import Lineage
from tasks.stages.reward import probes

if TYPE_CHECKING:
    from dpr_core.data.encoding import TokenSequence
    from dpr_core.models.dense_reward import ScoredTokens

logger = logging.getLogger("dense_path")

DOCUMENT = "diagnosis.json"
PAGE = "diagnosis.md"


def body(config: StageConfig, work: Work) -> dict[str, float]:
    from dpr_core.data.encoding import decode_response, end_token
    from dpr_core.diagnostics.measure import Probes, measure, training_questions
    from dpr_core.diagnostics.verdict import Level, assess
    from dpr_core.models.dense_reward import encode_texts
    from dpr_core.reporting import diagnosis as report
    from dpr_core.rollouts.engine import Sampling
    from dpr_core.rollouts.in_process import InProcessEngine

    settings = cast(DiagnoseConfig, config)
    lineage = Lineage(work.store)
    reward = work.input("reward")
    tokenizer, renderer = lineage.tokenizer(reward), lineage.renderer(reward)
    learned = probes(lineage, lineage.ancestor(reward, "sft"), max(settings.demonstrations, settings.prompts))
    source = SubsampleConfig.model_validate(lineage.ancestor(reward, "subsample").config).source
    questions, is_right = training_questions(
        source, learned, settings.prompts, settings.seed, settings.stated_results is True
    )
    # The lab's are other prompts than the demonstrated ones.
    histories = [()] * len(questions) if isinstance(source, LabSourceConfig) else [text.history for text in learned]
    prompts = [renderer.prompt(tokenizer, q.prompt, q.system, h) for q, h in zip(questions, histories, strict=False)]

    def right(prompt: int, response: tuple[int, ...]) -> bool | None:
        return is_right(questions[prompt], decode_response(tokenizer, response))

    definition, backbone = lineage.definition(reward), lineage.backbone(reward)
    teacher = definition.teacher
    rounds = (definition.arithmetic or backbone.dtype) != "float32" and backbone.takes_float32
    dense_reward = lineage.defined_reward(reward, definition, settings.execution)

    def exact(sequences: "Sequence[TokenSequence]") -> "ScoredTokens":
        """The reward in float32, for which there is room for one whole model at a time beside two rounded ones."""
        if dense_reward.differs:
            return replace(dense_reward, arithmetic="float32")(sequences)
        target = lineage.sft_folder(reward) if teacher is None else lineage.teacher_folder(reward, teacher)
        of_target = lineage.exact_scores(target, reward, settings.execution, sequences, teacher)
        folders = lineage.reference_folders(reward, definition)
        of_reference = lineage.exact_scores(folders, reward, settings.execution, sequences)
        return dense_reward.of_scores(of_target, of_reference, sequences)

    policy = dense_reward.sft
    policy.check_length(max(map(len, prompts)) + settings.max_response_tokens)
    measured = measure(
        dense_reward,
        InProcessEngine.of(policy, settings.execution),
        Probes(prompts, settings.samples, right, encode_texts(tokenizer, renderer, learned[: settings.demonstrations])),
        Sampling(1.0, settings.max_response_tokens, end_token(tokenizer)),
        settings.seed,
        work.advance,
        exact if rounds else None,
    )
    verdict = assess(measured)
    document = report.as_dict(measured, verdict)
    (work.output / DOCUMENT).write_text(f"{json.dumps(document, indent=2, allow_nan=False)}\n", encoding="utf-8")
    (work.output / PAGE).write_text(report.as_markdown(measured, verdict), encoding="utf-8")
    for path in report.draw(measured, work.scratch):
        work.file(path, "plots")
    level = logging.INFO if verdict.level == Level.GO else logging.WARNING
    logger.log(level, "diagnose: %s", verdict.sentence)
    return measured.metrics() | {"diagnose/verdict": float(verdict.level)}


def read(folder: Path) -> dict[str, Any]:
    """The document that a diagnosis holds: `verdict`, `reasons`, `measured`."""
    document: dict[str, Any] = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    return document


def describe(config: StageConfig) -> str:
    settings = cast(DiagnoseConfig, config)
    return (
        f"What the reward does on {settings.samples} answers of SFT to each of {settings.prompts} training prompts, "
        f"and on {settings.demonstrations} demonstrations with one token replaced (seed {settings.seed})."
    )


STAGE = Stage(
    name="diagnose",
    version=1,
    config=DiagnoseConfig,
    inputs={"reward": ("reward",)},
    body=body,
    describe=describe,
    shared=True,
)
