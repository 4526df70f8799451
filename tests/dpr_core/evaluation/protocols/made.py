"""Files in the layouts of the official ones with texts of our own, and where the real ones stand."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpr_core.config.evaluation import OpenAIJudgeConfig
from dpr_core.evaluation.pairwise import Answer, Game, Pair, Verdict
from dpr_core.evaluation.protocols import JudgingProtocol, Official, official
from dpr_core.evaluation.questions import Question

BENCH = Path(__file__).parents[5] / "shared" / "bench"

TOLD = {"easy": "Be kind.", "hard": "Be strict."}

ARENA: dict[str, Any] = {
    "judge_model": "judge",
    "bench_name": "made-v1",
    "temperature": 0.0,
    "max_tokens": 300,
    "regex_patterns": [r"\[\[([AB<>=]+)\]\]", r"\[([AB<>=]+)\]"],
    "prompt_template": "Q {QUESTION}\nA {ANSWER_A}\nB {ANSWER_B} {{end}}",
    "model_list": ["any"],
}

MESSAGES = (
    "<|im_start|>system\nYou choose.\n<|im_end|>\n<|im_start|>user\n{instruction}\n"
    '{ "one": """{output_1}""", "two": """{output_2}""" }\n<|im_end|>\n'
)

RANKING: dict[str, Any] = {
    "prompt_template": "made/prompt.txt",
    "completions_kwargs": {"model_name": "judge", "max_tokens": 50, "temperature": 0},
    "fn_completion_parser": "ranking_parser",
    "batch_size": 1,
}

WEIGHTED: dict[str, Any] = {
    "prompt_template": "made/prompt.txt",
    "fn_completions": "openai_completions",
    "completions_kwargs": {"model_name": "judge", "max_tokens": 1, "temperature": 1, "logprobs": True}
    | {"top_logprobs": 5},
    "fn_completion_parser": "logprob_parser",
    "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
    "completion_key": "completions_all",
    "batch_size": 1,
}


def arena(folder: Path, code: str | None = None, **changes: Any) -> Path:
    """The setting file of a checkout, in which `code` is judge_utils.py. YAML takes JSON."""
    if code is None:
        told = {name: {"baseline": f"best at {name}", "system_prompt": text} for name, text in TOLD.items()}
        code = f"SHARED = {TOLD['hard']!r}\nJUDGE_SETTINGS = {told!r}\n".replace(f": {TOLD['hard']!r}", ": SHARED")
    for name in ("config", "utils"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "utils" / "judge_utils.py").write_text(code)
    file = folder / "config" / "made.yaml"
    file.write_text(json.dumps(ARENA | changes))
    return file


def annotator(folder: Path, values: Mapping[str, Any], template: str = MESSAGES) -> Path:
    """The configs.yaml of an annotator."""
    (folder / "made").mkdir(parents=True, exist_ok=True)
    (folder / "made" / "prompt.txt").write_text(template)
    file = folder / "made" / "configs.yaml"
    file.write_text(json.dumps({"made": values}))
    return file


def logprobs(**told: float) -> str:
    """What is kept of a choice with these log-probabilities of its first token."""
    top = [{"token": token, "logprob": value} for token, value in told.items()]
    return json.dumps({"logprobs": {"content": [{"token": "m", "top_logprobs": top}]}})


def judged(protocol: JudgingProtocol, pair: Pair, raw: Mapping[bool, str]) -> Official:
    """Of a pair of which the judge wrote these replies, by whether the candidate came first."""
    games = []
    for candidate_first in (True, False):
        label = protocol.label(raw[candidate_first]) or ""
        verdict = protocol.verdict(label) if label else Verdict.UNREADABLE
        games.append(Game(pair.question.id, candidate_first, verdict, raw[candidate_first], label=label))
    return official(protocol, [pair], games, "mine", ["theirs"], OpenAIJudgeConfig(model="judge"))


PAIR = Pair(Question("q1", ("Why?",), category="hard"), Answer.of("because"), Answer.of("who knows"))
