"""Throughput of one REINFORCE iteration beside TRL's GRPOTrainer: response tokens a second on one core, as Markdown.

    python perf/rl.py --sizes tiny small

Both draw as many responses to the same prompts from the same network, of lengths from 10 to 120 tokens that are fixed
beforehand (see rollouts.py), score them and take one optimizer step. Optimizers are made before the time is taken. Ours
scores under SFT, whose pass serves KL and reward, and the reference, in bfloat16 under the policy too. GRPO scores
under SFT for its KL (beta > 0), and its reward function under SFT and the reference as a user would with transformers
alone; the policy's own log-probs it takes out of its one update, as ours does in float32. In bfloat16 ours trains
float32 weights under autocast, as TRL does; the networks of the reward function are in bfloat16 as a whole.
"""

import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from scoring import plain
from side_by_side import (
    DTYPES,
    OURS,
    Program,
    Work,
    arguments_for,
    beside,
    in_turn,
    named,
    one_core,
    print_results,
    suffix,
)
from sizes import END, RESPONSES, SIZES, ScriptedLengths, network, ragged, response_length, word_tokenizer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PrinterCallback, StoppingCriteriaList
from trl import GRPOConfig, GRPOTrainer

from dpr_core.algorithms import policy_gradient
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training.hooks import Iteration
from dpr_core.training.reinforce_loop import ReinforceLoop
from dpr_core.training.schedule import rollout_requests
from dpr_core.training.trainer import Trainer
from perf.rollouts import END as FIRST_TOKEN
from perf.rollouts import StopAt

LIMIT, RATE = RESPONSES[1], 1e-6

Prompts = Sequence[tuple[int, ...]]


def ours(prompts: Prompts, size: str, samples: int, lengths: Sequence[int], dtype: str = "float32") -> Work:
    total = len(prompts) * samples
    config = ReinforceConfig(
        learning_rate=RATE,
        batch_size=total,
        rollout_batch_size=len(prompts),
        samples_per_prompt=samples,
        iterations=1,
        max_response_tokens=LIMIT,
    )
    activations = DTYPES[dtype]
    policy = Policy(network(size), activations=activations)
    sft, reference = (Policy(network(size, seed), activations=activations).freeze() for seed in range(2))
    engine = ScriptedLengths(policy.model, activations=activations)
    engine.lengths = lengths
    loop = ReinforceLoop(
        policy=policy,
        engine=engine,
        reward=TokenReward(sft, reference, "baseline_relative"),
        trainer=Trainer(policy, config, 1, config.execution),
        config=config,
        end_token=FIRST_TOKEN,
        decode=str,
        recorder=InMemoryRecorder(),
    )
    method = policy_gradient(config.algorithm)
    request = next(rollout_requests(prompts, config, FIRST_TOKEN))

    def work() -> list[int]:
        """As `ReinforceLoop.run`, without the rollout that measures the policy in the end."""
        rollout = loop.score(loop.sample(request), trust_engine=loop.one_step_on_policy)
        credit = method.credit(rollout.batch, 0.04)
        loop.update(Iteration(1, 1, 0, rollout, credit), [range(total)], method, None)
        return [c.length for c in rollout.completions]

    return work


def theirs(prompts: Prompts, size: str, samples: int, lengths: Sequence[int], dtype: str = "float32") -> Work:
    total = len(prompts) * samples
    drawn: list[int] = []
    sft, reference = (network(size, seed).eval().to(DTYPES[dtype]) for seed in range(2))

    def reward(prompts: list[str], completion_ids: list[list[int]], **others: object) -> list[float]:
        drawn.extend(map(len, completion_ids))
        sequences = [
            TokenSequence(tuple(map(int, prompt.split())), tuple(ids))
            for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]
        pairs = zip(plain(sft, sequences), plain(reference, sequences), strict=True)
        return [float((log_sft - log_ref).sum()) for log_sft, log_ref in pairs]

    config = GRPOConfig(
        shuffle_dataset=False,
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
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
    )
    with tempfile.TemporaryDirectory() as folder:
        # The reference is read from where the trained model came from.
        made = network(size)
        made.save_pretrained(folder)
        model = end_at(type(made).from_pretrained(folder), lengths)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": " ".join(map(str, prompt))} for prompt in prompts]),
            processing_class=word_tokenizer(size),
        )
    trainer.remove_callback(PrinterCallback)
    # As ours is, outside of what is timed. The scheduler, one function of the step, train() makes anew in any case.
    optimizer = trainer.create_optimizer()

    def work() -> list[int]:
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer, "TRL has made another optimizer"
        return drawn

    return work


def end_at(model: PreTrainedModel, lengths: Sequence[int]) -> PreTrainedModel:
    """What it draws has these lengths."""
    generate = model.generate

    def scripted(input_ids: Tensor, generation_config: GenerationConfig, **others: Any) -> Tensor:
        width = input_ids.shape[1]
        generation_config.eos_token_id = None
        stop = StoppingCriteriaList([StopAt(lengths, width)])
        output = generate(input_ids, generation_config=generation_config, stopping_criteria=stop, **others)
        drawn = output[:, width:]
        drawn[drawn == END] = END + 1
        drawn[range(len(lengths)), [length - 1 for length in lengths]] = END
        return output

    model.generate = scripted
    return model


def one_iteration(
    side: Callable[..., Work], prompts: Prompts, size: str, samples: int, lengths: Sequence[int], dtype: str, turn: int
) -> Work:
    """Warmed up with few short responses."""
    if turn:
        return side(prompts, size, samples, lengths, dtype)
    return side(prompts[:2], size, samples, [8] * 2 * samples, dtype)


def main() -> None:
    parser = arguments_for(__doc__, ["tiny", "small"], list(SIZES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="responses to each prompt")
    arguments = parser.parse_args()
    one_core()
    rows, ratios = [], {}
    for size in arguments.sizes:
        prompts = [s.prompt for s in ragged(arguments.prompts, size)]
        rng = random.Random(0)
        lengths = [response_length(rng) for _ in range(arguments.prompts * arguments.samples)]
        programs: dict[str, Program] = {
            named(name, dtype): partial(one_iteration, side, prompts, size, arguments.samples, lengths, dtype)
            for dtype in arguments.dtype
            for name, side in ((OURS, ours), ("TRL GRPO", theirs))
        }
        timed = in_turn(programs, arguments.repeats)
        rows += timed.rows(size)
        for dtype in arguments.dtype:
            others = beside("TRL GRPO", dtype, arguments.dtype)
            ratios[f"rl_vs_trl_grpo_{size}{suffix(dtype)}"] = timed.ratio(*others, ours=named(OURS, dtype))
    print_results({"ratios": ratios, "rows": rows}, arguments)


if __name__ == "__main__":
    main()
