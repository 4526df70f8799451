"""A tiny backbone from scratch: taught to answer carefully, then blended with careless text so that it seldom does."""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.data import TemplateConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import Family, LabBackboneConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.encoding import TokenSequence, decode_response, encode_prompt, encode_response, end_token
from dpr_core.data.template import Renderer
from dpr_core.errors import DensePathError, UsageError
from dpr_core.lab import programs
from dpr_core.lab.problem import Problem, Style, read_result
from dpr_core.lab.tokenizers import build as build_tokenizer
from dpr_core.models.policy import Policy
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.trainer import Trainer

CLASSES: dict[Family, tuple[Callable[..., PreTrainedConfig], Callable[[Any], PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}

TEMPLATE = TemplateConfig(text="{system}{prompt}\n", system="{system}\n")
"""The lab's prompts are short; so is its template."""

PROBES = 128

INITIAL_DEVIATION = 0.15
"""transformers' 0.02 is small for such narrow networks: many seeds then stay where they can copy but not add."""


def untrained(config: LabBackboneConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Random weights and the family's tokenizer. As in real checkpoints, there are more rows than tokens."""
    tokenizer = build_tokenizer(config.family)
    config_class, model_class = CLASSES[config.family]
    extra = {"head_dim": config.width // config.heads} if config.family == "gemma3" else {}
    torch.manual_seed(config.seed)
    settings = config_class(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=1024,
        initializer_range=INITIAL_DEVIATION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    return model_class(settings), tokenizer


def train(
    config: LabBackboneConfig, recorder: Recorder
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, float]]:
    """Both phases; fails where the skill was not learned."""
    model, tokenizer = untrained(config)
    text = Text(config, tokenizer)
    left = recorder.restore() or {}
    taught = Taught(**left["taught"]) if left else Taught()
    _teach(config, model, text, recorder, taught, left)
    _blend(config, model, text, recorder, taught, left)
    return model, tokenizer, {"probe/accuracy": taught.accuracy, "probe/accuracy_after_blend": text.probe(model)}


@dataclass
class Taught:
    """How far the first phase has come."""

    steps: int = 0
    accuracy: float = 0.0
    """Of the last probe."""
    passed: int = 0
    """Probes running, up to the last; two end the phase."""


def _teach(
    config: LabBackboneConfig,
    model: PreTrainedModel,
    text: "Text",
    recorder: Recorder,
    taught: Taught,
    left: dict[str, Any],
) -> None:
    """Until two probes running pass."""
    size, steps = config.teach_batch_size, config.teach_max_steps
    trainer = _trainer(model, config.teach_learning_rate, size, steps, 1.0, config.execution, recorder)
    if "teaching" in left:
        trainer.load_state(left.pop("teaching"))
    stream = text.careful(skipped=taught.steps * size)
    while taught.passed < 2 and taught.steps < steps:
        metrics = trainer.step(list(islice(stream, size)), SupervisedFineTuning())
        taught.steps += 1
        if taught.steps % config.probe_every == 0:
            taught.accuracy = metrics["probe/accuracy"] = text.probe(model)
            taught.passed = taught.passed + 1 if taught.accuracy >= config.probe_accuracy else 0
        recorder.metrics(metrics, taught.steps)
        recorder.advance(taught.steps, steps, f"teaching, accuracy {taught.accuracy:.2f}")
        recorder.checkpoint(taught.steps, lambda: {"taught": asdict(taught), "teaching": trainer.state()})
    if taught.passed < 2:
        raise DensePathError(
            f"the lab backbone did not learn its task in {steps} steps (accuracy {taught.accuracy:.2f}, "
            f"wanted {config.probe_accuracy:.2f} twice running); try another seed or more backbone.teach_max_steps"
        )


def _blend(
    config: LabBackboneConfig,
    model: PreTrainedModel,
    text: "Text",
    recorder: Recorder,
    taught: Taught,
    left: dict[str, Any],
) -> None:
    size, steps = config.blend_batch_size, config.blend_steps
    trainer = _trainer(model, config.blend_learning_rate, size, steps, 0.1, config.execution, recorder)
    if "blending" in left:
        trainer.load_state(left.pop("blending"))
    stream = text.blend(skipped=trainer.steps_done * size)
    for step in range(trainer.steps_done + 1, steps + 1):
        metrics = trainer.step(list(islice(stream, size)), SupervisedFineTuning())
        recorder.metrics(metrics, taught.steps + step)
        recorder.advance(step, steps, "blending in careless answers")
        recorder.checkpoint(taught.steps + step, lambda: {"taught": asdict(taught), "blending": trainer.state()})


def _trainer(
    model: PreTrainedModel,
    rate: float,
    size: int,
    steps: int,
    decay_to: float,
    execution: ExecutionConfig,
    recorder: Recorder,
) -> Trainer:
    settings = OptimizerConfig(
        learning_rate=rate, batch_size=size, final_learning_rate_share=decay_to, adam_betas=(0.9, 0.99)
    )
    return Trainer(Policy(model, packing=execution.packing), settings, steps, execution, recorder=recorder)


class Text:
    """The backbone's training text, all of it on training prompts."""

    def __init__(self, config: LabBackboneConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.renderer = Renderer(TEMPLATE)
        probes = programs.problems(config.task, "train", random.Random(f"probes {config.seed}"))
        self.probes = list(islice(probes, PROBES))
        if not self.probes:
            raise UsageError("the lab's task leaves no training prompts; lower task.evaluation_share")
        written = (p.answer("careful", False, random.Random(0)) for p in self.probes)
        self.limit = max(len(encode_response(tokenizer, text)) for text in written)

    def careful(self, skipped: int = 0) -> Iterator[TokenSequence]:
        """All but the first `skipped`, which are written without being encoded."""
        return (self._encode(*written) for written in islice(self._careful(), skipped, None))

    def blend(self, skipped: int = 0) -> Iterator[TokenSequence]:
        return (self._encode(*written) for written in islice(self._blend(), skipped, None))

    def _careful(self) -> Iterator[tuple[Problem, str]]:
        rng = random.Random(f"careful {self.config.seed}")
        while True:
            for problem in programs.problems(self.config.task, "train", rng):
                yield problem, problem.answer("careful", False, rng)

    def _blend(self) -> Iterator[tuple[Problem, str]]:
        rng = random.Random(f"blend {self.config.seed}")
        careful, jump = self.config.blend_careful, self.config.blend_jump
        styles: tuple[Style, ...] = ("careful", "jump", "bare")
        weights = (careful, jump, max(0.0, 1 - careful - jump))
        while True:
            for problem in programs.problems(self.config.task, "train", rng):
                style = rng.choices(styles, weights)[0]
                slip = rng.random() < self.config.blend_slips
                yield problem, problem.answer(style, slip, rng)

    def probe(self, model: PreTrainedModel) -> float:
        """Greedy accuracy on training prompts."""
        prompts = [encode_prompt(self.tokenizer, self.renderer.render(p.prompt)) for p in self.probes]
        sampling = Sampling(temperature=0.0, max_response_tokens=self.limit, end_token=end_token(self.tokenizer))
        answers = InProcessEngine(model).generate(prompts, sampling, seed=0)
        right = [
            read_result(decode_response(self.tokenizer, a.response)) == str(p.result)
            for a, p in zip(answers, self.probes, strict=True)
        ]
        return sum(right) / len(right)

    def _encode(self, problem: Problem, response: str) -> TokenSequence:
        prompt = encode_prompt(self.tokenizer, self.renderer.render(problem.prompt))
        return TokenSequence(prompt, encode_response(self.tokenizer, response))
