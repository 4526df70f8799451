"""What a request comes to, as far as that needs no store."""

from dpr_core.config.base import override, parse
from dpr_core.config.pipeline import PipelineConfig
from flows import recipes, wiring
from flows.dispatch import tags_of
from flows.requests import RunRequest


def test_a_flow_run_is_found_by_recipe_presets_and_seeds() -> None:
    changes = ["methods.A={preset: srppo}", "reinforce.seed=3"]
    config = parse(PipelineConfig, override(recipes.values("demo"), changes), "demo")
    tags = tags_of(RunRequest(config=config), wiring.nodes(config))
    assert tags == {"recipe:demo", "preset:srppo", "seed:0", "seed:3"}
