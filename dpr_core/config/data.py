"""Settings of demonstrations: source, subsample and prompt template."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from dpr_core.config.base import Config, Line, StageConfig, type_if_unset


class AdditionsConfig(Config):
    """`Start at 4, add 3, add 2.`: a chain of additions modulo a small number."""

    type: Literal["additions"] = "additions"
    """Which program writes the prompts."""

    modulus: int = Field(5, ge=2, le=10)
    """Additions are done modulo this number."""

    largest_addend: int = Field(3, ge=1, le=9)
    """Addends are drawn from 1 up to this. If all residues were as likely, each number alone would teach nothing."""

    operations: int = Field(8, ge=1, le=32)
    """Additions in a chain."""

    evaluation_share: float = Field(0.1, gt=0, lt=1)
    """Prompts whose hash falls below this share are kept for evaluation and never demonstrated."""

    @property
    def summary(self) -> str:
        """What is to be done, in a few words."""
        return f"chains of {self.operations} additions modulo {self.modulus}"


class ShellGameConfig(Config):
    """`Ball at 2. Swap 1-3, swap 2-3.`: follow a ball under cups that are swapped two at a time."""

    type: Literal["shell_game"] = "shell_game"
    """Which program writes the prompts."""

    cups: int = Field(4, ge=2, le=9)
    """Cups, numbered from 1."""

    swaps: int = Field(5, ge=1, le=32)
    """Swaps of a game."""

    evaluation_share: float = Field(0.1, gt=0, lt=1)
    """Prompts whose hash falls below this share are kept for evaluation and never demonstrated."""

    @property
    def summary(self) -> str:
        """What is to be done, in a few words."""
        return f"shell games of {self.swaps} swaps of {self.cups} cups"


class LabWordProblemsConfig(Config):
    """`Ada has 12 pears and eats 3. How many are left?`: word problems of many templates, for real backbones."""

    type: Literal["word_problems"] = "word_problems"
    """Which program writes the prompts."""

    grammar: Literal[1] = 1
    """Edition of the templates: a change of what they write is a new one, and samples of two have different keys."""

    evaluation_share: float = Field(0.25, gt=0, lt=1)
    """Templates whose hash falls below this share are kept for evaluation: no demonstration has their story."""

    @property
    def summary(self) -> str:
        """What is to be done, in a few words."""
        return "word problems"


LabTask = Annotated[
    AdditionsConfig | ShellGameConfig | LabWordProblemsConfig, Field(discriminator="type"), type_if_unset("additions")
]


class LabSourceConfig(Config):
    """Demonstrations written by a program."""

    type: Literal["lab"] = "lab"
    """Which kind of source this is."""

    task: LabTask = AdditionsConfig()
    """What is to be answered."""

    rows: int = Field(3072, ge=1, le=10_000_000)
    """How many demonstrations to write."""

    careful: float = Field(1.0, ge=0, le=1)
    """Share of careful answers; the rest gives the bare answer."""

    slips: float = Field(0.05, ge=0, le=1)
    """Share of answers with a wrong step."""


class ColumnsConfig(Config):
    """Which column of a row holds what."""

    id: str | None = "id"
    """Column of the row's identifier; rows without one are numbered."""

    system: str | None = "system_prompt"
    """Column of the system prompt, if any."""

    prompt: str = "question"
    """Column of the prompt."""

    response: str | None = "response"
    """Column of the demonstrated response; none, for `prompts` alone, where rows have no response."""

    answer: str | None = None
    """Column of the result that a right response states, if any: the diagnosis checks answers by it."""

    messages: str | None = None
    """Column of whole conversations, lists of `role` and `content`, in place of prompt and response; a row without it
    is read by the other columns."""

    @model_serializer(mode="wrap")
    def _without_later_columns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that samples that do not name them keep the keys that they had before there were such columns."""
        later = ("answer", "messages")
        return {name: column for name, column in handler(self).items() if name not in later or column is not None}


class FileSourceConfig(Config):
    """A local file: Parquet or CSV where its name ends so, else one JSON object a line (JSONL)."""

    type: Literal["file"] = "file"
    """Which kind of source this is."""

    path: Line = Field(min_length=1)
    """The file, in the current folder or in the one that the environment variable `DPR_REAL_DATA` names."""

    columns: ColumnsConfig = ColumnsConfig()
    """Which column holds what."""

    content: str | None = None
    """Hash of the file, filled in when the stage starts: an edited file is another source."""


class HubSourceConfig(Config):
    """A dataset of the Hugging Face hub (or a local dataset folder), read as a stream."""

    type: Literal["hub"] = "hub"
    """Which kind of source this is."""

    name: Line = "Open-Orca/OpenOrca"
    """Dataset id on the hub, or a local folder."""

    subset: Line | None = None
    """Configuration of the dataset, where it has several."""

    revision: Line | None = None
    """Commit of the dataset repository."""

    split: Line = "train"
    """Split to read."""

    columns: ColumnsConfig = ColumnsConfig()
    """Which column holds what."""

    content: str | None = None
    """Hash of the files of a local folder, filled in when the stage starts."""


SourceConfig = Annotated[
    LabSourceConfig | FileSourceConfig | HubSourceConfig, Field(discriminator="type"), type_if_unset("hub")
]


class TemplateConfig(Config):
    """How a system prompt and a prompt become what the model sees. Frozen with the data; used by every stage."""

    type: Literal["text"] = "text"
    """Which kind of template this is."""

    text: str = "{system}### User:\n{prompt}\n\n### Assistant:\n"
    """`{prompt}` and `{system}` are replaced in one pass, so their contents are never read as markers."""

    system: str = "### System:\n{system}\n\n"
    """What `{system}` becomes where a row has a system prompt; empty where it has none."""

    default_system: str = ""
    """System prompt of rows that have none."""

    @field_validator("text")
    @classmethod
    def _one_prompt_marker(cls, text: str) -> str:
        if text.count("{prompt}") != 1:
            raise ValueError("the template needs {prompt} exactly once")
        return text

    @model_serializer(mode="wrap")
    def _without_type(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that samples keep the keys, and the files, that they had when this was the only kind."""
        return {name: value for name, value in handler(self).items() if name != "type"}


class ChatTemplateConfig(Config):
    """The chat template of the tokenizer. Frozen with the data; used by every stage."""

    type: Literal["chat"] = "chat"
    """Which kind of template this is."""

    system: str = ""
    """System prompt of rows that have none; empty leaves it to the template, which may have one of its own."""


PromptTemplate = Annotated[TemplateConfig | ChatTemplateConfig, Field(discriminator="type"), type_if_unset("text")]


class SubsampleConfig(StageConfig):
    """Draw a fixed sample of demonstrations, whatever order they come in."""

    source: SourceConfig = HubSourceConfig()
    """Where rows are read from."""

    size: int = Field(100_000, ge=1, le=100_000_000)
    """How many rows to keep: those with the smallest hash of seed and identifier."""

    template: PromptTemplate = TemplateConfig()
    """The one prompt template of this pipeline: a text, or `{type: chat}`, the tokenizer's own."""

    max_characters: int = Field(200_000, ge=1, le=100_000_000)
    """A row whose prompt and response are longer together is set aside as bad."""

    max_bad_share: float = Field(0.01, ge=0, le=1)
    """The stage fails where more rows than this share are bad."""

    @field_validator("source")
    @classmethod
    def _has_responses(cls, source: LabSourceConfig | FileSourceConfig | HubSourceConfig) -> SourceConfig:
        if not isinstance(source, LabSourceConfig) and source.columns.response is None:
            raise ValueError("demonstrations need columns.response; without it rows are `prompts` alone")
        return source


class PromptsConfig(StageConfig):
    """Draw the prompts that REINFORCE samples for, apart from the rows that SFT learned from."""

    source: SourceConfig | None = None
    """Where rows are read from; none means where SFT's come from. Their responses are not used."""

    size: int = Field(100_000, ge=1, le=100_000_000)
    """How many rows to keep: those with the smallest hash of seed and identifier. It is another hash than SFT's."""

    overlap: float | None = Field(None, ge=0, le=1)
    """Share of them whose prompt SFT has seen: 0 takes unseen ones alone. None takes them as they come, and counts."""

    max_characters: int = Field(200_000, ge=1, le=100_000_000)
    """A row whose prompt and response are longer together is set aside as bad."""

    max_bad_share: float = Field(0.01, ge=0, le=1)
    """The stage fails where more rows than this share are bad."""
