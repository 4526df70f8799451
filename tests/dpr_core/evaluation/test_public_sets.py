"""The public benchmarks: small files of their layouts, and the real ones where they stand beside the repository."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from dpr_core.config.gold import GSM8KConfig
from dpr_core.config.official import AlpacaEvalConfig, ArenaHardConfig, LimaConfig, MTBenchConfig, Official
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.official.layouts import LAYOUTS
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import read_rows

MT = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
    {"question_id": 111, "category": "math", "turns": ["1+1?", "And 2+2?"], "reference": ["2", "4"]},
]
REFERENCES = [{"question_id": 111, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["Two.", "Four."]}]}]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def mt_bench(tmp_path: Path) -> str:
    return written(tmp_path / "question.jsonl", MT)


def test_mt_bench_with_reference_answers(tmp_path: Path, mt_bench: str) -> None:
    config = MTBenchConfig(path=mt_bench, references=written(tmp_path / "gpt-4.jsonl", REFERENCES))
    assert benchmarks.load(config) == [
        Question("81", ("Write.", "Rewrite."), category="writing"),
        Question("111", ("1+1?", "And 2+2?"), category="math", references=("Two.", "Four.")),
    ]


@pytest.mark.parametrize(
    ("config", "row", "question"),
    [
        (AlpacaEvalConfig, {"instruction": "Why?", "dataset": "koala"}, Question("", ("Why?",), category="koala")),
        (ArenaHardConfig, {"uid": "a", "prompt": "Why?", "cluster": "c"}, Question("a", ("Why?",))),
        (ArenaHardConfig, {"question_id": "a", "turns": [{"content": "Why?"}]}, Question("a", ("Why?",))),
        (LimaConfig, {"conversations": ["Why?"], "source": "s"}, Question("", ("Why?",))),
        (
            MTBenchConfig,
            {"question_id": 1, "prompt": ["One?", "Two?"], "category": "stem"},
            Question("1", ("One?", "Two?"), category="stem"),
        ),
    ],
)
def test_the_layouts_of_all_four(
    tmp_path: Path, config: type[Official], row: dict[str, Any], question: Question
) -> None:
    (found,) = benchmarks.load(config(path=written(tmp_path / "q.jsonl", [row])))
    assert (found.turns, found.category, found.system, found.reference) == (
        question.turns, question.category, "", None
    )  # fmt: skip
    assert found.id == (question.id or hashlib.sha256(b"Why?").hexdigest()[:22])


def test_an_edited_file_is_another_benchmark(tmp_path: Path, mt_bench: str) -> None:
    references = written(tmp_path / "gpt-4.jsonl", REFERENCES)
    config = MTBenchConfig(path=mt_bench, references=references)
    found = benchmarks.with_content_hash(config)
    assert isinstance(found, MTBenchConfig)
    assert found.content == hashlib.sha256(Path(mt_bench).read_bytes()).hexdigest()
    assert found.references_content == hashlib.sha256(Path(references).read_bytes()).hexdigest()
    written(Path(mt_bench), MT[:1])
    assert benchmarks.with_content_hash(config) != found


@pytest.mark.parametrize("edited", ["questions", "references"])
def test_a_file_that_changed_after_its_hash_was_noted_is_refused(tmp_path: Path, mt_bench: str, edited: str) -> None:
    references = written(tmp_path / "gpt-4.jsonl", REFERENCES)
    pinned = benchmarks.with_content_hash(MTBenchConfig(path=mt_bench, references=references))
    assert len(benchmarks.load(pinned)) == len(MT)
    file = Path(mt_bench if edited == "questions" else references)
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DensePathError, match=f"{file} changed after its hash was noted"):
        benchmarks.load(pinned)


def test_temperatures_are_the_papers_or_the_benchmarks_own(mt_bench: str) -> None:
    paper, own = MTBenchConfig(path=mt_bench), MTBenchConfig(path=mt_bench, temperatures="own")
    assert [benchmarks.temperature(paper, question) for question in benchmarks.load(paper)] == [None, None]
    assert [benchmarks.temperature(own, question) for question in benchmarks.load(own)] == [0.7, 0.0]
    stem = Question("1", ("a", "b"), category="stem")
    assert benchmarks.temperature(own, stem) == 0.1
    assert benchmarks.temperature(ArenaHardConfig(temperatures="own"), stem) == 0.0
    assert benchmarks.temperature(ArenaHardConfig(), stem) is None
    assert benchmarks.temperature(LimaConfig(), stem) is None


def test_nothing_is_right_or_wrong_without_a_judge() -> None:
    assert benchmarks.checker(AlpacaEvalConfig())(Question("q", ("2+2?",), reference="4"), "The answer is 4.") is None


@pytest.mark.parametrize("config", [AlpacaEvalConfig(), ArenaHardConfig(), LimaConfig(), MTBenchConfig()])
def test_the_official_file_is_read_back_by_its_own_reader(config: Official, tmp_path: Path) -> None:
    turns = ("One?", "Two?") if isinstance(config, MTBenchConfig) else ("One?",)
    answers = ("First.", "") if isinstance(config, MTBenchConfig) else ("First.",)
    found = benchmarks.official_file(config, "mine", [(Question("7", turns), answers)])
    assert found is not None
    (tmp_path / found[0]).write_text(found[1], encoding="utf-8")
    read = LAYOUTS[config.type.replace("_", "-")].answers(read_rows(tmp_path / found[0]))
    assert [list(by_id.values()) for by_id in read.values()] == [[answers]]
    assert list(read) == ["mine"]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"prompt": "Why?"}], "not MT-Bench questions"),
        ([{"question_id": 1, "turns": ["One?"]}], "question 1 has 1 of the 2 turns"),
        ([{"question_id": 1, "turns": ["One?", ""]}], "question 1: `turns` must be"),
        ([{"question_id": 1, "turns": ["One?", "\ud800"]}], "half of a surrogate pair"),
        ([MT[0], MT[0]], "MT-Bench question 81 stands twice"),
        ([{"question_id": 1, "turns": ["One?", "Two?"], "category": "cooking"}], "category 'cooking'"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong_in_it(
    tmp_path: Path, rows: list[dict[str, Any]], complaint: str
) -> None:
    path = written(tmp_path / "q.jsonl", rows)
    with pytest.raises(UsageError) as caught:
        benchmarks.load(MTBenchConfig(path=path, temperatures="own"))
    assert complaint in str(caught.value)
    if "cooking" not in complaint:
        assert path in str(caught.value)


@pytest.mark.parametrize(
    ("references", "complaint"),
    [
        ([{**REFERENCES[0], "question_id": 5}], "questions that are not asked, such as 5"),
        ([{**REFERENCES[0], "choices": [{"turns": ["Two."]}]}], "reference answer to question 111 has 1 turns"),
        ([REFERENCES[0], {**REFERENCES[0], "model_id": "other"}], "reference answers of 2 models"),
        ([{**REFERENCES[0], "choices": []}], "has no choices[0].turns"),
        (MT, "not MT-Bench answers"),
    ],
)
def test_reference_answers_that_do_not_fit(
    tmp_path: Path, mt_bench: str, references: list[dict[str, Any]], complaint: str
) -> None:
    path = written(tmp_path / "references.jsonl", references)
    with pytest.raises(UsageError) as caught:
        benchmarks.load(MTBenchConfig(path=mt_bench, references=path))
    assert complaint in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("use", [benchmarks.load, benchmarks.with_content_hash])
def test_a_file_that_is_not_there(tmp_path: Path, use: Callable[[Official], object]) -> None:
    with pytest.raises(UsageError, match=r"absent\.jsonl"):
        use(LimaConfig(path=str(tmp_path / "absent.jsonl")))


def test_the_hub_is_asked_for_one_file_at_one_revision(monkeypatch: pytest.MonkeyPatch, mt_bench: str) -> None:
    asked = []

    def download(*arguments: str, **named: str) -> str:
        asked.append((arguments, named))
        return mt_bench

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(benchmarks.load(MTBenchConfig(repository="some/where", file="q.jsonl", revision="abc"))) == 2
    assert asked == [(("some/where", "q.jsonl"), {"repo_type": "dataset", "revision": "abc"})]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (errors.LocalEntryNotFoundError("no connection"), DensePathError, "the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), DensePathError, "HF_HUB_OFFLINE"),
        (errors.EntryNotFoundError("404"), UsageError, "of the hub has no .*check its name and revision"),
        (errors.HFValidationError("bad name"), UsageError, "check its name and revision"),
        (OSError("disk"), DensePathError, "cannot be read: OSError: disk"),
    ],
)
def test_what_the_hub_may_say(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[DensePathError], words: str
) -> None:
    def download(*_: str, **__: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(kind, match=words) as caught:
        benchmarks.with_content_hash(AlpacaEvalConfig())
    assert type(caught.value) is kind
    assert "--set evaluation.benchmarks.alpaca_eval.path=FILE" in str(caught.value)
    with pytest.raises(kind) as caught:
        benchmarks.load(GSM8KConfig())
    assert "--set evaluation.capabilities.gsm8k.path=FILE" in str(caught.value)


FILES = Path(__file__).parents[4] / "shared" / "bench"


@pytest.mark.skipif(not FILES.is_dir(), reason="the official files are not beside the repository")
@pytest.mark.parametrize(
    ("config", "count", "turns"),
    [
        (
            MTBenchConfig(
                path=str(FILES / "mt_bench/question.jsonl"),
                references=str(FILES / "mt_bench/reference_answer/gpt-4.jsonl"),
                temperatures="own",
            ),
            80,
            2,
        ),
        (ArenaHardConfig(path=str(FILES / "arena_hard/v0.1/question.jsonl")), 500, 1),
        (ArenaHardConfig(path=str(FILES / "arena_hard/v0.1/question_schema1.jsonl")), 500, 1),
        (AlpacaEvalConfig(path=str(FILES / "alpaca_eval/results/alpaca-7b/model_outputs.json")), 805, 1),
    ],
)
def test_the_real_files(config: Official, count: int, turns: int) -> None:
    questions = benchmarks.load(config)
    assert len(questions) == count
    assert {len(question.turns) for question in questions} == {turns}
    referenced = {question.category for question in questions if question.references}
    assert referenced == ({"math", "reasoning", "coding"} if isinstance(config, MTBenchConfig) else set())
