"""A tiny backbone from scratch: taught to answer carefully, then blended with careless text so that it seldom does."""

import random
from collections.abc import Callable, Iterator
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
from dpr_core.config.data import Template
from dpr_core.config.execution import Execution
from dpr_core.config.model import Family, LabBackbone
from dpr_core.config.training import Optimizer
from dpr_core.data.encoding import TokenSequence, decode_response, encode_prompt, encode_response, end_token
from dpr_core.data.rendering import Renderer
from dpr_core.errors import DensePathError, UsageError
from dpr_core.lab import programs
from dpr_core.lab.problem import Problem, Style, read_result
from dpr_core.lab.tokenizers import build as build_tokenizer
from dpr_core.models.policy import Policy
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.recorder import Recorder
from dpr_core.training.trainer import Trainer

CLASSES: dict[Family, tuple[Callable[..., PreTrainedConfig], Callable[[Any], PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}

TEMPLATE = Template(text="{system}{prompt}\n", system="{system}\n")
"""The lab's prompts are short; so is its template."""

PROBES = 128

INITIAL_DEVIATION = 0.15
"""transformers' 0.02 is small for such narrow networks: many seeds then stay where they can copy but not add."""


def untrained(config: LabBackbone) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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


def train(config: LabBackbone, recorder: Recorder) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, float]]:
    """Both phases; fails where the skill was not learned."""
    model, tokenizer = untrained(config)
    text = Text(config, tokenizer)
    steps, accuracy = _teach(config, model, text, recorder)
    _blend(config, model, text, recorder, steps)
    return model, tokenizer, {"probe/accuracy": accuracy, "probe/accuracy_after_blend": text.probe(model)}


def _teach(config: LabBackbone, model: PreTrainedModel, text: "Text", recorder: Recorder) -> tuple[int, float]:
    """Until two probes running pass; returns the steps taken and the last probe's accuracy."""
    size, steps = config.teach_batch_size, config.teach_max_steps
    trainer = _trainer(model, config.teach_learning_rate, size, steps, 1.0, config.execution)
    stream, passed, accuracy = text.careful(), 0, 0.0
    for step in range(1, steps + 1):
        metrics = trainer.step(list(islice(stream, size)), SupervisedFineTuning())
        if step % config.probe_every == 0:
            accuracy = text.probe(model)
            metrics["probe/accuracy"] = accuracy
            passed = passed + 1 if accuracy >= config.probe_accuracy else 0
        recorder.metrics(metrics, step)
        recorder.advance(step, steps, f"teaching, accuracy {accuracy:.2f}")
        if passed == 2:
            return step, accuracy
    raise DensePathError(
        f"the lab backbone did not learn its task in {steps} steps (accuracy {accuracy:.2f}, "
        f"wanted {config.probe_accuracy:.2f} twice running); try another seed or more backbone.teach_max_steps"
    )


def _blend(config: LabBackbone, model: PreTrainedModel, text: "Text", recorder: Recorder, steps_before: int) -> None:
    size, steps = config.blend_batch_size, config.blend_steps
    trainer = _trainer(model, config.blend_learning_rate, size, steps, 0.1, config.execution)
    stream = text.blend()
    for step in range(1, steps + 1):
        metrics = trainer.step(list(islice(stream, size)), SupervisedFineTuning())
        recorder.metrics(metrics, steps_before + step)
        recorder.advance(step, steps, "blending in careless answers")


def _trainer(
    model: PreTrainedModel, rate: float, size: int, steps: int, decay_to: float, execution: Execution
) -> Trainer:
    settings = Optimizer(
        learning_rate=rate, batch_size=size, final_learning_rate_share=decay_to, adam_betas=(0.9, 0.99)
    )
    return Trainer(Policy(model), settings, steps, execution)


class Text:
    """The backbone's training text, all of it on training prompts."""

    def __init__(self, config: LabBackbone, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.renderer = Renderer(TEMPLATE)
        probes = programs.problems(config.task, "train", random.Random(f"probes {config.seed}"))
        self.probes = list(islice(probes, PROBES))
        if not self.probes:
            raise UsageError("the lab's task leaves no training prompts; lower task.evaluation_share")
        written = (p.answer("careful", False, random.Random(0)) for p in self.probes)
        self.limit = max(len(encode_response(tokenizer, text)) for text in written)

    def careful(self) -> Iterator[TokenSequence]:
        rng = random.Random(f"careful {self.config.seed}")
        while True:
            for problem in programs.problems(self.config.task, "train", rng):
                yield self._encode(problem, problem.answer("careful", False, rng))

    def blend(self) -> Iterator[TokenSequence]:
        rng = random.Random(f"blend {self.config.seed}")
        careful, jump = self.config.blend_careful, self.config.blend_jump
        styles: tuple[Style, ...] = ("careful", "jump", "bare")
        weights = (careful, jump, max(0.0, 1 - careful - jump))
        while True:
            for problem in programs.problems(self.config.task, "train", rng):
                style = rng.choices(styles, weights)[0]
                slip = rng.random() < self.config.blend_slips
                yield self._encode(problem, problem.answer(style, slip, rng))

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
