"""Variance of the policy-gradient estimators with token-level and sentence-level credit, at the SFT policy.

    python perf/gradient_variance.py REWARD_ID --json > docs/gradient_variance.json
    python perf/gradient_variance.py --of docs/gradient_variance.json

Every estimator sees the same mini-batches of rollouts. `variance` is the trace of the covariance of one mini-batch's
gradient, `relative` is that over the squared norm of its expectation, `over_dpr` over DPR's variance, and `over_plain`
over that of the first estimator of the same gradient: at gamma 0 it is another one than at gamma 1. `dpr run demo`
makes a reward artifact; the second command prints the table of what the first has found.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import RolloutBatch
from dpr_core.algorithms.full_vocabulary import FullVocabulary
from dpr_core.config import reinforce as config
from dpr_core.config.execution import ExecutionConfig
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence, end_token
from dpr_core.models.dense_reward import TokenReward
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
    "DPR, expected baseline": policy_gradient(config.ReinforcePlusPlusConfig(**PLAIN, baseline="expected")),
}
"""Raw REINFORCE at gamma 1, so that all of them estimate the same gradient."""

AT_GAMMA_0 = {
    "gamma 0": policy_gradient(config.ReinforcePlusPlusConfig(**PLAIN, gamma=0)),
    "gamma 0, position baseline": policy_gradient(
        config.ReinforcePlusPlusConfig(**PLAIN, gamma=0, baseline="position")
    ),
    "gamma 0, expected baseline": policy_gradient(
        config.ReinforcePlusPlusConfig(**PLAIN, gamma=0, baseline="expected")
    ),
    "gamma 0, full vocabulary": policy_gradient(config.FullVocabularyConfig(kl_weight=0.0)),
}
"""These estimate another one, that of the next token's reward."""

GROUPS = (ESTIMATORS, AT_GAMMA_0)


def gradients(policy: Policy, reward: TokenReward, sequences: Sequence[TokenSequence]) -> Tensor:
    """(estimators, parameters): what each makes of one mini-batch, summed over tokens and averaged over responses."""
    scored, log_sft, _, expected = reward.with_expected(sequences, policy, 1.0)
    unused = torch.zeros_like(expected)
    seen = RolloutBatch(scored.rewards, log_sft, log_sft, scored.mask, unused, expected)
    batch = collate(sequences).to(policy.device)
    log_probs = policy(batch).log_probs
    rows = []
    for method in (method for group in GROUPS for method in group.values()):
        if isinstance(method, FullVocabulary):
            terms = policy(batch, wanted=partial(reward.wanted, temperature=1.0, kl_weight=0.0))
        else:
            terms = log_probs * method.credit(seen, 0.0).advantages[scored.mask].to(log_probs.device)
        loss = -terms.sum() / len(sequences)
        parts = torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).cpu()


def describe(samples: Tensor) -> dict[str, dict[str, Any]]:
    """Of (batches, estimators, parameters): the variances, and what each is over DPR's, and over that of the first
    estimator of its group, with 95% intervals."""
    count, mean = len(samples), samples.mean(dim=0)
    distances = [(samples[:, i] - mean[i]).square().sum(dim=-1).double() for i in range(len(mean))]
    results: dict[str, dict[str, Any]] = {}
    for names in GROUPS:
        plain = distances[len(results)]
        for name in names:
            own, average = distances[len(results)], mean[len(results)]
            variance = float(own.sum()) / (count - 1)
            # The squared norm of a mean of samples is too large by the variance of that mean.
            squared_norm = float(average.double().square().sum()) - variance / count
            (over_dpr, interval), (over_plain, of_plain) = _ratio(own, distances[0]), _ratio(own, plain)
            results[name] = {
                "variance": variance,
                "relative": variance / squared_norm if squared_norm > 0 else None,
                "over_dpr": over_dpr,
                "interval": interval,
                "over_plain": over_plain,
                "over_plain_interval": of_plain,
            }
    return results


def _ratio(own: Tensor, other: Tensor) -> tuple[float, tuple[float, float]]:
    """Of two means, with its interval: made linear in what each batch adds to them."""
    ratio = float(own.sum() / other.sum())
    shares = ratio + (own - ratio * other) / other.mean()
    return ratio, mean_interval(shares.tolist(), samples=10_000, seed=0)


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
    parser.add_argument("reward", nargs="?", help="ID of a reward artifact")
    parser.add_argument("--of", type=Path, help="print the table of what --json has written, and measure nothing")
    parser.add_argument("--batches", type=int, default=64, help="mini-batches, two at least")
    parser.add_argument("--size", type=int, default=64, help="responses of one mini-batch")
    parser.add_argument("--max-response-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    arguments = parser.parse_args(words)
    if arguments.of:
        print(markdown(json.loads(arguments.of.read_text(encoding="utf-8"))["estimators"]))
        return
    if arguments.reward is None:
        parser.error("the ID of a reward artifact is needed, or --of FILE")
    if arguments.batches < 2:
        parser.error("--batches: a variance needs two mini-batches at least")
    store = Store.open()
    artifact = store.fetch(store.resolve(arguments.reward), stages=("reward",))
    lineage, execution = Lineage(store), ExecutionConfig()
    tokenizer, renderer = lineage.tokenizer(artifact), lineage.renderer(artifact)
    rows = lineage.demonstrations(artifact)
    prompts = [renderer.prompt(tokenizer, row.prompt, row.system, row.history) for row in rows]
    policy = lineage.load(lineage.sft_folder(artifact), artifact, execution)
    reward = lineage.dense_reward(artifact, execution)
    sampling = Sampling(1.0, arguments.max_response_tokens, end_token(tokenizer))
    drawn = rollouts(policy, prompts, sampling, arguments.batches, arguments.size, arguments.seed)
    found = describe(torch.stack([gradients(policy, reward, sequences) for sequences in drawn]))
    settings = {"batches": arguments.batches, "size": arguments.size, "seed": arguments.seed}
    whole = {"reward": artifact.id, "settings": settings, "estimators": found}
    print(json.dumps(whole, indent=2) if arguments.json else markdown(found))


def markdown(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| estimator | variance | relative | over the first of its gamma |", "|---|--:|--:|--:|"]
    for name, row in found.items():
        (low, high), relative = row["over_plain_interval"], "" if row["relative"] is None else f"{row['relative']:.1f}"
        ratio = f"{row['over_plain']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {name} | {row['variance']:.3g} | {relative} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
