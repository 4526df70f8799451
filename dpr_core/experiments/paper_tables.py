"""The paper's tables: DPR beside other methods, and without its parts."""

from dpr_core.experiments import quantities as q
from dpr_core.experiments.claims import Claim
from dpr_core.experiments.exhibit import DPR, SFT, UNDIAGNOSED, Exhibit, of


def _better(name: str, other: str, says: str) -> Claim:
    """A control that the paper lacks."""
    return Claim(name, says, DPR, of(other), by="project")


TABLE1 = Exhibit(
    name="table1",
    title="Table 1: DPR beside other methods that learn from the same demonstrations",
    runs="Every method and every control of the recipe, each from the same SFT model.",
    claimed=(
        Claim("DPR > SFT", "DPR wins more often than it loses against SFT.", DPR, SFT),
        Claim("DPR > SR", "The reward paid by the token beats its sum paid at the end.", DPR, of("SR")),
        Claim("DPR > SPIN", "DPR beats self-play fine-tuning.", DPR, of("SPIN")),
        Claim("DPR > GSIL", "DPR beats self-imitation learning.", DPR, of("GSIL")),
        Claim(
            "PPO = SR",
            "On the reward paid at the end, PPO and REINFORCE are within 2 points of win rate.",
            of("PPO"),
            of("SR"),
            margin=2.0,
        ),
        _better("DPR > continued SFT", "continued-SFT", "DPR beats SFT that goes on with the same demonstrations."),
        _better("DPR > weight extrapolation", "extrapolated", "DPR beats SFT + k (SFT - reference) in the weights."),
        _better("DPR > contrastive decoding", "contrastive", "DPR beats SFT + k (SFT - reference) in the logits."),
        _better(
            "DPR > best of n by reward",
            "best-of-8-reward",
            "DPR beats the best of n SFT answers by the recovered reward.",
        ),
        _better(
            "DPR > best of n by log pi_SFT",
            "best-of-8-likelihood",
            "DPR beats the best of n SFT answers by mean log pi_SFT.",
        ),
        _better("DPR > random signs", "random-sign", "DPR beats itself on a reward whose signs are drawn at random."),
    ),
)

TABLE2 = Exhibit(
    name="table2",
    title="Table 2: the value term and the baseline",
    runs="DPR, DPR with the value term kept in the reward, and DPR on log pi_SFT alone.",
    assignments=(
        *UNDIAGNOSED,
        "methods={with-value: {changes: ['reward.formula=with_value']}, "
        "without-baseline: {changes: ['reward.formula=without_baseline']}}",
    ),
    claimed=(
        Claim("DPR > w/V", "Keeping the value term in the reward costs win rate.", DPR, of("with-value")),
        Claim("DPR > wo/Baseline", "Dropping the reference costs win rate.", DPR, of("without-baseline")),
        Claim("SFT > wo/Baseline", "Without the reference DPR loses to SFT.", SFT, of("without-baseline")),
        Claim(
            "wo/Baseline is short",
            "Without the reference answers become shorter than those of SFT.",
            SFT,
            of("without-baseline"),
            quantity=q.TOKENS,
        ),
        Claim(
            "w/V = wo/Baseline",
            "The value term is a baseline of the state alone, so both are within 5 points of win rate.",
            of("with-value"),
            of("without-baseline"),
            margin=5.0,
            by="project",
        ),
    ),
)
