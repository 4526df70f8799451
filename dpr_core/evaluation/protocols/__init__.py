"""Official judging: the protocols of public benchmarks, each read from the files that its own tools read."""

from dpr_core.errors import UsageError
from dpr_core.evaluation.protocols.arena_hard import ArenaHardProtocol
from dpr_core.evaluation.protocols.protocol import JudgingProtocol, OfficialPrompt, Played, read_yaml
from dpr_core.files import expanded

__all__ = ["JudgingProtocol", "OfficialPrompt", "Played", "protocol_of"]


def protocol_of(prompts: str) -> JudgingProtocol:
    """The protocol that `judge.prompts` names."""
    file = expanded(prompts)
    values = read_yaml(file)
    if "regex_patterns" in values:
        return ArenaHardProtocol.read_from(file, values)
    raise UsageError(
        f"judge.prompts: {prompts} is none of the files that are known here: a setting file of Arena-Hard's repository "
        "(config/arena-hard-v2.0.yaml), or an annotator of alpaca-eval (configs.yaml)"
    )
