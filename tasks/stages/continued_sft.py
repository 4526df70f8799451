"""A control: more supervised fine-tuning of the SFT model, on the same demonstrations."""

from typing import Literal, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.imitation import ContinuedSFTConfig
from dpr_core.config.training import SFTConfig
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import Lineage


def body(config: StageConfig, work: Work) -> dict[str, float]:
    from dpr_core.data.demonstrations import encode_demonstrations
    from dpr_core.models.checkpoints import save
    from dpr_core.training.sft_loop import fine_tune, total_steps
    from dpr_core.training.trainer import Trainer

    settings = as_sft(cast(ContinuedSFTConfig, config))
    lineage = Lineage(work.store)
    sft = work.input("sft")
    tokenizer, renderer = lineage.tokenizer(sft), lineage.renderer(sft)
    encoded = encode_demonstrations(
        tokenizer,
        renderer,
        lineage.demonstrations(sft),
        settings.max_prompt_tokens,
        settings.max_response_tokens,
    )
    policy = lineage.load(lineage.sft_folder(sft), sft, settings.execution)
    policy.check_length(max(len(sequence) for sequence in encoded.sequences))
    trainer = Trainer(
        policy, settings, total_steps(len(encoded.sequences), settings), settings.execution, recorder=work
    )

    def keep(part: float | Literal["ema"]) -> None:
        save(policy.model, tokenizer, work.output / "policy")

    return fine_tune(trainer, encoded.sequences, settings, keep, work) | encoded.counts()


def as_sft(settings: ContinuedSFTConfig) -> SFTConfig:
    """The same settings for SFT, of which only the end is kept."""
    return SFTConfig.model_validate({**settings.model_dump(exclude={"type"}), "checkpoints": (1.0,)})


def describe(config: StageConfig) -> str:
    settings = cast(ContinuedSFTConfig, config)
    return (
        f"Supervised fine-tuning, continued: {settings.epochs} pass(es), learning rate {settings.learning_rate:g}, "
        f"batches of {settings.batch_size} (seed {settings.seed})."
    )


STAGE = Stage(
    name="continued_sft",
    version=1,
    config=ContinuedSFTConfig,
    inputs={"sft": ("sft",)},
    body=body,
    describe=describe,
    shared=True,
)
