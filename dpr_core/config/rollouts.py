"""Settings of rollouts: the in-process engine, or a vLLM server."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Address, Config, Line, Variable, type_if_unset


class InProcessConfig(Config):
    """The policy itself, in the process that trains it."""

    type: Literal["in_process"] = "in_process"
    """Which kind of engine this is."""


class VllmExecutionConfig(Config):
    """Where vLLM runs. None of this changes what comes out beyond rounding."""

    python: Line | None = None
    """The Python of an environment that holds vLLM, for a server that the stage starts and ends itself; none takes the
    one in the folder that the environment variable DENSE_PATH_VLLM names."""

    url: Address | None = None
    """A server that runs already, such as http://127.0.0.1:8000, with VLLM_SERVER_DEV_MODE=1 and the files of DPR_HOME
    in reach; none starts one."""

    api_key_variable: Variable | None = None
    """The environment variable that holds the key of that server, where it asks for one."""

    memory_share: float = Field(0.4, gt=0, lt=1)
    """Of the GPU's memory, what a server of the stage's own may take; the trainer needs the rest."""

    eager: bool = False
    """A server of the stage's own starts sooner and draws more slowly, without compiling the network."""

    start_seconds: float = Field(900.0, gt=0, le=86_400)
    """How long a server may take until it answers, at the start and after it has died."""

    request_seconds: float = Field(1800.0, gt=0, le=604_800)
    """How long one response may take; a server that takes longer counts as dead."""

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if self.url is not None and self.python is not None:
            raise ValueError("python starts a server and url names one that runs: set one of them")
        if self.api_key_variable is not None and self.url is None:
            raise ValueError("api_key_variable is for the server at url, which is not set")
        return self


class VllmConfig(Config):
    """A vLLM server, which gets the policy's weights before each iteration."""

    type: Literal["vllm"] = "vllm"
    """Which kind of engine this is."""

    importance_cap: float = Field(2.0, ge=1)
    """Tokens are weighted by pi_trainer / pi_engine, and by no more than this."""

    importance_per: Literal["token", "sequence"] = "token"
    """One ratio for each token, or their product over the response for all of its tokens. The product is free of bias
    where the cap does not cut it, but varies more the longer responses are."""

    overlap: bool = False
    """Draw the next batch while the policy learns from this one: its samples are one iteration old."""

    execution: VllmExecutionConfig = VllmExecutionConfig()
    """Where it runs, which is no part of what an artifact is."""


Rollouts = Annotated[InProcessConfig | VllmConfig, Field(discriminator="type"), type_if_unset("in_process")]
