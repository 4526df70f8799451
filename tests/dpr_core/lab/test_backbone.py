import itertools
import random
from collections import Counter
from typing import Any, get_args

import pytest
import torch

from dpr_core.config.data import AdditionsConfig, LabTask, ShellGameConfig
from dpr_core.config.model import Family, LabBackboneConfig
from dpr_core.data.encoding import decode_response, end_token
from dpr_core.errors import DensePathError, UsageError
from dpr_core.lab import programs
from dpr_core.lab.backbone import untrained
from dpr_core.lab.programs import Problem, additions, read_result, split_of
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training import lab_backbone
from dpr_core.training.lab_backbone import LabCorpus, train

FAMILIES: tuple[Family, ...] = get_args(Family)
NAMES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
TASK = AdditionsConfig(modulus=5, operations=4)


def _small(**changes: Any) -> LabBackboneConfig:
    small = {"width": 16, "layers": 1, "heads": 2, "feed_forward": 16, "teach_batch_size": 4, "blend_batch_size": 4}
    return LabBackboneConfig(**{**small, "task": TASK, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_built_from_its_own_classes_with_more_rows_than_tokens(family: Family) -> None:
    model, tokenizer = untrained(_small(family=family, layers=2))
    assert type(model).__name__ == NAMES[family]
    assert model.get_input_embeddings().weight.shape == (model.config.vocab_size, 16)
    assert len(tokenizer) < model.config.vocab_size
    assert model.config.eos_token_id == end_token(tokenizer)
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_weights(family: Family) -> None:
    one, again, other = (list(untrained(_small(family=family, seed=s))[0].parameters()) for s in (0, 0, 1))
    assert all(a.equal(b) for a, b in zip(one, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_failing_to_learn_is_an_error_that_says_what_to_change() -> None:
    recorder = InMemoryRecorder()
    with pytest.raises(DensePathError, match=r"in 4 steps.*teach_max_steps"):
        train(_small(teach_max_steps=4, probe_every=2), recorder)
    assert len(recorder.history) == 4
    assert ["probe/accuracy" in values for _, values in recorder.history] == [False, True, False, True]


def _answers(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    script = iter(accuracies)
    monkeypatch.setattr(LabCorpus, "greedy_accuracy", lambda self, model: next(script))


def test_teaching_ends_when_two_probes_running_pass_and_blending_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, [0.95, 0.94, 0.96, 0.97, 0.3])
    recorder = InMemoryRecorder()
    config = _small(teach_max_steps=100, probe_every=2, blend_steps=3)
    model, tokenizer, metrics = train(config, recorder)
    assert metrics == {"probe/accuracy": 0.97, "probe/accuracy_after_blend": 0.3}
    assert [step for step, _ in recorder.history] == list(range(1, 4 * 2 + 3 + 1))
    taught = [values for _, values in recorder.history][: 4 * 2]
    assert {values["train/learning_rate"] for values in taught[-4:]} == {config.teach_learning_rate}
    fresh, _ = untrained(config)
    assert not all(a.equal(b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert end_token(tokenizer) == fresh.config.eos_token_id


def test_teaching_may_end_before_its_last_step_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []

    class Watching(InMemoryRecorder):
        def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
            seen.append((note.partition(",")[0], at_most))

    _answers(monkeypatch, [1.0] * 3)
    train(_small(teach_max_steps=10, probe_every=1, blend_steps=1), Watching())
    assert seen == [("teaching", True)] * 2 + [("blending in careless answers", False)]


def test_training_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for _ in range(2):
        _answers(monkeypatch, [1.0] * 3)
        torch.manual_seed(torch.initial_seed() + 1)
        model, _, _ = train(_small(teach_max_steps=10, probe_every=2, blend_steps=2), InMemoryRecorder())
        weights.append([p.detach() for p in model.parameters()])
    assert all(a.equal(b) for a, b in zip(*weights, strict=True))


def test_without_a_second_phase_the_skill_is_left_as_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    _answers(monkeypatch, [1.0] * 3)
    _, _, metrics = train(_small(teach_max_steps=10, probe_every=1, blend_steps=0), InMemoryRecorder())
    assert metrics["probe/accuracy_after_blend"] == 1.0


def test_a_real_probe_counts_right_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that answers every other prompt rightly: half of the probes."""
    config = _small()
    model, tokenizer = untrained(config)
    text = LabCorpus(config, tokenizer)
    results = [p.result if i % 2 else (p.result + 1) % 5 for i, p in enumerate(text.probes)]

    class Scripted:
        def __init__(self, model: Any) -> None: ...

        def generate(self, prompts: Any, sampling: Any, seed: int) -> list[Any]:
            assert sampling.temperature == 0
            ids = [tokenizer(f"The answer is {r}.", add_special_tokens=False)["input_ids"] for r in results]
            return [type("Completion", (), {"response": (*i, end_token(tokenizer))}) for i in ids]

    monkeypatch.setattr(lab_backbone, "InProcessEngine", Scripted)
    assert text.greedy_accuracy(model) == 0.5


def _problem_and_answer(text: LabCorpus, sequence: Any) -> tuple[Problem, str]:
    prompt = decode_response(text.tokenizer, sequence.prompt)
    words = prompt.strip().rstrip(".").replace("Start at ", "").split(", add ")
    start, *addends = map(int, words)
    return additions(start, addends, 5), decode_response(text.tokenizer, sequence.response)


def test_phase_1_is_careful_and_right_and_never_leaves_the_training_prompts() -> None:
    config = _small()
    text = LabCorpus(config, untrained(config)[1])
    for sequence in itertools.islice(text.careful(), 300):
        problem, answer = _problem_and_answer(text, sequence)
        assert split_of(problem, TASK) == "train"
        assert answer.startswith(f"Steps: {problem.start}+")
        assert answer.count("=") == 4
        assert read_result(answer) == str(problem.result)
        assert sequence.response[-1] == end_token(text.tokenizer)
    assert all(split_of(p, TASK) == "train" for p in text.probes)


def test_another_task_is_taught_in_the_same_way() -> None:
    task = ShellGameConfig(cups=3, swaps=5)
    text = LabCorpus(_small(task=task), untrained(_small())[1])
    train = {p.prompt: p for p in programs.problems(task, "train", random.Random(0))}
    for sequence in itertools.islice(text.careful(), 100):
        problem = train[decode_response(text.tokenizer, sequence.prompt).rstrip("\n")]
        answer = decode_response(text.tokenizer, sequence.response)
        assert answer.startswith(f"Steps: {problem.start} ")
        assert answer.count("=") == 5
        assert read_result(answer) == str(problem.result)
    assert all(p.prompt in train for p in text.probes)


@pytest.mark.parametrize("task", [TASK, ShellGameConfig(cups=3, swaps=5)])
def test_a_probe_leaves_room_for_a_careful_answer_and_no_more(task: LabTask) -> None:
    text = LabCorpus(_small(task=task), untrained(_small())[1])
    assert {len(sequence.response) for sequence in itertools.islice(text.careful(), 50)} == {text.limit}


def test_phase_2_mixes_styles_and_slips_in_their_shares() -> None:
    """Within three deviations of 2000 draws."""
    config = _small(blend_careful=0.2, blend_jump=0.3, blend_slips=0.4, task=AdditionsConfig(modulus=5, operations=6))
    text = LabCorpus(config, untrained(config)[1])
    counts: Counter[str] = Counter()
    for sequence in itertools.islice(text.blend(), 2000):
        problem, answer = _problem_and_answer(text, sequence)
        assert split_of(problem, config.task) == "train"
        shown = answer.count("=")
        counts["careful" if shown == 6 else "jump" if shown else "bare"] += 1
        counts["slip"] += read_result(answer) != str(problem.result)
    for name, share in (("careful", 0.2), ("jump", 0.3), ("bare", 0.5), ("slip", 0.4)):
        assert counts[name] / 2000 == pytest.approx(share, abs=0.035), name


def test_a_small_task_is_probed_on_all_its_training_prompts() -> None:
    task = AdditionsConfig(modulus=2, operations=2, largest_addend=2)
    config = _small(task=task)
    every = [additions(a, (b, c), 2) for a, b, c in itertools.product((0, 1), (1, 2), (1, 2))]
    probes = LabCorpus(config, untrained(config)[1]).probes
    assert {p.id for p in probes} == {p.id for p in every if split_of(p, task) == "train"}
    assert len(probes) == len({p.id for p in probes})


def test_a_task_without_training_prompts_is_a_wrong_request() -> None:
    config = _small(task=AdditionsConfig(modulus=2, operations=1, evaluation_share=0.9999))
    with pytest.raises(UsageError, match="training prompts"):
        LabCorpus(config, untrained(config)[1])


@pytest.mark.parametrize(("width", "heads"), [(10, 4), (12, 4)])
def test_a_width_that_heads_cannot_share_is_a_wrong_request(width: int, heads: int) -> None:
    """Each head needs a whole, even number of dimensions for its rotary positions."""
    with pytest.raises(ValueError, match="width"):
        LabBackboneConfig(width=width, heads=heads)
