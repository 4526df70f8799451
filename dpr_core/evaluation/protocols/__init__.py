"""Official judging: the protocols of public benchmarks, each read from the files that its own tools read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpr_core.config.evaluation import ChatJudgeConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.official import FORMATS
from dpr_core.evaluation.pairwise import Game, Pair
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.protocols import alpaca_eval
from dpr_core.evaluation.protocols.alpaca_eval import AlpacaEvalProtocol
from dpr_core.evaluation.protocols.arena_hard import ArenaHardProtocol
from dpr_core.evaluation.protocols.mt_bench import MTBenchProtocol
from dpr_core.evaluation.protocols.protocol import JudgingProtocol, OfficialPrompt, Played, read_yaml
from dpr_core.files import expanded

__all__ = ["JudgingProtocol", "Official", "OfficialPrompt", "official", "protocol_of"]


def protocol_of(prompts: str) -> JudgingProtocol:
    """The protocol that `judge.prompts` names."""
    if prompts in alpaca_eval.ANNOTATORS:
        return AlpacaEvalProtocol.installed(prompts)
    file = expanded(prompts)
    if file.suffix == ".jsonl":
        return MTBenchProtocol.read_from(file)
    values = read_yaml(file)
    if "regex_patterns" in values:
        return ArenaHardProtocol.read_from(file, values)
    if all(isinstance(each, dict) and "fn_completion_parser" in each for each in values.values()):
        return AlpacaEvalProtocol.read_from(file, values)
    raise UsageError(
        f"judge.prompts: {prompts} is none of the files that are known here: a setting file of Arena-Hard's repository "
        "(config/arena-hard-v2.0.yaml), FastChat's judge_prompts.jsonl, or an annotator of alpaca-eval (configs.yaml)"
    )


@dataclass(frozen=True)
class Official:
    """What a benchmark's own tools would have written, and its own score of that, which is no win rate of ours."""

    file: str
    text: str
    scores: dict[str, Any]

    def metrics(self) -> dict[str, float]:
        """The benchmark's own numbers by the names under which they are logged."""
        told = self.scores["official"].items()
        return {f"judge/official/{name}": float(value) for name, value in told if isinstance(value, int | float)}

    def write(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / self.file).write_text(self.text, encoding="utf-8")


def official(
    protocol: JudgingProtocol,
    pairs: Sequence[Pair],
    games: Sequence[Game],
    candidate: str,
    baselines: Sequence[str],
    by: ChatJudgeConfig,
) -> Official:
    """Of games in the order of `judge_pairs`; `baselines` are those of the pairs."""
    within_limit = PairwisePrompt(by.max_answer_characters).within_limit
    both = zip(games[::2], games[1::2], strict=True)
    played = [
        Played(
            pair,
            {first: within_limit(pair.shown(first)) for first in (True, False)},
            {game.candidate_first: game for game in two},
            candidate,
            # The rows know both sides by their names alone.
            f"{baseline}-baseline" if baseline == candidate else baseline,
        )
        for pair, two, baseline in zip(pairs, both, baselines, strict=True)
    ]
    rows = protocol.rows(played, by.model)
    score = FORMATS[protocol.benchmark](rows, [], [])[candidate]
    scores = {"prompts": protocol.name, "judge": by.model, **asdict(score)}
    return Official(protocol.file(candidate, by.model), protocol.text(rows), scores)
