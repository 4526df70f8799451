"""Training of the lab's tiny backbones: taught to answer step by step, then blended with careless answers.

After the second phase the skill is there but seldom shown, which leaves something for REINFORCE to recover.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.data import TemplateConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.encoding import TokenSequence, decode_response, encode_response, end_token
from dpr_core.data.template import TextRenderer
from dpr_core.errors import DensePathError, UsageError
from dpr_core.lab import Style, programs
from dpr_core.lab.backbone import untrained
from dpr_core.lab.programs import Problem, read_result
from dpr_core.models.policy import Policy
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.trainer import Trainer

TEMPLATE = TemplateConfig(text="{system}{prompt}\n", system="{system}\n")
"""The prompt template of the lab: short, as its prompts are."""

PROBES = 128
"""Training prompts that a probe of greedy accuracy asks."""


def train(
    config: LabBackboneConfig, recorder: Recorder
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, float]]:
    """Run both phases and return model, tokenizer and metrics; fails where the skill was not learned."""
    model, tokenizer = untrained(config)
    corpus = LabCorpus(config, tokenizer)
    resumed = recorder.restore() or {}
    progress = TeachingProgress(**resumed["taught"]) if resumed else TeachingProgress()
    _teach(config, model, corpus, recorder, progress, resumed)
    _blend(config, model, corpus, recorder, progress, resumed)
    metrics = {"probe/accuracy": progress.accuracy, "probe/accuracy_after_blend": corpus.greedy_accuracy(model)}
    return model, tokenizer, metrics


@dataclass
class TeachingProgress:
    """The progress of the first phase."""

    steps: int = 0
    accuracy: float = 0.0
    """Greedy accuracy at the last probe."""
    passed: int = 0
    """Probes passed in a row; two end the phase."""


def _teach(
    config: LabBackboneConfig,
    model: PreTrainedModel,
    corpus: "LabCorpus",
    recorder: Recorder,
    progress: TeachingProgress,
    resumed: dict[str, Any],
) -> None:
    """Phase 1: careful answers alone, until two probes in a row pass."""
    size, steps = config.teach_batch_size, config.teach_max_steps
    trainer = _trainer(model, config.teach_learning_rate, size, steps, 1.0, config.execution, recorder)
    if "teaching" in resumed:
        trainer.load_state(resumed.pop("teaching"))
    stream = corpus.careful(skipped=progress.steps * size)
    while progress.passed < 2 and progress.steps < steps:
        metrics = trainer.step(list(islice(stream, size)), SupervisedFineTuning())
        progress.steps += 1
        if progress.steps % config.probe_every == 0:
            progress.accuracy = metrics["probe/accuracy"] = corpus.greedy_accuracy(model)
            progress.passed = progress.passed + 1 if progress.accuracy >= config.probe_accuracy else 0
        recorder.metrics(metrics, progress.steps)
        recorder.advance(progress.steps, steps, f"teaching, accuracy {progress.accuracy:.2f}", at_most=True)
        recorder.checkpoint(progress.steps, lambda: {"taught": asdict(progress), "teaching": trainer.state()})
    if progress.passed < 2:
        raise DensePathError(
            f"the lab backbone did not learn its task in {steps} steps (accuracy {progress.accuracy:.2f}, "
            f"wanted {config.probe_accuracy:.2f} twice running); try another seed or more backbone.teach_max_steps"
        )


def _blend(
    config: LabBackboneConfig,
    model: PreTrainedModel,
    corpus: "LabCorpus",
    recorder: Recorder,
    progress: TeachingProgress,
    resumed: dict[str, Any],
) -> None:
    """Phase 2: a mixture of careful, interrupted and bare answers, some of them wrong."""
    size, steps = config.blend_batch_size, config.blend_steps
    trainer = _trainer(model, config.blend_learning_rate, size, steps, 0.1, config.execution, recorder)
    if "blending" in resumed:
        trainer.load_state(resumed.pop("blending"))
    stream = corpus.blend(skipped=trainer.steps_done * size)
    for step in range(trainer.steps_done + 1, steps + 1):
        metrics = trainer.step(list(islice(stream, size)), SupervisedFineTuning())
        recorder.metrics(metrics, progress.steps + step)
        recorder.advance(step, steps, "blending in careless answers")
        recorder.checkpoint(progress.steps + step, lambda: {"taught": asdict(progress), "blending": trainer.state()})


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


class LabCorpus:
    """The training text of a lab backbone, all of it on training prompts."""

    def __init__(self, config: LabBackboneConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.renderer = TextRenderer(TEMPLATE)
        probes = programs.problems(config.task, "train", random.Random(f"probes {config.seed}"))
        self.probes = list(islice(probes, PROBES))
        if not self.probes:
            raise UsageError("the lab's task leaves no training prompts; lower task.evaluation_share")
        written = (p.answer("careful", False, random.Random(0)) for p in self.probes)
        self.limit = max(len(encode_response(tokenizer, text)) for text in written)

    def careful(self, skipped: int = 0) -> Iterator[TokenSequence]:
        """Careful answers, without the first `skipped`, which are generated but not encoded."""
        return (self._encode(*written) for written in islice(self._careful(), skipped, None))

    def blend(self, skipped: int = 0) -> Iterator[TokenSequence]:
        """Answers of the careless mixture, without the first `skipped`."""
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

    def greedy_accuracy(self, model: PreTrainedModel) -> float:
        """Accuracy on the probes' prompts, decoded greedily."""
        prompts = [self.renderer.prompt(self.tokenizer, p.prompt) for p in self.probes]
        sampling = Sampling(temperature=0.0, max_response_tokens=self.limit, end_token=end_token(self.tokenizer))
        answers = InProcessEngine(model).generate(prompts, sampling, seed=0)
        correct = [
            read_result(decode_response(self.tokenizer, a.response)) == str(p.result)
            for a, p in zip(answers, self.probes, strict=True)
        ]
        return sum(correct) / len(correct)

    def _encode(self, problem: Problem, response: str) -> TokenSequence:
        return self.renderer.demonstration(self.tokenizer, problem.prompt, response)
