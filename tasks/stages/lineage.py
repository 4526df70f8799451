"""Lineage: from an artifact to the models, tokenizer, template and demonstrations of its ancestors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.config.base import parse
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.reward import BACKBONE, SFT, RewardDefinitionConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.store import Artifact
from tasks.running.workspace import Artifacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpr_core.data.encoding import TokenSequence
    from dpr_core.data.rows import Demonstration
    from dpr_core.data.subsample import Sample
    from dpr_core.data.template import Renderer
    from dpr_core.logprobs import TokenScores
    from dpr_core.models.dense_reward import TokenReward
    from dpr_core.models.oom import BatchLimits
    from dpr_core.models.policy import Policy


REWARD = "reward.json"
"""The definition of a reward, in its artifact."""


KEPT = "kept"
"""The folder of the policies that a REINFORCE run kept, each in one named by its KL to SFT."""


LAB = PretrainedBackboneConfig(name="lab", dtype="float32")
"""How the lab's own backbones are run."""


TRAINED = ("reinforce", "self_play", "continued_sft")
"""The stages that train the SFT model further, each into a folder `policy`."""


@dataclass(frozen=True)
class Lineage:
    """Walks from an artifact to its ancestors; each is verified when it is read."""

    store: Artifacts

    @cached_property
    def _limits(self) -> "BatchLimits":
        """What fits at once, which all models of a stage find out together."""
        from dpr_core.models.oom import BatchLimits

        return BatchLimits()

    def ancestor(self, artifact: Artifact, stage: str) -> Artifact:
        """The nearest ancestor made by `stage`, or the artifact itself. What it has its models from counts, and not the
        rows that its prompts were drawn beside."""
        queue = [artifact]
        while queue:
            current = queue.pop(0)
            if current.stage == stage:
                return current
            queue += [self.store.fetch(run_id) for role, run_id in current.inputs.items() if role != "prompts"]
        raise DensePathError(f"artifact {artifact.id} ({artifact.stage}) was not built on any {stage} artifact")

    def sample(self, artifact: Artifact) -> "Sample":
        """The rows that SFT learned from."""
        from dpr_core.data.subsample import read

        return read(self.ancestor(artifact, "subsample").path)

    def demonstrations(self, artifact: Artifact) -> "list[Demonstration]":
        return self.sample(artifact).demonstrations

    def trained_prompts(self, artifact: Artifact) -> frozenset[str]:
        """The prompts that the policy of an artifact was trained on, by SFT and by REINFORCE, as `same_words`."""
        from dpr_core.data.subsample import read
        from dpr_core.text import same_words

        samples = [self.sample(artifact)]
        if "prompts" in artifact.inputs:
            samples.append(read(self.store.fetch(artifact.inputs["prompts"]).path))
        rows = (row for sample in samples for row in sample.demonstrations)
        return frozenset(same_words(prompt) for row in rows for _, prompt, _ in row.turns())

    def renderer(self, artifact: Artifact) -> "Renderer":
        from dpr_core.data.template import Renderer

        return Renderer.load(self.ancestor(artifact, "subsample").path)

    def tokenizer(self, artifact: Artifact) -> "PreTrainedTokenizerBase":
        from dpr_core.models.checkpoints import load_tokenizer

        return load_tokenizer(self.sft_folder(artifact))

    def policy_folder(self, artifact: Artifact) -> Path:
        """The checkpoint of the policy that an artifact ends with; for a reward, its SFT model."""
        if artifact.stage in TRAINED:
            return artifact.path / "policy"
        return self.sft_folder(artifact)

    def sft_folder(self, artifact: Artifact) -> Path:
        """The checkpoint of pi_SFT."""
        return checkpoint(self.ancestor(artifact, "sft"), 1.0)

    def definition(self, artifact: Artifact) -> RewardDefinitionConfig:
        """The reward that an artifact is, or was made with."""
        reward = self.ancestor(artifact, "reward")
        file = reward.path / REWARD
        if not file.is_file():
            raise UsageError(
                f"reward artifact {reward.id} was made by an earlier version and has no {REWARD}; "
                f"make it again: dpr rerun {reward.id[:8]}"
            )
        return RewardDefinitionConfig.model_validate_json(file.read_text(encoding="utf-8"))

    def reference_folders(self, artifact: Artifact, definition: RewardDefinitionConfig) -> list[Path]:
        """The checkpoints of the SFT run behind an artifact whose mean is pi_ref."""
        sft = self.ancestor(artifact, "sft")
        return [
            self.backbone_folder(sft) if part == BACKBONE else checkpoint(sft, part) for part in definition.reference
        ]

    def backbone_folder(self, artifact: Artifact) -> Path:
        """The weights that the SFT run behind an artifact started from."""
        from dpr_core.models.checkpoints import fetched

        sft = self.ancestor(artifact, "sft")
        if not sft.config["backbone"]:
            return self.ancestor(sft, "backbone").path / "model"
        settings = parse(SFTConfig, sft.config, sft.id)
        if settings.imported is not None and settings.imported.hides(settings.backbone):
            raise UsageError(
                f"SFT artifact {sft.id[:8]} was imported without its backbone, so that nothing is known of the weights "
                "that its run started from: import it again with --backbone"
            )
        return fetched(PretrainedBackboneConfig.model_validate(sft.config["backbone"]))

    def teacher_folder(self, artifact: Artifact, teacher: PretrainedBackboneConfig) -> Path:
        """The weights of a teacher, whose tokens must be those of the SFT model behind an artifact."""
        from dpr_core.models.checkpoints import check_same_tokens, fetched

        check_same_tokens(teacher, self.tokenizer(artifact))
        return fetched(teacher)

    def backbone(self, artifact: Artifact) -> PretrainedBackboneConfig:
        """How the networks behind an artifact are run."""
        backbone = self.ancestor(artifact, "sft").config["backbone"]
        return PretrainedBackboneConfig.model_validate(backbone) if backbone else LAB

    def load(
        self,
        folder: Path | Sequence[Path],
        like: Artifact,
        execution: ExecutionConfig,
        *,
        frozen: bool = False,
        rounded: bool = True,
        backbone: PretrainedBackboneConfig | None = None,
    ) -> "Policy":
        """A policy from a checkpoint, or the mean of several, run as the backbone of `like` was configured to, or as
        another one is.

        A frozen one is put where it computes, rounded to the type of its activations or with its weights as they are;
        one that is trained is put there by its trainer.
        """
        import torch

        from dpr_core.models.checkpoints import check_network, load_mean
        from dpr_core.models.policy import Policy, compile_layers
        from dpr_core.models.sharding import to_device_or_shard

        settings = backbone or self.backbone(like)
        folders = [folder] if isinstance(folder, Path) else folder
        model = load_mean(folders, attention=settings.attention)
        if backbone is not None:
            check_network(model, len(self.tokenizer(like)), backbone.name)
        activations, chunk = getattr(torch, settings.dtype), execution.logits_per_chunk
        policy = Policy(model, chunk, activations, execution.packing, self._limits, execution.tf32_head)
        if frozen:
            to_device_or_shard(policy.freeze(rounded), execution.launch)
            if execution.compile:
                compile_layers(policy)
        return policy

    def exact_scores(
        self,
        folder: Path | Sequence[Path],
        like: Artifact,
        execution: ExecutionConfig,
        sequences: "Sequence[TokenSequence]",
        backbone: PretrainedBackboneConfig | None = None,
    ) -> "TokenScores":
        """Scores under a checkpoint in float32, however the backbone of `like`, or another one, is run."""
        from dpr_core.models.policy import computing_in
        from dpr_core.models.scoring import score

        policy = self.load(folder, like, execution, frozen=True, rounded=False, backbone=backbone)
        with computing_in("float32", policy):
            return score(policy, sequences, execution.tokens_per_micro_batch)

    def dense_reward(self, artifact: Artifact, execution: ExecutionConfig) -> "TokenReward":
        """The reward that an artifact is, or was made with."""
        return self.defined_reward(artifact, self.definition(artifact), execution)

    def defined_reward(
        self,
        artifact: Artifact,
        definition: RewardDefinitionConfig,
        execution: ExecutionConfig,
        *,
        keep_weights: bool = False,
    ) -> "TokenReward":
        """The reward that a definition makes of the SFT run behind an artifact."""
        from dpr_core.models.dense_reward import TokenReward

        backbone, teacher = self.backbone(artifact), definition.teacher
        sixteen = [each for each in (backbone, teacher) if each is not None and not each.takes_float32]
        if definition.arithmetic in ("float32", "tf32") and sixteen:
            raise UsageError(
                f"{sixteen[0].attention} cannot compute a reward in {definition.arithmetic}: it takes 16-bit numbers "
                "alone; take another backbone.attention, or --set reward.arithmetic=as_sft"
            )
        rounded = not keep_weights and definition.arithmetic in (None, backbone.dtype)
        frozen = partial(self.load, like=artifact, execution=execution, frozen=True, rounded=rounded)
        sft = frozen(self.sft_folder(artifact))
        itself = definition.reference == (SFT,)
        return TokenReward(
            sft,
            sft if itself else frozen(self.reference_folders(artifact, definition)),
            definition.formula,
            execution.tokens_per_micro_batch,
            definition.scale,
            definition.clip_above,
            definition.seed,
            definition.arithmetic,
            keep_weights,
            None if teacher is None else frozen(self.teacher_folder(artifact, teacher), backbone=teacher),
        )


def checkpoints(sft: Artifact) -> dict[float | str, Path]:
    """The folders of the weights that an SFT run kept: at fractions of the run, and its moving average as `ema`."""
    folders = sorted((sft.path / "checkpoints").iterdir())
    return {folder.name if folder.name == "ema" else float(folder.name): folder for folder in folders}


def kept(artifact: Artifact, kl: float) -> Path:
    """The folder of the policy that a REINFORCE run kept when its KL to SFT first reached a value."""
    if artifact.stage != "reinforce":
        raise UsageError(f"{artifact.id[:8]} is of stage {artifact.stage}; reinforce alone keeps policies at set KLs")
    folder = artifact.path / KEPT / f"{kl:g}"
    if folder.is_dir():
        return folder
    asked: list[float] = artifact.config.get("keep_at_kl") or []
    if kl in asked:
        raise UsageError(f"the KL to SFT of {artifact.id[:8]} never reached {kl:g}, so that it keeps no policy there")
    values = ", ".join(f"{value:g}" for value in sorted({kl, *asked}))
    raise UsageError(
        f"REINFORCE artifact {artifact.id[:8]} keeps no policy at a KL of {kl:g}; "
        f"make one that does: dpr rerun {artifact.id[:8]} --set 'keep_at_kl=[{values}]'"
    )


def checkpoint(sft: Artifact, part: float | str) -> Path:
    """The folder of the weights that an SFT run kept at a fraction, or of its moving average."""
    kept = checkpoints(sft)
    if part in kept:
        return kept[part]
    if isinstance(part, str):
        raise UsageError(
            f"SFT artifact {sft.id} keeps no moving average; make one that does: "
            f"dpr rerun {sft.id[:8]} --set ema_decay=0.98"
        )
    names = ", ".join(f"{f:g}" for f in kept if isinstance(f, float))
    raise UsageError(
        f"SFT artifact {sft.id} keeps the fractions {names}, not {part:g} (0 is its backbone); "
        f"make one that does: dpr rerun {sft.id[:8]} --set 'checkpoints=[{part:g}, {names}]'"
    )
