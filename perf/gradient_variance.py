"""Variance of the policy-gradient estimators with token-level and sentence-level credit, at the SFT policy.

    python perf/gradient_variance.py REWARD_ID

Every estimator sees the same mini-batches of rollouts. `variance` is the trace of the covariance of one mini-batch's
gradient, `relative` is that over the squared norm of its expectation. `dpr run demo` makes a reward artifact.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import RolloutBatch
from dpr_core.config import reinforce as config
from dpr_core.config.execution import ExecutionConfig
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence, encode_prompt, end_token
from dpr_core.models.dense_reward import DenseReward
from dpr_core.models.policy import Policy
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.stats import mean_interval
from tasks.artifacts.store import Store
from tasks.stages.lineage import Lineage

PLAIN: dict[str, Any] = {"kl_weight": 0.0, "whiten": False}
ESTIMATORS = {
    "DPR": policy_gradient(config.ReinforcePlusPlusConfig(**PLAIN)),
    "SR": policy_gradient(config.SequenceReinforceConfig(**PLAIN)),
    "DPR, position baseline": policy_gradient(config.ReinforcePlusPlusConfig(**PLAIN, baseline="position")),
    "SR, position baseline": policy_gradient(config.SequenceReinforceConfig(**PLAIN, baseline="position")),
}
"""Raw REINFORCE at gamma 1, so that all of them estimate the same gradient."""


def gradients(policy: Policy, reward: DenseReward, sequences: Sequence[TokenSequence]) -> Tensor:
    """(estimators, parameters): what each makes of one mini-batch, summed over tokens and averaged over responses."""
    scored = reward(sequences)
    seen = RolloutBatch(scored.rewards, scored.log_sft, scored.log_sft, scored.mask, torch.zeros_like(scored.rewards))
    log_probs = policy(collate(sequences).to(policy.device)).log_probs
    rows = []
    for method in ESTIMATORS.values():
        advantages = method.credit(seen, 0.0).advantages[scored.mask].to(log_probs.device)
        loss = -(log_probs * advantages).sum() / len(sequences)
        parts = torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).cpu()


def describe(samples: Tensor) -> dict[str, dict[str, Any]]:
    """Of (batches, estimators, parameters): the variances, and what each is over DPR's with its 95% interval."""
    count, mean = len(samples), samples.mean(dim=0)
    distances = [(samples[:, i] - mean[i]).square().sum(dim=-1).double() for i in range(len(mean))]
    results: dict[str, dict[str, Any]] = {}
    for name, own, average in zip(ESTIMATORS, distances, mean, strict=True):
        variance, over_dpr = float(own.sum()) / (count - 1), float(own.sum() / distances[0].sum())
        # The squared norm of a mean of samples is too large by the variance of that mean.
        squared_norm = float(average.double().square().sum()) - variance / count
        # The ratio of two means, made linear in what each batch adds to them.
        shares = over_dpr + (own - over_dpr * distances[0]) / distances[0].mean()
        results[name] = {"variance": variance, "relative": variance / squared_norm if squared_norm > 0 else None}
        results[name] |= {"over_dpr": over_dpr, "interval": mean_interval(shares.tolist(), samples=10_000, seed=0)}
    return results


def rollouts(
    policy: Policy, prompts: Sequence[tuple[int, ...]], sampling: Sampling, batches: int, size: int, seed: int
) -> Iterator[list[TokenSequence]]:
    """Mini-batches of fresh responses to prompts drawn with replacement."""
    engine, rng = InProcessEngine(policy.model, activations=policy.activations), random.Random(seed)
    for number in range(batches):
        drawn = engine.generate(rng.choices(prompts, k=size), sampling, seed=seed * 1_000_003 + number)
        yield [TokenSequence(c.prompt, c.response) for c in drawn]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reward", help="ID of a reward artifact")
    parser.add_argument("--batches", type=int, default=64, help="mini-batches, two at least")
    parser.add_argument("--size", type=int, default=64, help="responses of one mini-batch")
    parser.add_argument("--max-response-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args(words)
    if arguments.batches < 2:
        parser.error("--batches: a variance needs two mini-batches at least")
    store = Store.open()
    artifact = store.fetch(store.resolve(arguments.reward), stages=("reward",))
    lineage, execution = Lineage(store), ExecutionConfig()
    tokenizer, renderer = lineage.tokenizer(artifact), lineage.renderer(artifact)
    texts = (renderer.render(row.prompt, row.system) for row in lineage.demonstrations(artifact))
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    policy = lineage.load(lineage.sft_folder(artifact), artifact, execution)
    reward = lineage.dense_reward(artifact, execution)
    sampling = Sampling(1.0, arguments.max_response_tokens, end_token(tokenizer))
    drawn = rollouts(policy, prompts, sampling, arguments.batches, arguments.size, arguments.seed)
    found = describe(torch.stack([gradients(policy, reward, sequences) for sequences in drawn]))
    print(json.dumps({"reward": artifact.id, "estimators": found}, indent=2) if arguments.json else markdown(found))


def markdown(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| estimator | variance | relative | over DPR's |", "|---|--:|--:|--:|"]
    for name, row in found.items():
        (low, high), relative = row["interval"], "" if row["relative"] is None else f"{row['relative']:.1f}"
        lines.append(f"| {name} | {row['variance']:.3g} | {relative} | {row['over_dpr']:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
