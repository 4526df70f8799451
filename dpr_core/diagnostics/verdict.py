"""Go/no-go verdict on a reward: its diagnosis against thresholds, with the reasons. It never changes what is run.

The thresholds were set on the lab, see docs/diagnostics.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from dpr_core.diagnostics.auroc import AurocEstimate, Correctness
from dpr_core.diagnostics.measure import Diagnosis

CHANCE = 0.5
"""The AUROC of a number that says nothing."""

NOISE_CAUTION, NOISE_STOP = 0.1, 0.5
"""Rounding noise over the deviation of the reward; its square is the share of the variance that is noise."""

FEWEST_PROMPTS = 10
"""Prompts with right and wrong answers below which their AUROC is not worth reading."""

CREDIT_CAUTION = 0.6
"""AUROC of finding a replaced token. Below chance it is a reason to stop."""

FEWEST_CORRUPTED = 100
"""Replaced tokens below which an AUROC under 0.5 may be chance."""

LENGTH_CAUTION = 0.8
"""Correlation of the return with the response's length, in size."""

END_CAUTION = 0.5
"""Advantage of the end token, in size and in deviations."""

TOP_CAUTION = 0.5
"""Part of the total absolute reward in the top 1% of the tokens."""

CUT_CAUTION = 0.5
"""Share of the answers that were cut."""


class Level(IntEnum):
    GO = 0
    CAUTION = 1
    STOP = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Reason:
    """One sentence with its number, and what it calls for."""

    level: Level
    text: str


@dataclass(frozen=True)
class RewardVerdict:
    """The gravest of its reasons; those for going on are reasons too."""

    reasons: tuple[Reason, ...]

    @property
    def level(self) -> Level:
        return max(reason.level for reason in self.reasons)

    @property
    def sentence(self) -> str:
        """The level, and every reason for it where it is not go."""
        if self.level == Level.GO:
            return "go: nothing that was measured speaks against this reward."
        return f"{self.level.word}: {' '.join(r.text for r in self.reasons if r.level == self.level)}"


def assess(measured: Diagnosis) -> RewardVerdict:
    """What the measurements call for."""
    checks = (_noise, _correctness, _credit, _length, _end, _concentration)
    return RewardVerdict(tuple(reason for check in checks for reason in check(measured)))


def _noise(measured: Diagnosis) -> Iterator[Reason]:
    share = measured.noise_share
    if share is None:
        yield Reason(Level.STOP, "The token reward is the same everywhere, so there is nothing to learn from it.")
        return
    level = Level.STOP if share > NOISE_STOP else Level.CAUTION if share > NOISE_CAUTION else Level.GO
    yield Reason(level, f"Rounding noise of the token reward is {share:.2g} of its deviation.")
    if (rounding := measured.rounding_share) is not None:
        level = Level.STOP if rounding > NOISE_STOP else Level.CAUTION if rounding > NOISE_CAUTION else Level.GO
        advice = "; compute it in float32 (reward.arithmetic)" if level else ""
        yield Reason(level, f"Its rounding, that of the weights included, is {rounding:.2g} of its deviation{advice}.")


def _correctness(measured: Diagnosis) -> Iterator[Reason]:
    checked = measured.correctness
    if checked is None:
        yield Reason(Level.GO, "Whether the return follows correctness was not measured: no answer can be checked.")
        return
    counted = f"{checked.counted} of {checked.prompts} prompts had right and wrong answers"
    estimate = checked.of_return
    if estimate is None or estimate.low is None or estimate.high is None or checked.counted < FEWEST_PROMPTS:
        yield Reason(Level.CAUTION, f"Only {counted}, too few to see whether the return follows correctness.")
        return
    figures = f"AUROC {_shown(estimate)} within a prompt; {counted}"
    if estimate.high < CHANCE:
        yield Reason(Level.STOP, f"The return is higher for wrong answers than for right ones ({figures}).")
    elif estimate.low <= CHANCE:
        yield Reason(Level.CAUTION, f"The return cannot be seen to tell right answers from wrong ones ({figures}).")
    else:
        yield Reason(Level.GO, f"The return is higher for right answers than for wrong ones ({figures}).")


def _credit(measured: Diagnosis) -> Iterator[Reason]:
    if (credit := measured.credit) is None:
        yield Reason(Level.CAUTION, "No demonstration had a token to replace, so credit assignment was not measured.")
        return
    stop = credit.auroc < CHANCE and measured.corrupted >= FEWEST_CORRUPTED
    level = Level.STOP if stop else Level.CAUTION if credit.auroc < CREDIT_CAUTION else Level.GO
    yield Reason(
        level,
        f"The token reward finds a replaced token with an AUROC of {credit.auroc:.2f}; "
        f"it is the lowest of its response {credit.top1:.0%} of the time.",
    )


def _length(measured: Diagnosis) -> Iterator[Reason]:
    found = measured.length_correlation
    if found is None:
        yield Reason(Level.GO, "All answers are equally long.")
        return
    follows = f"The return correlates with the number of tokens by {found:.2f}"
    if abs(found) <= LENGTH_CAUTION:
        yield Reason(Level.GO, f"{follows}.")
    elif _follows_correctness(measured.correctness):
        yield Reason(Level.GO, f"{follows}; it follows correctness too, so this may be no fault.")
    else:
        yield Reason(Level.CAUTION, f"{follows}, and it was not seen to follow anything else.")


def _end(measured: Diagnosis) -> Iterator[Reason]:
    if measured.cut_share > CUT_CAUTION:
        yield Reason(Level.CAUTION, f"Of the answers {measured.cut_share:.0%} were cut at the length limit.")
    if (advantage := measured.end_advantage) is None:
        return
    pressed = "longer" if advantage < 0 else "shorter"
    level = Level.CAUTION if abs(advantage) > END_CAUTION else Level.GO
    yield Reason(level, f"Ending has an advantage of {advantage:.2f} deviations, which presses for {pressed} answers.")


def _concentration(measured: Diagnosis) -> Iterator[Reason]:
    level = Level.CAUTION if measured.top_share > TOP_CAUTION else Level.GO
    yield Reason(level, f"The top 1% of the tokens hold {measured.top_share:.0%} of the total absolute reward.")


def _follows_correctness(checked: Correctness | None) -> bool:
    estimate = checked.of_return if checked is not None and checked.counted >= FEWEST_PROMPTS else None
    return estimate is not None and estimate.low is not None and estimate.low > CHANCE


def _shown(estimate: AurocEstimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
