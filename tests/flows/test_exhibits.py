"""The exhibits fit the recipe that they run on: its pipelines give every claim something to judge."""

import pytest

from dpr_core.experiments.exhibits import EXHIBITS, TRAINED, Exhibit
from dpr_core.experiments.observations import BASELINE, Observation, Position
from dpr_core.experiments.points import Point
from flows import reproduction, wiring

METRICS = {f"diagnose/credit{name}": 0.7 for name in ("_auroc", "_top1", "_log_sft_auroc", "_log_sft_top1")}
PROFILE = (Position(0, 2, 0.2, 0.2), Position(1, 2, 0.1, 0.1))


def made_up(point: Point, by_position: bool) -> list[Observation]:
    """What a report on this pipeline would have, with numbers out of the air."""
    config = point.config
    values = {name: value for name, value in point.values.items() if name != "seed"}
    common = {"benchmark": "lab", "prompts": 2, "response_tokens": 3.0, "cut_share": 0.0, "sft": str(config.seed)}
    policies = [BASELINE, wiring.TRAINED, *config.methods, *config.evaluation.controls]
    return [
        Observation(
            point=point.name,
            values=values,
            seed=config.seed,
            policy=policy,
            win_rate=50.0,
            metrics=METRICS if config.diagnose else {},
            profile=PROFILE if by_position else (),
            **common,
        )
        for policy in policies
    ]


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_every_claim_can_be_judged_on_the_lab(exhibit: Exhibit) -> None:
    (study,) = reproduction.studies("lab", [], [exhibit.name], seeds=2, quick=False)
    seen = [each for point in study.points() for each in made_up(point, exhibit.by_position)]
    assert [each.claim for each in exhibit.verdicts(seen) if each.verdict == "not run" or each.seeds != 2] == []


def test_the_policy_of_the_paper_has_its_name() -> None:
    assert wiring.TRAINED == TRAINED


def test_the_regime_of_few_demonstrations_has_the_rival_that_matters_there() -> None:
    (study,) = reproduction.studies("lab-mixed", [], ["table1"], seeds=2, quick=False)
    seen = [each for point in study.points() for each in made_up(point, False)]
    verdicts = {each.claim: each.verdict for each in EXHIBITS["table1"].verdicts(seen)}
    assert "not run" not in (verdicts["DPR > SFT"], verdicts["DPR > continued SFT"])
