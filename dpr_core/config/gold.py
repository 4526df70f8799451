"""Settings of the gold measures: benchmarks whose answers a program can check, and held-out likelihood."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Line
from dpr_core.config.data import ColumnsConfig
from dpr_core.config.official import HostedFileConfig


class GoldColumnsConfig(ColumnsConfig):
    """Which column of a row holds what. `prompt` and `reference` will do for `question` and `answer`, too."""

    answer: str = "answer"
    """Column of the result that a right answer states."""

    references: str = "references"
    """Column of a list of texts that would all do, for measures that compare texts."""

    messages: None = None
    """A question has a prompt, and no conversation."""


class GoldBenchmarkConfig(HostedFileConfig):
    """Rows of JSONL, JSON, Parquet or CSV, from a local file or from the hub."""

    columns: GoldColumnsConfig = GoldColumnsConfig()
    """Which column holds what."""

    prompts: int | None = Field(None, ge=1, le=1_000_000)
    """How many to ask, those with the smallest hashes of their ids; none asks all."""

    skip: int = Field(0, ge=0, le=1_000_000)
    """Leave out so many of them first, on which something else was tuned."""

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.path is None and (self.repository is None or self.file is None):
            raise ValueError("give the `path` of a local file, or `repository` and `file` of the hub")
        return self


class WordProblemsConfig(GoldBenchmarkConfig):
    """Word problems with a number as result, such as MAWPS, ASDiv and SVAMP."""

    type: Literal["word_problems"] = "word_problems"
    """Which kind of benchmark this is."""


class GSM8KConfig(GoldBenchmarkConfig):
    """GSM8K's 1,319 test problems, or other rows in its format."""

    type: Literal["gsm8k"] = "gsm8k"
    """Which kind of benchmark this is."""

    repository: Line = Field("openai/gsm8k", min_length=1)
    """The dataset of the Hugging Face hub that holds them."""

    file: Line = Field("main/test-00000-of-00001.parquet", min_length=1)
    """The file of that dataset."""


class E2EConfig(GoldBenchmarkConfig):
    """The E2E challenge: slots such as `name[The Eagle], area[riverside]` become a sentence.

    Rows of the same prompt are one question with several references.
    """

    type: Literal["e2e"] = "e2e"
    """Which kind of benchmark this is."""


class LikelihoodConfig(GoldBenchmarkConfig):
    """Demonstrated responses that the policy scores in place of answering; nothing is drawn and nobody judges."""

    type: Literal["likelihood"] = "likelihood"
    """Which kind of benchmark this is."""


GoldBenchmark = WordProblemsConfig | GSM8KConfig | E2EConfig | LikelihoodConfig
