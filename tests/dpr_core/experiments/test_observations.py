import csv
import json
from collections.abc import Callable

from dpr_core.experiments.observations import Observation, Position, as_csv, as_json, cells, swept

Runs = Callable[..., list[Observation]]


def test_json_holds_everything(runs: Runs) -> None:
    (each,) = runs("DPR", [60.0], {"reward.reference": [0.25, 0.5]}, profile=(Position(0, 3, 0.1, 0.2),))
    (values,) = json.loads(as_json([each]))
    assert values["profile"] == [{"position": 0, "answers": 3, "kl_to_sft": 0.1, "reward": 0.2}]
    assert values["values"] == {"reward.reference": [0.25, 0.5]}
    assert (values["policy"], values["seed"], values["win_rate"], values["sft"]) == ("DPR", 0, 60.0, "sft0")


def test_csv_has_a_column_for_each_field_and_metric(runs: Runs) -> None:
    seen = [
        *runs(
            "DPR", [60.0], {"a.gamma": 0.95}, metrics={"guard/stopped_at_iteration": 3.0}, win_rate_interval=(58, 62)
        ),
        *runs("a, b", [None], {"a.gamma": 1.0}),
    ]
    first, second = csv.DictReader(as_csv(seen).splitlines())
    assert (first["a.gamma"], first["guard/stopped_at_iteration"], first["win_rate_low"]) == ("0.95", "3.0", "58")
    assert (second["policy"], second["win_rate"], second["guard/stopped_at_iteration"]) == ("a, b", "", "")


def test_cells_differ_in_more_than_the_seed(runs: Runs) -> None:
    seen = [*runs("DPR", [1.0, 2.0], {"x": 1}), *runs("DPR", [3.0], {"x": 2}), *runs("SR", [4.0], {"x": 1})]
    assert [[each.win_rate for each in cell] for cell in cells(seen[::-1])] == [[4.0], [3.0], [2.0, 1.0]]
    assert swept([*seen, *runs("DPR", [1.0], {"y": 1})]) == ["x", "y"]
