"""Everything that is measured of a reward before it is trained on, as plain values."""

from dataclasses import dataclass

from dpr_core.diagnostics.correctness import AurocEstimate, Correctness
from dpr_core.diagnostics.corruption import Detection
from dpr_core.diagnostics.shape import Points


@dataclass(frozen=True)
class Diagnosis:
    """On answers that pi_SFT gave to training prompts, and on demonstrations with one token replaced."""

    answers: int
    cut_share: float
    """Share of the answers that were cut at the length limit."""
    token_deviation: float
    """Deviation of the token reward."""
    noise_log_sft: float
    """Root mean square of the differences in log pi_SFT between two batch shapes: the noise floor."""
    noise_reward: float
    """The same of the token reward."""
    length_correlation: float | None
    """Of the return with the number of tokens; None where all answers are as long."""
    end_advantage: float | None
    """Whitened return of the end token; None where no answer ended."""
    top_share: float
    """Part of the total absolute reward in the top 1% of the tokens."""
    corrupted: int
    """Demonstrations with one token replaced."""
    credit: Detection | None
    """How well the token reward finds the replaced token; None where there was none to find."""
    credit_log_sft: Detection | None
    """How well log pi_SFT does."""
    correctness: Correctness | None
    """None where the answers could not be checked."""
    by_position: Points
    by_length: Points

    @property
    def noise_share(self) -> float | None:
        """Noise of the token reward as a share of its deviation; None where the reward is the same everywhere."""
        return self.noise_reward / self.token_deviation if self.token_deviation > 0 else None

    def metrics(self) -> dict[str, float]:
        """What was measured, by name; what was not is left out."""
        values: dict[str, float | None] = {
            "answers": self.answers,
            "cut_share": self.cut_share,
            "token_deviation": self.token_deviation,
            "noise_log_sft": self.noise_log_sft,
            "noise_reward": self.noise_reward,
            "noise_share": self.noise_share,
            "length_correlation": self.length_correlation,
            "end_advantage": self.end_advantage,
            "top_share": self.top_share,
            "corrupted": self.corrupted,
        }
        for name, detection in (("credit", self.credit), ("credit_log_sft", self.credit_log_sft)):
            if detection is not None:
                values |= {f"{name}_auroc": detection.auroc, f"{name}_top1": detection.top1}
        if (checked := self.correctness) is not None:
            values |= {"accuracy": checked.accuracy, "prompts_counted": checked.counted}
            values |= _estimate("auroc_return", checked.of_return)
            values |= _estimate("auroc_log_sft", checked.of_log_sft)
            values |= _estimate("auroc_length", checked.of_length)
        return {f"diagnose/{name}": float(value) for name, value in values.items() if value is not None}


def _estimate(name: str, estimate: AurocEstimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
