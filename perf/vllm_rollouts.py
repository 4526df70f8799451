"""vLLM's side of perf/rollouts.py, which starts it with the Python of an environment that has vLLM: a network of random
weights, and for each line of prompts and lengths on the standard input a line of lengths drawn on the standard output.
"""

import json
import os
import sys


def main() -> None:
    folder, dtype, rows, positions = sys.argv[1:]
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": f"{folder}/cache",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
        "OMP_NUM_THREADS": "1",
    }
    # What is printed goes to the log, and only replies to whoever asked.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine = LLM(
        folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=dtype,
        max_num_seqs=int(rows),
        max_model_len=int(positions),
        enable_prefix_caching=False,
    )
    for line in sys.stdin:
        prompts, lengths = json.loads(line)
        outputs = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in lengths],
            use_tqdm=False,
        )
        print(json.dumps([len(output.outputs[0].token_ids) for output in outputs]), file=replies, flush=True)


if __name__ == "__main__":
    main()
