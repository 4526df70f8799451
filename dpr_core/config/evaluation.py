"""Settings of evaluation: benchmarks, policies without training, judges, raters and the report."""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dpr_core.config.base import Address, Config, Line, Name, StageConfig, Temperature, Variable, type_if_unset
from dpr_core.config.data import AdditionsConfig, LabTask
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.gold import E2EConfig, GSM8KConfig, LikelihoodConfig, WordProblemsConfig
from dpr_core.config.official import (
    AlpacaEvalConfig,
    ArenaHardConfig,
    LimaConfig,
    MTBenchConfig,
    OfficialBenchmarkConfig,
)


class LabBenchmarkConfig(Config):
    """Prompts of the lab's task, with verifiable results."""

    type: Literal["lab"] = "lab"
    """Which kind of benchmark this is."""

    task: LabTask = AdditionsConfig()
    """What is asked."""

    split: Literal["evaluation", "train"] = "evaluation"
    """Held-out prompts, or training prompts: what is tuned is tuned on these."""

    prompts: int = Field(600, ge=1, le=1_000_000)
    """How many prompts to ask."""

    prompt_seed: int = Field(0, ge=-(2**63), lt=2**63)
    """Seed of the draw of prompts: the same for every policy, so that answers can be paired."""


class FileBenchmarkConfig(Config):
    """A local JSONL file of single-turn prompts."""

    type: Literal["file"] = "file"
    """Which kind of benchmark this is."""

    path: Line = Field(min_length=1)
    """One JSON object a line, with `prompt` and, if there is one, `id` and a verifiable `reference`; looked for in the
    current folder, then in `DPR_REAL_DATA`."""

    content: str | None = None
    """Hash of the file, filled in when the stage starts: an edited file is another benchmark."""


Benchmark = Annotated[
    LabBenchmarkConfig
    | FileBenchmarkConfig
    | AlpacaEvalConfig
    | ArenaHardConfig
    | LimaConfig
    | MTBenchConfig
    | WordProblemsConfig
    | GSM8KConfig
    | E2EConfig
    | LikelihoodConfig,
    Field(discriminator="type"),
]

NAMED_BY_TYPE = frozenset(
    {"alpaca_eval", "arena_hard", "lima", "mt_bench", "word_problems", "gsm8k", "e2e", "likelihood"}
)
"""A benchmark that is called by one of these names, and says no `type`, is of that type."""


class AsTrainedConfig(Config):
    """The policy as its stage left it."""

    type: Literal["as_trained"] = "as_trained"
    """Which kind of policy this is."""


class KeptConfig(Config):
    """The policy that a REINFORCE run kept when its KL to SFT first reached a value; the one that it ended with where
    it never did."""

    type: Literal["kept"] = "kept"
    """Which kind of policy this is."""

    of: Name = "DPR"
    """The policy of the pipeline whose run this is."""

    kl: float = Field(gt=0, le=1000)
    """One of that run's `keep_at_kl`."""


class MatchedConfig(Config):
    """A policy whose strength may be found by trial: answers are drawn and measured until they are like others."""

    match: Name | None = None
    """The policy of the pipeline whose answers to the same benchmark these are to be like; none leaves the strength as
    it is set."""

    match_prompts: int = Field(64, ge=1, le=100_000)
    """Prompts of the benchmark on which it is tried, each time with the same random numbers."""

    match_trials: int = Field(8, ge=1, le=64)
    """Most trials."""

    @model_serializer(mode="wrap")
    def _as_before_there_was_a_match(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if self.match or not name.startswith("match")}


class SFTPolicyConfig(MatchedConfig):
    """SFT drawn at a temperature of its own: one that is set, or the one at which its answers have the entropy of
    another policy's."""

    type: Literal["sft"] = "sft"
    """Which kind of policy this is."""

    temperature: Temperature | None = None
    """Sampling temperature; 0 is greedy."""

    match_tolerance: float = Field(0.02, gt=0, lt=1)
    """How near the entropy has to come, as a share of the other."""

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        if (self.temperature is None) == (self.match is None):
            raise ValueError("SFT needs a temperature, or the name of a policy to match: one of them")
        return self


class ExtrapolatedConfig(MatchedConfig):
    """No training: theta_SFT + k (theta_SFT - theta_ref), from the reward's own two models; k is set, or the one at
    which the KL to SFT is that of another policy."""

    type: Literal["extrapolated"] = "extrapolated"
    """Which kind of policy this is."""

    k: float | None = Field(None, gt=0, le=1000)
    """How far to go beyond SFT. Tuned on seeds and prompts of its own."""

    match_tolerance: float = Field(0.05, gt=0, lt=1)
    """How near the KL has to come, as a share of the other."""

    @model_validator(mode="after")
    def _one_strength(self) -> Self:
        if (self.k is None) == (self.match is None):
            raise ValueError("extrapolation needs a k, or the name of a policy to match: one of them")
        return self


class ContrastiveConfig(Config):
    """No training: logits log pi_SFT + k (log pi_SFT - log pi_ref), token by token."""

    type: Literal["contrastive"] = "contrastive"
    """Which kind of policy this is."""

    k: float = Field(gt=0, le=1000)
    """How far to go beyond SFT. Tuned on seeds and prompts of its own."""


class BestOfNConfig(Config):
    """No training: of n responses of SFT, the one that scores best."""

    type: Literal["best_of_n"] = "best_of_n"
    """Which kind of policy this is."""

    n: int = Field(8, ge=2, le=10_000)
    """Responses drawn for each prompt."""

    by: Literal["reward", "log_sft"] = "reward"
    """The recovered return, or the mean of log pi_SFT over the response's tokens."""


Control = Annotated[
    SFTPolicyConfig | KeptConfig | ExtrapolatedConfig | ContrastiveConfig | BestOfNConfig,
    Field(discriminator="type"),
    type_if_unset("extrapolated"),
]
"""Policies that take no training beyond what is trained anyway."""

PolicyConfig = Annotated[
    AsTrainedConfig | SFTPolicyConfig | KeptConfig | ExtrapolatedConfig | ContrastiveConfig | BestOfNConfig,
    Field(discriminator="type"),
    type_if_unset("as_trained"),
]


class AnsweringConfig(StageConfig):
    """How answers are drawn; the same for every policy and benchmark."""

    temperature: Temperature = 0.7
    """Sampling temperature; 0 is greedy. The paper decodes everything at 0.7. Benchmarks may set their own."""

    max_prompt_tokens: int = Field(1024, ge=1, le=2**20)
    """A longer question, all its turns together, is refused; a policy's own earlier answers do not count."""

    max_response_tokens: int = Field(1024, ge=1, le=2**20)
    """Longer answers are cut, and counted; of several turns, each."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""


class AnswerConfig(AnsweringConfig):
    """One policy answers one benchmark."""

    benchmark: Benchmark
    """Filled in from the pipeline's `evaluation` section."""

    policy: PolicyConfig = AsTrainedConfig()
    """Filled in from the pipeline's `evaluation` section."""

    @property
    def matched(self) -> bool:
        """Whether the strength of the policy is yet to be found."""
        return isinstance(self.policy, MatchedConfig) and self.policy.match is not None

    @property
    def drawn_at(self) -> float:
        """The temperature of what draws, where the benchmark has none of its own."""
        own = self.policy.temperature if isinstance(self.policy, SFTPolicyConfig) else None
        return self.temperature if own is None else own


class VerifiableJudgeConfig(Config):
    """The answer whose result is right wins; a tie otherwise. Needs a benchmark with references."""

    type: Literal["verifiable"] = "verifiable"
    """Which kind of judge this is."""


class ScriptedJudgeConfig(Config):
    """A judge that follows a rule, for tests and dry runs of a pipeline."""

    type: Literal["scripted"] = "scripted"
    """Which kind of judge this is."""

    rule: Literal["longer", "shorter", "first", "tie", "unreadable"] = "longer"
    """Which answer it prefers."""


class ChatCompletionsConfig(Config):
    """A language model behind any endpoint that speaks OpenAI's chat completions."""

    model: Line = "gpt-4o-2024-08-06"
    """The judging model: a dated snapshot, since what a name without a date stands for changes."""

    base_url: Address | None = None
    """Another endpoint than OpenAI's own."""

    temperature: float | None = Field(0.0, ge=0, le=100)
    """Sampling temperature of the verdicts; 0 as in the paper, none where the model takes no choice."""

    max_tokens: int = Field(512, ge=16, le=2**20)
    """Length limit of a verdict, together with what a reasoning model thinks before it."""

    reasoning_effort: Line | None = Field(None, min_length=1)
    """How much a reasoning model is to think, such as low, in its vendor's words; none leaves it to the model."""

    extra_body: dict[str, Any] | None = None
    """More fields of each request, as the endpoint documents them."""

    max_answer_characters: int = Field(100_000, ge=100, le=100_000_000)
    """Longer answers are cut before they are judged, and counted."""

    api_version: Line | None = None
    """Set for Azure: the version of its interface, such as 2024-10-21. `base_url` is then the resource's address."""

    system_fingerprint: Line | None = Field(None, min_length=1)
    """The one version of the model that may judge, as its replies name it; none takes any, and writes down which."""

    top_logprobs: int | None = Field(None, ge=1, le=20)
    """In place of a text, the log-probabilities of so many first tokens; filled in where judge prompts want them."""

    template: str | None = None
    """Hash of the judge's instructions, filled in when the stage starts."""

    @field_validator("extra_body")
    @classmethod
    def _nothing_that_has_a_setting(cls, extra: dict[str, Any] | None) -> dict[str, Any] | None:
        if taken := sorted(OUR_FIELDS & (extra or {}).keys()):
            raise ValueError(f"{', '.join(taken)} is set by the judge itself; see the other fields of `by`")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("only what JSON can hold may be sent: texts, numbers, lists and sections") from None
        return extra

    def __hash__(self) -> int:
        """Of what `extra_body` says too, which has no hash of its own."""
        return hash(self.model_dump_json())

    @model_serializer(mode="wrap")
    def _as_before_there_was_a_choice(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name not in SENT_IF_SET or value is not None}


OUR_FIELDS = frozenset(
    {
        "model", "messages", "temperature", "max_tokens", "max_completion_tokens", "reasoning_effort",
        "response_format", "stream", "n", "tools",
    }
)  # fmt: skip
"""Of a request, what the judge's own settings say, and what would bring another kind of reply."""

SENT_IF_SET = ("reasoning_effort", "extra_body", "top_logprobs")


class ChatJudgeConfig(ChatCompletionsConfig):
    """How such a model gives its verdict."""

    verdicts: Literal["auto", "schema", "text"] = "auto"
    """A verdict as JSON of a fixed schema, or as the last line of a text; auto: as JSON where the endpoint takes it."""


class OpenAIJudgeConfig(ChatJudgeConfig):
    """A language model behind any endpoint that speaks OpenAI's chat completions."""

    type: Literal["openai"] = "openai"
    """Which kind of judge this is."""


class OpenAIBatchJudgeConfig(ChatJudgeConfig):
    """The same model through OpenAI's Batch API: half the price, and up to a day to wait.

    `verdicts: auto` asks for JSON: a batch cannot find out by trying.
    """

    type: Literal["openai-batch"] = "openai-batch"
    """Which kind of judge this is."""


JudgeByConfig = Annotated[
    VerifiableJudgeConfig | ScriptedJudgeConfig | OpenAIJudgeConfig | OpenAIBatchJudgeConfig,
    Field(discriminator="type"),
    type_if_unset("openai"),
]


class JudgeExecutionConfig(Config):
    """How judging is done."""

    concurrency: int = Field(16, ge=1, le=1024)
    """Requests under way at once in one stage. Stages that are done at the same time have as many each."""

    retries: int = Field(5, ge=0, le=100)
    """Times a failed request is sent again at once, or when the endpoint says."""

    rounds: int = Field(3, ge=0, le=100)
    """Times a game whose retries all failed is put at the end of the queue, or what a batch left out is sent again."""

    unreadable_retries: int = Field(2, ge=0, le=100)
    """Times a reply that cannot be read is asked for again, and paid again, before it counts as unreadable."""

    check_endpoint: bool = True
    """Ask the endpoint for one short reply before any work. Without, verdicts that are all kept need no endpoint."""

    request_seconds: float = Field(120.0, gt=0, le=86_400)
    """A request that takes longer has failed."""

    requests_per_minute: float | None = Field(None, ge=0.01, le=10**9)
    """Rate limit; none sends as fast as `concurrency` allows."""

    tokens_per_minute: float | None = Field(None, ge=0.01, le=10**9)
    """Rate limit of tokens sent and at most received, by estimate."""

    batch_requests: int = Field(50_000, ge=1, le=50_000)
    """Most requests in one batch. Fewer are for accounts that may not have so many tokens waiting at once."""

    batch_poll_seconds: float = Field(30.0, gt=0, le=86_400)
    """How often a batch is looked at."""

    batch_wait_hours: float = Field(26.0, gt=0, le=8_760)
    """A batch that takes longer is left under way, and the judge gives up; the next run waits for the same batch."""

    budget_dollars: float | None = Field(None, gt=0)
    """Judging stops before all that `budget_account` ever spent would pass this. What was paid for is kept."""

    budget_account: Name = "judging"
    """Whose spending the budget is of: all judging under this name in this home, by any stage, run or process."""

    dollars_per_million_read: float | None = Field(None, ge=0, le=10**6)
    """Price of a million tokens read; none looks it up in a dated list."""

    dollars_per_million_written: float | None = Field(None, ge=0, le=10**6)
    """Price of a million tokens written."""

    timeout_minutes: float | None = Field(None, gt=0, le=525_600)
    """After so long the stage fails. Verdicts are kept, and the same command goes on from there; none sets no limit."""

    api_key_variable: Variable = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never written down."""

    max_unreadable_share: float = Field(0.05, ge=0, le=1)
    """The stage fails where more verdicts than this share cannot be read."""

    canaries: int = Field(2, ge=0, le=100)
    """Questions on which a judge that costs money is tried first: an answer against itself, and against a constant.
    Their replies are asked for once, whether or not they can be read."""


class JudgeConfig(StageConfig):
    """Pairwise comparison of two sets of answers to the same prompts, each pair in both orders."""

    not_identity: ClassVar[tuple[str, ...]] = ("execution", "prompts")
    """What the prompts say is: its hash is the judge's `template`."""

    by: JudgeByConfig = OpenAIJudgeConfig()
    """Who judges."""

    prompts: Line | None = Field(None, min_length=1)
    """A benchmark's own judge prompts in place of this project's, named as its own tools name them: an annotator of the
    installed alpaca-eval (weighted_alpaca_eval_gpt4_turbo, alpaca_eval_gpt4), or the path of its configs.yaml; a
    setting file of Arena-Hard's repository (config/arena-hard-v2.0.yaml); FastChat's judge_prompts.jsonl. Temperature
    and length limit are theirs."""

    bootstrap_samples: int = Field(2000, ge=100, le=100_000)
    """Resamples of the prompts for the interval."""

    execution: JudgeExecutionConfig = JudgeExecutionConfig()
    """How judging is done."""


class ScriptedRaterConfig(Config):
    """Ratings by a rule, for tests and dry runs of a pipeline."""

    type: Literal["scripted"] = "scripted"
    """Which kind of rater this is."""

    rule: Literal["length", "unreadable"] = "length"
    """How it rates: from 1 for an empty answer, a point more for every 20 characters; or never readably."""


class OpenAIRaterConfig(ChatCompletionsConfig):
    """A language model behind any endpoint that speaks OpenAI's chat completions."""

    type: Literal["openai"] = "openai"
    """Which kind of rater this is."""

    max_tokens: int = Field(2048, ge=16, le=2**20)
    """Length limit of a rating and its reasons; MT-Bench's own."""


RateByConfig = Annotated[ScriptedRaterConfig | OpenAIRaterConfig, Field(discriminator="type"), type_if_unset("openai")]


class RateConfig(StageConfig):
    """Every turn of every answer is rated from 1 to 10, without another answer beside it, as MT-Bench does."""

    by: RateByConfig = OpenAIRaterConfig()
    """Who rates."""

    judgings: int = Field(1, ge=1, le=100)
    """How many times each answer is rated; several are several draws, if `by.temperature` is not 0."""

    prompts: Line | None = Field(None, min_length=1)
    """A local file of instructions in the layout of FastChat's judge_prompts.jsonl, in place of this project's own."""

    prompts_content: str | None = None
    """Hash of that file, filled in when the stage starts."""

    bootstrap_samples: int = Field(2000, ge=100, le=100_000)
    """Resamples of the questions for the interval."""

    execution: JudgeExecutionConfig = JudgeExecutionConfig()
    """How the work is done."""


RESERVED = frozenset({"SFT", "DPR"})
"""What the report calls the policies that are trained."""


class EvaluationConfig(Config):
    """Which benchmarks are asked, and which controls stand beside the trained policy."""

    benchmarks: dict[Name, Benchmark] = Field({}, max_length=16)
    """Benchmarks by name. Those that are called by their type (alpaca_eval, word_problems) need not say it; one that is
    set to null is left out, so that a recipe can do without one of those that it extends."""

    capabilities: dict[Name, Benchmark] = Field({}, max_length=16)
    """Benchmarks that every policy answers and nobody judges, since a program checks the results: whether a gain by the
    judge is a loss elsewhere. Named as `benchmarks` are."""

    controls: dict[Name, Control] = Field({}, max_length=16)
    """Training-free controls by name, and policies kept on the way."""

    @field_validator("benchmarks", "capabilities", mode="before")
    @classmethod
    def _type_from_name(cls, benchmarks: Any) -> Any:
        if not isinstance(benchmarks, dict):
            return benchmarks
        return {
            name: {"type": name, **values} if name in NAMED_BY_TYPE and isinstance(values, dict) else values
            for name, values in benchmarks.items()
            if values is not None
        }

    @field_validator("capabilities")
    @classmethod
    def _checked_by_a_program(cls, capabilities: dict[str, Benchmark]) -> dict[str, Benchmark]:
        for name, each in capabilities.items():
            if isinstance(each, OfficialBenchmarkConfig | LikelihoodConfig):
                raise ValueError(f"{name} has no results that a program can check; ask it in evaluation.benchmarks")
        return capabilities

    @model_validator(mode="after")
    def _asked_once(self) -> Self:
        if twice := sorted(self.benchmarks.keys() & self.capabilities.keys()):
            raise ValueError(
                f"{twice[0]} is in benchmarks and in capabilities, and the report would not tell them apart: leave it "
                f"out of one, such as by --set evaluation.capabilities.{twice[0]}=null, or name it otherwise"
            )
        return self

    @property
    def asked(self) -> dict[str, Benchmark]:
        """All benchmarks by name."""
        return {**self.benchmarks, **self.capabilities}

    @field_validator("controls")
    @classmethod
    def _unreserved_names(cls, controls: dict[str, Control]) -> dict[str, Control]:
        if taken := sorted(RESERVED & {name.upper() for name in controls}):
            raise ValueError(f"a control cannot be called {taken[0]}: the report has a policy of that name")
        return controls


class ReportConfig(StageConfig):
    """The table of all policies over all benchmarks."""

    title: Line = "Dense-Path REINFORCE"
    """Heading of the report."""
