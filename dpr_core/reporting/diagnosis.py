"""A diagnosis as a JSON document, as a page of Markdown, and as plots."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpr_core.diagnostics.auroc import AurocEstimate
from dpr_core.diagnostics.measure import Diagnosis
from dpr_core.diagnostics.verdict import RewardVerdict
from dpr_core.reporting import plots


def as_dict(measured: Diagnosis, verdict: RewardVerdict) -> dict[str, Any]:
    """The verdict with its reasons, and everything that was measured."""
    credit = {
        name: detection and detection._asdict()
        for name, detection in (("credit", measured.credit), ("credit_log_sft", measured.credit_log_sft))
    }
    values = asdict(measured) | credit
    return {
        "verdict": verdict.level.word,
        "reasons": [{"level": reason.level.word, "text": reason.text} for reason in verdict.reasons],
        "measured": {name: value for name, value in values.items() if name != "rounding_share" or value is not None},
    }


def as_markdown(measured: Diagnosis, verdict: RewardVerdict) -> str:
    """The verdict first, its gravest reasons on top, then the numbers."""
    reasons = sorted(verdict.reasons, key=lambda reason: -reason.level)
    lines = [f"# Diagnosis of a reward: {verdict.level.word}", ""]
    lines += [f"- {reason.level.word}: {reason.text}" for reason in reasons]
    lines += ["", f"Measured on {measured.answers} answers of pi_SFT at temperature 1 to training prompts.", ""]
    lines += ["| measured | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _rows(measured)]
    lines += ["", "| | the token reward | log pi_SFT | length |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in _comparisons(measured)]
    return "\n".join(lines) + "\n"


def draw(measured: Diagnosis, folder: Path) -> list[Path]:
    """The plots, as files in `folder`."""
    position, length = folder / "reward_by_position.png", folder / "return_by_length.png"
    plots.lines(
        position, "Mean token reward of SFT's answers", "position in the response", {"reward": measured.by_position}
    )
    plots.lines(length, "Mean return of SFT's answers", "tokens of the response", {"return": measured.by_length})
    return [position, length]


def _rows(measured: Diagnosis) -> list[tuple[str, str]]:
    def maybe(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.3g}"

    share = measured.rounding_share
    rounding = [] if share is None else [("rounding of the token reward, over its deviation", f"{share:.2g}")]
    return [
        ("deviation of the token reward", f"{measured.token_deviation:.3g}"),
        ("noise of log pi_SFT between two batch shapes", f"{measured.noise_log_sft:.2g}"),
        ("noise of the token reward", f"{measured.noise_reward:.2g}"),
        *rounding,
        ("correlation of the return with the number of tokens", maybe(measured.length_correlation)),
        ("advantage of the end token, in deviations", maybe(measured.end_advantage)),
        ("part of the absolute reward in the top 1% of the tokens", f"{measured.top_share:.3g}"),
        ("answers cut at the length limit", f"{measured.cut_share:.1%}"),
    ]


def _comparisons(measured: Diagnosis) -> list[tuple[str, str, str, str]]:
    """What the reward does, beside what log pi_SFT and length alone do."""
    checked = measured.correctness
    if checked is None:
        right = ("not measured", "not measured", "not measured")
        counted = "right from wrong answers"
    else:
        right = (_shown(checked.of_return), _shown(checked.of_log_sft), _shown(checked.of_length))
        counted = (
            f"right from wrong answers: AUROC within a prompt ({checked.counted} of {checked.prompts} prompts count, "
            f"{checked.all_right} were all right, {checked.all_wrong} all wrong)"
        )
    finding = f"finding one of {measured.corrupted} replaced tokens"

    def both(show: Callable[[Any], str]) -> tuple[str, str]:
        reward, log_sft = ("not measured" if d is None else show(d) for d in (measured.credit, measured.credit_log_sft))
        return reward, log_sft

    return [
        (counted, *right),
        (f"{finding}: AUROC", *both(lambda d: f"{d.auroc:.3f}"), ""),
        (f"{finding}: lowest of its response", *both(lambda d: f"{d.top1:.1%}"), ""),
    ]


def _shown(estimate: AurocEstimate | None) -> str:
    if estimate is None:
        return "not measured"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
