"""Settings of the public benchmarks: AlpacaEval, Arena-Hard, LIMA and MT-Bench."""

from typing import Literal

from pydantic import Field

from dpr_core.config.base import Config, Line


class HostedFileConfig(Config):
    """Questions from a local file or from the hub."""

    path: Line | None = Field(None, min_length=1)
    """A local file of the questions, in the current folder or in `DPR_REAL_DATA`; none takes them from the hub."""

    repository: Line | None = Field(None, min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line | None = Field(None, min_length=1)
    """The file of that dataset."""

    revision: Line | None = None
    """Commit of the dataset; none takes what is there now."""

    content: str | None = None
    """Hash of the questions, filled in when the stage starts: an edited file is another benchmark."""


class OfficialBenchmarkConfig(HostedFileConfig):
    """Questions in the layout of a public benchmark."""

    path: Line | None = Field(None, min_length=1)
    """A local file of the questions in their official layout; none takes them from the hub."""

    repository: Line = Field(min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line = Field(min_length=1)
    """The file of that dataset."""


class AlpacaEvalConfig(OfficialBenchmarkConfig):
    """AlpacaEval's 805 instructions."""

    type: Literal["alpaca_eval"] = "alpaca_eval"
    """Which kind of benchmark this is."""

    repository: Line = Field("tatsu-lab/alpaca_eval", min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line = Field("alpaca_eval.json", min_length=1)
    """The file of that dataset."""

    revision: Line | None = "57530fed23a308e771c06bba55cb49b7e7625711"
    """Commit of the dataset; none takes what is there now."""


class ArenaHardConfig(OfficialBenchmarkConfig):
    """Arena-Hard's 500 prompts: version 0.1, or 2.0 by another `file`."""

    type: Literal["arena_hard"] = "arena_hard"
    """Which kind of benchmark this is."""

    repository: Line = Field("lmarena-ai/arena-hard-auto", min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line = Field("data/arena-hard-v0.1/question.jsonl", min_length=1)
    """The file of that dataset."""

    revision: Line | None = "15f3746e21432264ce9b453999bde4f3c946d2e6"
    """Commit of the dataset; none takes what is there now."""

    temperatures: Literal["paper", "own"] = "paper"
    """The answer stage's temperature, as in the paper, or the benchmark's own, which is 0."""


class LimaConfig(OfficialBenchmarkConfig):
    """LIMA's 300 test prompts. The dataset is gated: log in with `hf auth login`, or give a `path`."""

    type: Literal["lima"] = "lima"
    """Which kind of benchmark this is."""

    repository: Line = Field("GAIR/lima", min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line = Field("test.jsonl", min_length=1)
    """The file of that dataset."""


class MTBenchConfig(OfficialBenchmarkConfig):
    """MT-Bench's 80 questions of two turns."""

    type: Literal["mt_bench"] = "mt_bench"
    """Which kind of benchmark this is."""

    repository: Line = Field("HuggingFaceH4/mt_bench_prompts", min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line = Field("raw/question.jsonl", min_length=1)
    """The file of that dataset."""

    revision: Line | None = "e3a795c5e9a82ee40611c416b8a7786c73198991"
    """Commit of the dataset; none takes what is there now."""

    temperatures: Literal["paper", "own"] = "paper"
    """The answer stage's temperature, as in the paper, or the benchmark's own for each category."""

    references: Line | None = Field(None, min_length=1)
    """A local file of reference answers in FastChat's layout, which the judge is shown."""

    references_content: str | None = None
    """Hash of that file, filled in when the stage starts."""


Official = AlpacaEvalConfig | ArenaHardConfig | LimaConfig | MTBenchConfig
