"""Improve the SFT policy by self-play: SPIN or GSIL."""

from typing import cast

from dpr_core.config.base import StageConfig
from dpr_core.config.imitation import SelfPlayConfig
from tasks.running.stage import Stage
from tasks.running.workspace import Work
from tasks.stages.lineage import Lineage


def body(config: StageConfig, work: Work) -> dict[str, float]:
    from dpr_core.data.demonstrations import encode_demonstrations
    from dpr_core.data.encoding import decode_response, end_token
    from dpr_core.models.checkpoints import save
    from dpr_core.rollouts.in_process import InProcessEngine
    from dpr_core.training.self_play_loop import SelfPlay

    settings = cast(SelfPlayConfig, config)
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
    policy.check_length(max(len(s.prompt) for s in encoded.sequences) + settings.max_response_tokens)
    loop = SelfPlay(
        policy=policy,
        engine=InProcessEngine.of(policy, settings.execution),
        config=settings,
        end_token=end_token(tokenizer),
        decode=lambda ids: decode_response(tokenizer, ids),
        recorder=work,
    )
    metrics = loop.run(encoded.sequences)
    save(policy.model, tokenizer, work.output / "policy")
    return metrics | encoded.counts()


def describe(config: StageConfig) -> str:
    settings = cast(SelfPlayConfig, config)
    method = settings.method
    name = "SPIN" if method.type == "spin" else f"GSIL ({method.loss})"
    return (
        f"{name}: {settings.rounds} round(s) of self-play, learning rate {settings.learning_rate:g}, batches of "
        f"{settings.batch_size} pairs (seed {settings.seed})."
    )


STAGE = Stage(
    name="self_play",
    version=1,
    config=SelfPlayConfig,
    inputs={"sft": ("sft",)},
    body=body,
    describe=describe,
    shared=True,
)
