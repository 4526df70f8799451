"""API keys out of Prefect's Secret blocks, for a process whose environment lacks them."""

import os
from collections.abc import Iterable, Iterator

from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import ChatCompletionsConfig, JudgeConfig, RateConfig
from tasks.prefect_task import AWAY, Observed


def fetch_keys(configs: Iterable[StageConfig]) -> None:
    """Set each variable that these stages read a key from and that is unset, if there is a Secret block of its name in
    lower case, with hyphens: OPENAI_API_KEY is in openai-api-key."""
    if PREFECT_API_URL.value() is None or Observed.lost:
        return
    for name in {variable for config in configs for variable in _variables(config)}:
        if not os.environ.get(name):
            try:
                key = Secret.load(name.lower().replace("_", "-")).get()
            except (ValueError, *AWAY):
                # Not there, or not to be had: whoever needs it says that the variable is not set.
                continue
            os.environ[name] = str(key)


def _variables(config: StageConfig) -> Iterator[str]:
    if isinstance(config, JudgeConfig | RateConfig) and isinstance(config.by, ChatCompletionsConfig):
        yield config.execution.api_key_variable
    server = getattr(getattr(config, "rollouts", None), "execution", None)
    if name := getattr(server, "api_key_variable", None):
        yield name
