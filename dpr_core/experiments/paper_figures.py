"""The paper's figures: credit, the discount, the reference, the course of a response, the temperature."""

from dpr_core.experiments import quantities as q
from dpr_core.experiments.claims import Claim
from dpr_core.experiments.exhibit import ALONE, DPR, TRAINED, UNDIAGNOSED, Exhibit, equals, is_number, of
from dpr_core.experiments.observations import BASELINE, Observation
from dpr_core.experiments.quantities import Quantity

GAMMA = "reinforce.algorithm.gamma"
REFERENCE = "reward.reference"
TEMPERATURE = "answer.temperature"


FIGURE1 = Exhibit(
    name="figure1",
    title="Figure 1: credit assignment",
    runs="DPR alone; the diagnosis of its reward replaces one token in each demonstration.",
    assignments=ALONE,
    shows=(q.AUROC, q.AUROC_LOG_SFT, q.TOP1, q.TOP1_LOG_SFT),
    credit_page=True,
    claimed=(
        Claim(
            "r is low on a wrong token",
            "The token reward tells the replaced token from the others: AUROC above 0.5.",
            DPR,
            level=0.5,
            quantity=q.AUROC,
        ),
        Claim(
            "r is lowest on a wrong token",
            "In most demonstrations the replaced token has the lowest reward: top-1 above 0.5.",
            DPR,
            level=0.5,
            quantity=q.TOP1,
        ),
        Claim(
            "r > log pi_SFT, AUROC",
            "The token reward tells it better than log pi_SFT does, which needs no reference.",
            DPR,
            quantity=Quantity("AUROC", "AUROC", lambda each: _gap(each, q.AUROC, q.AUROC_LOG_SFT), 3),
            by="project",
        ),
        Claim(
            "r > log pi_SFT, top-1",
            "The replaced token is the lowest more often by the token reward than by log pi_SFT.",
            DPR,
            quantity=Quantity("top-1", "top-1", lambda each: _gap(each, q.TOP1, q.TOP1_LOG_SFT), 3),
            by="project",
        ),
    ),
)


def _gap(each: Observation, first: Quantity, second: Quantity) -> float | None:
    a, b = first.read(each), second.read(each)
    return None if a is None or b is None else a - b


_DISCOUNTED = (0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)

FIGURE2 = Exhibit(
    name="figure2",
    title="Figure 2: the discount",
    runs="DPR alone, for every discount gamma.",
    assignments=UNDIAGNOSED,
    grid={GAMMA: (*_DISCOUNTED, 1.0)},
    quick_grid={GAMMA: (0.95, 1.0)},
    claimed=(
        Claim(
            "gamma 1 > the others",
            "No discount wins more often than the mean over all discounts.",
            of(TRAINED, GAMMA, equals(1.0)),
            of(TRAINED, GAMMA, lambda gamma: is_number(gamma) and gamma < 1),
        ),
        *(
            Claim(
                f"gamma 1 > {gamma:g}",
                f"No discount wins more often than a discount of {gamma:g}.",
                of(TRAINED, GAMMA, equals(1.0)),
                of(TRAINED, GAMMA, equals(gamma)),
            )
            for gamma in _DISCOUNTED
        ),
    ),
)

_FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MIDDLE = of(TRAINED, REFERENCE, lambda at: is_number(at) and abs(at - 0.5) < 0.15)
_EARLY = of(TRAINED, REFERENCE, lambda at: is_number(at) and at <= 0.25)
_LATE = of(TRAINED, REFERENCE, lambda at: is_number(at) and at >= 0.75)

FIGURE3 = Exhibit(
    name="figure3",
    title="Figure 3: the reference checkpoint",
    runs="DPR alone, for every place of the reference in the SFT run.",
    assignments=UNDIAGNOSED,
    grid={REFERENCE: _FRACTIONS},
    quick_grid={REFERENCE: (0.2, 0.5, 0.8)},
    shows=(q.VALUE_GAP,),
    claimed=(
        Claim(
            "reference near 0.5 > the ends",
            "References at 0.4 to 0.6 win more often than those up to 0.25 and from 0.75 on.",
            _MIDDLE,
            lambda each: _EARLY(each) or _LATE(each),
        ),
        Claim(
            "reference near 0.5 > early",
            "References at 0.4 to 0.6 win more often than those up to 0.25.",
            _MIDDLE,
            _EARLY,
        ),
        Claim(
            "reference near 0.5 > late",
            "References at 0.4 to 0.6 win more often than those from 0.75 on.",
            _MIDDLE,
            _LATE,
        ),
    ),
)

_KL_FALL, _REWARD_FALL = q.fall("kl_to_sft", "fall of the KL"), q.fall("reward", "fall of the reward")

FIGURE4A = Exhibit(
    name="figure4a",
    title="Figure 4a: KL and reward along the response",
    runs="DPR alone, with gamma 1 and with gamma 0.95; means by position over its answers.",
    assignments=UNDIAGNOSED,
    grid={GAMMA: (0.95, 1.0)},
    by_position=True,
    shows=(_KL_FALL, _REWARD_FALL),
    claimed=(
        Claim(
            "the KL falls, gamma 1",
            "The KL to SFT is lower in the second half of the response than in the first.",
            of(TRAINED, GAMMA, equals(1.0)),
            quantity=_KL_FALL,
        ),
        Claim(
            "the KL falls, gamma 0.95",
            "The same with a discount of 0.95.",
            of(TRAINED, GAMMA, equals(0.95)),
            quantity=_KL_FALL,
        ),
        Claim(
            "the reward falls less with gamma 1",
            "From the first half to the second the token reward falls more with a discount of 0.95 than without.",
            of(TRAINED, GAMMA, equals(0.95)),
            of(TRAINED, GAMMA, equals(1.0)),
            quantity=_REWARD_FALL,
        ),
    ),
)

_TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

FIGURE4B = Exhibit(
    name="figure4b",
    title="Figure 4b: the temperature of the answers",
    runs="DPR alone; it and SFT answer at every temperature.",
    assignments=UNDIAGNOSED,
    grid={TEMPERATURE: _TEMPERATURES},
    quick_grid={TEMPERATURE: (0.3, 0.7, 1.0)},
    shows=(q.TOKENS,),
    claimed=(
        *(
            Claim(
                f"DPR > SFT at {temperature:g}",
                f"DPR wins more often than it loses against SFT where both answer at temperature {temperature:g}.",
                of(TRAINED, TEMPERATURE, equals(temperature)),
                of(BASELINE, TEMPERATURE, equals(temperature)),
            )
            for temperature in _TEMPERATURES
        ),
        Claim(
            "less at 1 than at 0.7",
            "The win rate at temperature 1 is below that at 0.7.",
            of(TRAINED, TEMPERATURE, equals(0.7)),
            of(TRAINED, TEMPERATURE, equals(1.0)),
        ),
    ),
)
