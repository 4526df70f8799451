"""Throughput of one REINFORCE iteration beside TRL's GRPOTrainer: response tokens a second on one core, as Markdown.

    python perf/rl.py --sizes tiny small

Both draw as many responses to the same prompts from the same network, which ends them at random after about 60 tokens,
score them and take one optimizer step. Each turn has a seed of its own; that both drew about as many tokens in all
turns together is checked. Optimizers are made before the time is taken. Ours scores under SFT, whose pass serves KL and
reward, and the reference. GRPO scores under SFT for its KL (beta > 0), and its reward function under SFT and the
reference as a user would with transformers alone. The policy's own log-probs both take out of their one update.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from scoring import plain
from side_by_side import OURS, check_equal_lengths, in_turn, machine, one_core, print_results
from sizes import END, SIZES, ending, ragged, word_tokenizer
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from dpr_core.algorithms import policy_gradient
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import DenseReward
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.hooks import Iteration
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import rollout_requests
from dpr_core.training.trainer import Trainer

LIMIT, RATE = 120, 1e-6

Prompts = Sequence[tuple[int, ...]]

TOLERANCE = 0.2
"""Of the tokens that both drew, whose number is random. Longer responses make a token cheaper where all rows go on to
the end of the longest, so a difference may move the ratio by as much. Two sums of 64 responses, of 60 tokens
before they are cut at 120, differ by 14% in one standard deviation; those of six turns by 6%."""


def ours(prompts: Prompts, size: str, samples: int, seed: int, drawn: list[int]) -> Callable[[], int]:
    total = len(prompts) * samples
    config = ReinforceConfig(
        seed=seed,
        learning_rate=RATE,
        batch_size=total,
        rollout_batch_size=len(prompts),
        samples_per_prompt=samples,
        iterations=1,
        max_response_tokens=LIMIT,
    )
    policy = Policy(ending(size))
    loop = ReinforceLoop(
        policy=policy,
        engine=InProcessEngine(policy.model),
        reward=DenseReward(Policy(ending(size)), Policy(ending(size)), "baseline_relative"),
        trainer=Trainer(policy, config, 1, config.execution),
        config=config,
        end_token=END,
        decode=str,
        recorder=InMemoryRecorder(),
    )
    method = policy_gradient(config.algorithm)
    request = next(rollout_requests(prompts, config, END))

    def work() -> int:
        """As `ReinforceLoop.run`, without the rollout that measures the policy in the end."""
        rollout = loop.score(loop.sample(request), trust_engine=loop.one_step_on_policy)
        credit = method.credit(rollout.batch, 0.04)
        loop.update(Iteration(1, 1, 0, rollout, credit), [range(total)], method, None)
        lengths = [c.length for c in rollout.completions]
        drawn.extend(lengths)
        return sum(lengths)

    return work


def theirs(prompts: Prompts, size: str, samples: int, seed: int, drawn: list[int]) -> Callable[[], int]:
    total = len(prompts) * samples
    before = len(drawn)
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
        seed=seed,
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
    # As ours is, outside of what is timed. The scheduler, one function of the step, train() makes anew in any case.
    made = trainer.create_optimizer()

    def work() -> int:
        trainer.train()
        assert trainer.optimizer.optimizer is made, "TRL has made another optimizer"
        return sum(drawn[before:])

    return work


def _in_turns(
    side: Callable[..., Callable[[], int]], prompts: Prompts, size: str, samples: int, drawn: list[int]
) -> Callable[[], Callable[[], int]]:
    """Made ready with another seed each turn: with one alone, whoever drew longer responses would do so each time."""
    seeds = itertools.count()
    return lambda: side(prompts, size, samples, next(seeds), drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"], choices=list(SIZES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="responses to each prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    rows, ratios = [], {}
    for size in arguments.sizes:
        prompts = [s.prompt for s in ragged(arguments.prompts, size)]
        lengths: dict[str, list[int]] = {OURS: [], "TRL GRPO": []}
        programs = {
            name: _in_turns(side, prompts, size, arguments.samples, lengths[name])
            for name, side in zip(lengths, (ours, theirs), strict=True)
        }
        timed = in_turn(programs, arguments.repeats)
        check_equal_lengths(lengths, TOLERANCE)
        rows += timed.rows(size)
        ratios[f"rl_vs_trl_grpo_{size}"] = timed.ratio("TRL GRPO")
    print_results({"ratios": ratios, "machine": machine(), "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
