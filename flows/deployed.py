"""Deployed flows: a whole recipe, and every single stage as `flows.deployed.<stage>`, with the help of their forms."""

import logging
from collections.abc import Collection, Mapping
from functools import cache, partial
from inspect import Parameter, Signature, getdoc
from pathlib import Path
from sys import modules
from typing import Any

from prefect import Flow
from prefect.runtime import flow_run
from pydantic import StrictBool

from dpr_core.config.base import StageConfig, override, parse
from dpr_core.config.placing import Rules
from dpr_core.errors import UsageError
from flows import recipes, wiring
from flows.importing import on_sft
from flows.orchestration import flow
from flows.pipeline import run_graph
from flows.requests import Jobs, RunRequest, StageRequest
from tasks.artifacts.run_records import flatten, wrong_stage
from tasks.artifacts.store import Store
from tasks.lengths import Made, check_lengths, lengths_below
from tasks.registry import STAGES
from tasks.running.stage import ANY_ROLE, Stage

logger = logging.getLogger("dense_path")

Recipe = str | dict[str, Any]

INPUTS = "inputs"
"""What the inputs of a stage that takes any number are given as."""

HELP = {
    "recipe": "The settings that a recipe has for this stage: its name (`dpr recipes`), the path of a .yaml file that "
    "the worker can read, or itself: YAML, or what `dpr config --json` prints.",
    "like": "ID of an artifact of this stage: its settings, and its inputs where none are given. Not with `recipe`.",
    "node": "With `recipe`, where it has several of this stage: which, as `dpr run --plan` calls it.",
    "overrides": 'Changes on top, such as ["{}"], values as in YAML. Fields of {}: {}. `dpr config` explains them.',
    "force": "Make it again, though it may be there.",
}
ID = "Its ID, or the first characters of that, as `runs:/12345678`."


@flow(
    name="dense-path",
    flow_run_name=lambda: _name_of(flow_run.parameters.get("recipe", "demo")),
    description="A whole recipe: demonstrations -> SFT -> dense reward -> REINFORCE -> judged answers. What is there "
    "already is reused.",
)
def run(
    recipe: Recipe = "demo",
    overrides: list[str] | None = None,
    preset: str | None = None,
    sft: str | None = None,
    place: Rules = {},  # noqa: B006
    jobs: Jobs = 1,
    force: StrictBool = False,
) -> dict[str, Any]:
    """A whole recipe, with changes.

    Args:
        recipe: The name of a shipped recipe (`dpr recipes`), the path of a .yaml file that the worker can read, or the
            settings themselves: YAML, or what `dpr config --json` prints.
        overrides: Changes to the recipe, such as ["seed=1", "reinforce.algorithm.gamma=0.95"]; values as in YAML.
        preset: A method of the family whose settings these are, before the changes: dpr, srppo, exopd, opd, sr, ppo,
            with_value or without_baseline.
        sft: Go on from this SFT artifact, with its backbone and demonstrations in place of the recipe's. Its ID, or the
            first characters of that, as `runs:/12345678`.
        place: Where stages are done, by name or `*` for the others, such as {"reinforce": "gpu8", "*": "gpu"}: a work
            pool, one of its queues as pool/queue, or `here`; on top of the recipe's own.
        jobs: Stages that are computed here at once, each by a process of its own, with a GPU of its own.
        force: Make all of it again, though it may be there.
    """
    source = recipe if sft is None else on_sft(Store.open(), sft, recipe)
    config = recipes.load(source, overrides or [], preset)
    return run_graph(RunRequest(config=config, place=place, jobs=jobs, force=force))


def _name_of(recipe: Recipe) -> str:
    name = str(recipe.get("name", "")) if isinstance(recipe, dict) else Path(recipe.partition("\n")[0]).stem
    return name or "dense-path"


def __getattr__(name: str) -> Any:
    """The flow of a stage."""
    if name in STAGES:
        return _flow_of(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _flow_of(name: str) -> Flow[..., str]:
    """A flow whose parameters are the inputs of the stage and where its settings come from."""
    stage = STAGES[name]
    summary = (getdoc(modules[stage.body.__module__]) or "").partition("\n\n")[0].replace("\n", " ")
    roles = {INPUTS if role == ANY_ROLE else role: stage.accepted(role) for role in stage.inputs}
    texts = {role: _help_of_role(stage, role, stages) for role, stages in roles.items()}
    fields = ", ".join(stage.config.model_fields)
    texts |= HELP | {"overrides": HELP["overrides"].format(EXAMPLES.get(name, "seed=1"), name, fields)}

    def run_one(**given: Any) -> str:
        chosen = {role: given.pop(role) for role in roles}
        return run_stage_alone(stage, chosen, **given)

    kinds: dict[str, tuple[Any, Any]] = {
        **{role: (dict[str, str] | None if role == INPUTS else str | None, None) for role in roles},
        "like": (str | None, None),
        "recipe": (Recipe | None, None),
        "node": (str | None, None),
        "overrides": (list[str] | None, None),
        "force": (StrictBool, False),
    }
    parameters = [Parameter(n, Parameter.KEYWORD_ONLY, default=v, annotation=k) for n, (k, v) in kinds.items()]
    run_one.__name__ = name
    run_one.__signature__ = Signature(parameters, return_annotation=str)  # type: ignore[attr-defined]
    run_one.__doc__ = "\n".join([summary, "", "Args:", *(f"    {n}: {texts[n]}" for n in kinds)])
    return flow(name="stage", flow_run_name=name, description=summary)(run_one)


EXAMPLES = {
    "reinforce": "algorithm.gamma=0.95",
    "reward": "reference=0.3",
    "sft": "learning_rate=1.0e-5",
    "answer": "temperature=0",
}


def _help_of_role(stage: Stage, role: str, stages: tuple[str, ...]) -> str:
    made_by = " or ".join(filter(None, (", ".join(stages[:-1]), stages[-1])))
    if role == INPUTS:
        return f'Artifacts of stage {made_by}, as {{"what to call it": ID}}; without any, those of `like`.'
    needed = "may be left out" if role in stage.optional else "needed without `like`"
    return f"An artifact of stage {made_by}; {needed}. {ID}"


def run_stage_alone(
    stage: Stage,
    given: Mapping[str, Any],
    like: str | None,
    recipe: Recipe | None,
    node: str | None,
    overrides: list[str] | None,
    force: bool,
) -> str:
    """The artifact of one stage, by settings of another artifact, of a recipe, or the paper's where they fit."""
    store = Store.open()
    named = {role: value for role, value in given.items() if role != INPUTS and value is not None}
    inputs = {role: store.resolve(reference) for role, reference in {**named, **(given.get(INPUTS) or {})}.items()}
    if like is not None and recipe is not None:
        raise UsageError(f"{stage.name}: settings are those of `like` or those of `recipe`: give one of the two")
    if node is not None and recipe is None:
        raise UsageError(f"{stage.name}: `node` is one of a recipe: give `recipe` too")
    if like is not None:
        target = store.record(like)
        if problem := wrong_stage(target.title, target.stage, (stage.name,)):
            raise UsageError(f"like: {problem}")
        if problems := store.contradictions(target.id):
            raise UsageError(f"like: {target.title} has not the settings that it was made with: {'; '.join(problems)}")
        inputs = inputs if ANY_ROLE in stage.inputs and inputs else {**target.inputs, **inputs}
        values: dict[str, Any] = target.config
    else:
        stage.check_roles(inputs)
        values = {} if recipe is None else _node_of(recipe, node, stage.name).model_dump(mode="json")
    try:
        config = parse(stage.config, override(values, overrides or [], "overrides"), stage.name)
        if like is None and recipe is None:
            said = {change.partition("=")[0] for change in overrides or []}
            _say_whose(stage, config, said, inputs, store)
        check_lengths(stage.name, config, inputs, partial(_made, store))
    except UsageError as error:
        if like is not None or recipe is not None:
            raise
        raise UsageError(f"{error}; without `like` and `recipe`, settings are the paper's") from None
    settings = config.model_dump(mode="json")
    document = run_graph(StageRequest(stage=stage.name, config=settings, inputs=inputs, force=force))
    return str(document["stages"][0]["id"])


def _made(store: Store, artifact: str) -> Made:
    record = store.record(artifact)
    return Made(record.stage, record.config, record.inputs)


def _node_of(recipe: Recipe, name: str | None, stage: str) -> StageConfig:
    """The settings that a recipe has for a stage."""
    config = recipes.load(recipe)
    found = {node.name: node.config for node in wiring.nodes(config) if node.stage == stage}
    if name is not None and name not in found:
        raise UsageError(f"recipe {config.name} has no {stage} called {name!r}; {_listed(found)}")
    if not found:
        raise UsageError(f"recipe {config.name} has no stage {stage}")
    chosen = found.get(name or stage)
    if chosen is None and len(set(map(str, found.values()))) == 1:
        chosen = next(iter(found.values()))
    if chosen is None:
        raise UsageError(f"recipe {config.name} has {len(found)} stages {stage}: say which as `node`; {_listed(found)}")
    return chosen


def _listed(names: Mapping[str, Any]) -> str:
    return f"it has {', '.join(names)}" if names else "it has none at all"


def _say_whose(
    stage: Stage, config: StageConfig, said: Collection[str], inputs: Mapping[str, str], store: Store
) -> None:
    """Settings that nobody chose are the paper's: they are told, and refused where its lengths are not the inputs'."""
    for name, longest in lengths_below(inputs.values(), partial(_made, store)).items():
        if name not in said and (own := getattr(config, name, longest)) != longest:
            raise UsageError(f"{stage.name}: {name} is {own}, but {longest} in the SFT below its inputs: set it")
    told = ", ".join(f"{name}={value}" for name, value in flatten(config.identity()))
    made = next((record for record in store.records(stage.name) if record.finished), None)
    hint = f"; like=runs:/{made.id[:8]} has those of {made.title}" if made else ""
    logger.info("%s: without `like` and `recipe`, settings are the paper's: %s%s", stage.name, told, hint)
