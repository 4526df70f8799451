"""What the stages need from the artifacts that theirs were built on: models, tokenizer, template, demonstrations."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.config.execution import Execution
from dpr_core.config.model import PretrainedBackbone
from dpr_core.config.training import RewardConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.tracking import Artifact, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpr_core.data.rendering import Renderer
    from dpr_core.data.subsample import Demonstration
    from dpr_core.models.dense_reward import DenseReward
    from dpr_core.models.policy import Policy


LAB = PretrainedBackbone(name="lab", dtype="float32")
"""How the lab's own backbones are run."""


@dataclass(frozen=True)
class Lineage:
    """Walks from an artifact to its ancestors; each is verified when it is read."""

    store: Store

    def ancestor(self, artifact: Artifact, stage: str) -> Artifact:
        """The nearest ancestor made by `stage`, or the artifact itself."""
        queue = [artifact]
        while queue:
            current = queue.pop(0)
            if current.stage == stage:
                return current
            queue += [self.store.fetch(run_id) for run_id in current.inputs.values()]
        raise DensePathError(f"artifact {artifact.id} ({artifact.stage}) was not built on any {stage} artifact")

    def demonstrations(self, artifact: Artifact) -> "list[Demonstration]":
        from dpr_core.data.subsample import read

        return read(self.ancestor(artifact, "subsample").path).demonstrations

    def renderer(self, artifact: Artifact) -> "Renderer":
        from dpr_core.data.rendering import Renderer

        return Renderer.load(self.ancestor(artifact, "subsample").path)

    def tokenizer(self, artifact: Artifact) -> "PreTrainedTokenizerBase":
        from dpr_core.models.checkpoints import load_tokenizer

        return load_tokenizer(self.sft_folder(artifact))

    def policy_folder(self, artifact: Artifact) -> Path:
        """The checkpoint of the policy that an SFT or REINFORCE artifact ends with; for a reward, its SFT model."""
        if artifact.stage == "reinforce":
            return artifact.path / "policy"
        return self.sft_folder(artifact)

    def sft_folder(self, artifact: Artifact) -> Path:
        """The checkpoint of pi_SFT."""
        return checkpoint(self.ancestor(artifact, "sft"), 1.0)

    def reference_folder(self, artifact: Artifact) -> Path:
        """The checkpoint of pi_ref."""
        reward = self.ancestor(artifact, "reward")
        return checkpoint(self.ancestor(reward, "sft"), RewardConfig.model_validate(reward.config).reference)

    def load(self, folder: Path, like: Artifact, execution: Execution) -> "Policy":
        """A policy from a checkpoint folder, run as the backbone of `like` was configured to."""
        import torch
        from accelerate import PartialState

        from dpr_core.models.checkpoints import load_model
        from dpr_core.models.policy import Policy

        backbone = self.ancestor(like, "sft").config["backbone"]
        settings = PretrainedBackbone.model_validate(backbone) if backbone else LAB
        model = load_model(folder, attention=settings.attention)
        policy = Policy(model, execution.logits_per_chunk, getattr(torch, settings.dtype))
        return policy.to(PartialState().device)

    def dense_reward(self, artifact: Artifact, settings: RewardConfig) -> "DenseReward":
        """The reward that `settings` make of the SFT run behind `artifact`."""
        from dpr_core.models.dense_reward import DenseReward

        sft = self.ancestor(artifact, "sft")
        policies = (
            self.load(checkpoint(sft, fraction), sft, settings.execution) for fraction in (1.0, settings.reference)
        )
        return DenseReward(*policies, settings.formula, settings.execution.tokens_per_micro_batch)


def checkpoint(sft: Artifact, fraction: float) -> Path:
    """The folder of the weights that an SFT run kept at `fraction`."""
    kept = {float(folder.name): folder for folder in (sft.path / "checkpoints").iterdir()}
    if fraction not in kept:
        names = ", ".join(f"{f:g}" for f in sorted(kept))
        raise UsageError(
            f"SFT artifact {sft.id} keeps the fractions {names}, not {fraction:g}; "
            f"make one that does: dpr rerun {sft.id[:8]} --set 'checkpoints=[{fraction:g}, {names}]'"
        )
    return kept[fraction]
