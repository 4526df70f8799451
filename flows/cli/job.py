"""The command that writes one stage of a recipe as a job, for ranks that another launcher starts."""

from typing import Annotated

import typer

from flows.cli.console import Debug, Preset, Recipe, Set, reported


def job(
    recipe: Recipe,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Its name in the recipe, such as sft or reinforce.")],
    assignments: Set = [],  # noqa: B006
    preset: Preset = None,
    debug: Debug = False,
) -> None:
    """Print a stage of a recipe as a job for `python -m tasks.launch.worker`, under torchrun, srun and the like.

    What it is built on has to be there already. Another launcher's ranks make it, and `dpr run` then reuses it.

    Example: dpr job llama-3.1-8b sft > sft.json; torchrun --nproc-per-node 8 -m tasks.launch.worker sft.json
    """
    with reported(debug):
        from dpr_core.errors import UsageError
        from flows import recipes, wiring
        from tasks.artifacts.store import Store
        from tasks.graph import OTHER, in_order, plan
        from tasks.run_stage import StageJob

        nodes = {node.name: node for node in in_order(wiring.nodes(recipes.load(recipe, assignments, preset)))}
        if stage not in nodes:
            raise UsageError(f"{recipe} has no stage {stage!r}; its stages: {', '.join(nodes)}")
        made = {OTHER + step.name: step.id for step in plan(list(nodes.values()), Store.open())}
        inputs = {}
        for role, source in nodes[stage].inputs.items():
            if (run_id := made.get(source, source)) is None:
                raise UsageError(f"{stage} needs {source.removeprefix(OTHER)}, which is not made yet; make it first")
            inputs[role] = run_id
        print(StageJob(nodes[stage].stage, stage, nodes[stage].config, inputs, None).to_json())
