"""Correlation of the rewards that different references make, token by token and summed over responses.

    python perf/reference_correlation.py SFT --backbone smollm2-135m --task word-problems --home HOME

Of an SFT artifact: every checkpoint that it kept, and the backbone that it began with (0), are the reference once, on
demonstrations and on answers that pi_SFT draws to other demonstrations' prompts, in float32. Where the rewards of two
references correlate above .95 they are one reward, and which of them is the better one is no question. Adds the file
_references-BACKBONE-TASK-seedN.json to docs/results/real.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reward import BACKBONE
from dpr_core.config.training import SFTConfig
from dpr_core.data.encoding import TokenSequence, end_token
from dpr_core.errors import DensePathError
from dpr_core.experiments.measured import file_name, lines, rounded
from dpr_core.masking import response_mask
from dpr_core.models.dense_reward import encode_texts
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.torch_runtime import torch_threads
from tasks.artifacts.store import Artifact, Store
from tasks.stages.lineage import Lineage, checkpoints
from tasks.stages.reward import probes

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "real"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sft", help="the ID of an SFT artifact")
    parser.add_argument("--backbone", required=True, help="what the file calls it")
    parser.add_argument("--task", required=True, help="what the file calls the demonstrations")
    parser.add_argument("--home", type=Path, help="the DPR_HOME with the store; else that of the environment")
    parser.add_argument("--responses", type=int, default=128, help="demonstrations, and as many drawn answers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the file")
    given = parser.parse_args()
    if given.home:
        os.environ["DPR_HOME"] = str(given.home.absolute())
    try:
        store = Store.open()
        sft = store.fetch(given.sft, stages=("sft",))
        with torch_threads(given.threads):
            found = measured(Lineage(store), sft, given.responses)
    except DensePathError as error:
        sys.exit(str(error))
    seed = int(sft.config["seed"])
    named = {"version": 1, "backbone": given.backbone, "task": given.task, "seed": seed}
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"_references-{file_name(given.backbone, given.task, seed=seed)}"
    file.write_text(lines(named | found), encoding="utf-8")
    print(file)
    for kind in ("demonstrations", "answers"):
        print(f"{kind}: token rewards of two references correlate by {lowest(found, kind):.3f} or more")


def lowest(found: Mapping[str, Any], kind: str) -> float:
    """The least correlation of the token rewards of two references."""
    return min(value for row in found[kind]["token_correlation"] for value in row)


def measured(lineage: Lineage, sft: Artifact, count: int) -> dict[str, Any]:
    """Correlations on both kinds of responses, with the deviation of every reward."""
    execution = ExecutionConfig(tokens_per_micro_batch=4096)
    limits = SFTConfig.model_validate(sft.config)
    demonstrated = encode_texts(lineage.tokenizer(sft), lineage.renderer(sft), probes(lineage, sft, 2 * count))
    policy = lineage.load(lineage.sft_folder(sft), sft, execution, frozen=True, rounded=False)
    prompts = [each.prompt for each in demonstrated[-count:]]
    sampling = Sampling(1.0, limits.max_response_tokens, end_token(lineage.tokenizer(sft)))
    drawn = InProcessEngine.of(policy, execution).generate(prompts, sampling, 0)
    responses = {
        "demonstrations": demonstrated[:count],
        "answers": [TokenSequence(each.prompt, each.response) for each in drawn],
    }
    del policy
    fractions = sorted(part for part in checkpoints(sft) if isinstance(part, float) and part < 1)
    references = [BACKBONE, *fractions]
    log_sft = log_probs(lineage, sft, 1.0, responses, execution)
    rewards: dict[str, list[torch.Tensor]] = {kind: [] for kind in responses}
    for fraction in references:
        for kind, log_ref in log_probs(lineage, sft, fraction, responses, execution).items():
            rewards[kind].append(log_sft[kind] - log_ref)
    return {"sft": sft.digest, "references": references} | {
        kind: correlations(rewards[kind], responses[kind]) for kind in responses
    }


def log_probs(
    lineage: Lineage,
    sft: Artifact,
    fraction: float,
    responses: Mapping[str, Sequence[TokenSequence]],
    execution: ExecutionConfig,
) -> dict[str, torch.Tensor]:
    """(B, T) in float32 under one checkpoint, of each kind of responses."""
    folder = lineage.backbone_folder(sft) if fraction == BACKBONE else checkpoints(sft)[fraction]
    return {kind: lineage.exact_scores(folder, sft, execution, rows).log_probs for kind, rows in responses.items()}


def correlations(rewards: Sequence[torch.Tensor], responses: Sequence[TokenSequence]) -> dict[str, Any]:
    """Of the rewards of several references to the same responses: all pairs, and how large each is."""
    mask = response_mask([len(each.response) for each in responses])
    tokens = np.array([each[mask].double().numpy() for each in rewards])
    returns = np.array([each.double().sum(dim=1).numpy() for each in rewards])
    return {
        "responses": len(responses),
        "tokens": int(mask.sum()),
        "token_correlation": _rounded(np.corrcoef(tokens)),
        "return_correlation": _rounded(np.corrcoef(returns)),
        "token_deviation": [rounded(float(each)) for each in tokens.std(axis=1)],
        "return_mean": [rounded(float(each)) for each in returns.mean(axis=1)],
    }


def _rounded(matrix: Any) -> list[list[float]]:
    return [[round(float(value), 4) for value in row] for row in np.atleast_2d(matrix)]


if __name__ == "__main__":
    main()
