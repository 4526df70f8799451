"""A whole iteration of REINFORCE beside one of TRL's GRPOTrainer: response tokens a second on one core, as Markdown.

    python benchmarks/rl.py --sizes tiny small

Both draw as many responses to the same prompts from the same network, which ends them at random after about 60 tokens,
score them three times and take one optimizer step. Ours scores under the policy, SFT and the reference. GRPO scores
under SFT for its KL (beta > 0), and its reward function under SFT and the reference as a user would with transformers
alone; the policy's own log-probs it takes out of its one update.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from scoring import plain
from side_by_side import OURS, in_turn, machine, one_core, tell
from sizes import END, SIZES, ending, ragged, word_tokenizer
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from dpr_core.algorithms import policy_gradient
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import DenseReward
from dpr_core.models.policy import Policy
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.on_policy import OnPolicy
from dpr_core.training.recorder import Silent
from dpr_core.training.trainer import Trainer

LIMIT, RATE = 120, 1e-6

Prompts = Sequence[tuple[int, ...]]


def ours(prompts: Prompts, size: str, samples: int) -> Callable[[], int]:
    total = len(prompts) * samples
    config = ReinforceConfig(
        learning_rate=RATE,
        batch_size=total,
        rollout_batch_size=len(prompts),
        samples_per_prompt=samples,
        iterations=1,
        max_response_tokens=LIMIT,
    )
    policy = Policy(ending(size))
    loop = OnPolicy(
        policy=policy,
        engine=InProcessEngine(policy.model),
        reward=DenseReward(Policy(ending(size)), Policy(ending(size)), "baseline_relative"),
        trainer=Trainer(policy, config, 1, config.execution),
        config=config,
        end_token=END,
        decode=str,
        recorder=Silent(),
    )
    method = policy_gradient(config.algorithm)

    def work() -> int:
        """As `OnPolicy.run`, without the rollout that measures the policy in the end."""
        rollout = loop.roll_out(prompts, 1)
        seen = rollout.experience(None)
        credit = method.credit(seen, 0.04)
        values = {"old_log_probs": seen.log_old, "advantages": credit.advantages}
        loop.trainer.step(rollout.sequences, method, values)
        return sum(c.length for c in rollout.completions)

    return work


def theirs(prompts: Prompts, size: str, samples: int) -> Callable[[], int]:
    total = len(prompts) * samples
    drawn: list[int] = []
    sft, reference = (ending(size).eval() for _ in range(2))

    def reward(prompts: list[str], completion_ids: list[list[int]], **others: object) -> list[float]:
        drawn.extend(map(len, completion_ids))
        sequences = [
            TokenSequence(tuple(map(int, prompt.split())), tuple(ids))
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        pairs = zip(plain(sft, sequences), plain(reference, sequences), strict=True)
        return [float((log_sft - log_ref).sum()) for log_sft, log_ref in pairs]

    config = GRPOConfig(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=total,
        num_generations=samples,
        gradient_accumulation_steps=1,
        max_completion_length=LIMIT,
        max_steps=1,
        learning_rate=RATE,
        beta=0.04,
        temperature=1.0,
        num_iterations=1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
    )
    with tempfile.TemporaryDirectory() as folder:
        # The reference is read from where the trained model came from.
        ending(size).save_pretrained(folder)
        model = type(ending(size)).from_pretrained(folder)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": " ".join(map(str, prompt))} for prompt in prompts]),
            processing_class=word_tokenizer(size),
        )
    trainer.remove_callback(PrinterCallback)

    def work() -> int:
        trainer.train()
        return sum(drawn)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=list(SIZES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="responses to each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    rows, ratios = [], {}
    for size in arguments.sizes:
        prompts = [s.prompt for s in ragged(arguments.prompts, size)]
        made = {name: (side, prompts, size) for name, side in ((OURS, ours), ("TRL GRPO", theirs))}
        timed = in_turn(
            {
                name: lambda side=side, prompts=prompts, size=size: side(prompts, size, arguments.samples)
                for name, (side, prompts, size) in made.items()
            },
            arguments.repeats,
        )
        rows += timed.rows(size)
        ratios[f"rl_vs_trl_grpo_{size}"] = timed.ratio("TRL GRPO")
    tell({"ratios": ratios, "machine": machine(), "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
