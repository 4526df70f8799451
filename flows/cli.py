"""The `dpr` command line. Imports what a command needs only when that command runs, so that --help is quick."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dpr_core.errors import DensePathError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tasks.graph import Node
    from tasks.tracking import Store

app = typer.Typer(
    name="dpr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Dense-Path REINFORCE: demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers.

    Every stage makes an artifact with an ID. What is there already is reused; any stage can be made again by its ID.

    [bold]Start here[/bold]

      dpr run demo            the whole method on the embedded lab, in minutes

      dpr artifacts           what has been made

      dpr rerun ID --plan --downstream --set reference=0.25   what would change

      dpr score ID --text "Start at 1, add 2." "The answer is 3."   token rewards

    Everything lives in DPR_HOME (default: .dpr in the current folder).""",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's log.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a setting; may be given several times.")
]
Force = Annotated[bool, typer.Option("--force", help="Make it again even if nothing changed.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would run and why; run nothing.")]


class Reproduced(StrEnum):
    theory = "theory"


Identifier = Annotated[
    str, typer.Argument(metavar="ID", help="An artifact ID, a unique prefix of one, or a runs:/ URI.")
]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe (see `dpr recipes`) or a .yaml file.")] = "demo",
    assignments: Set = [],  # noqa: B006
    plan: Plan = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline, reusing every stage that is already there.

    Example: dpr run demo --set seed=1 --set reinforce.algorithm.gamma=0.95
    """
    with reported(debug):
        from flows import recipes, wiring
        from tasks.tracking import Store

        config = recipes.load(recipe, assignments)

        def start() -> dict[str, Any]:
            from flows.pipeline import dense_path

            return dense_path(config, force=force)

        about = Run(config.name, config.description, config.model_dump(mode="json"))
        _run_or_plan(Store.open(), wiring.nodes(config), about, start, Wish(plan, force, as_json, debug))


@app.command()
def rerun(
    artifact: Identifier,
    assignments: Set = [],  # noqa: B006
    downstream: Annotated[bool, typer.Option("--downstream", help="Also make all that was built on it again.")] = False,
    plan: Plan = False,
    force: Force = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one artifact again from its stored inputs, with changes; with --downstream, everything built on it too.

    Fields are those of the artifact's own stage: dpr rerun 3f2a --set learning_rate=1e-4 --downstream --plan
    """
    with reported(debug):
        from tasks.graph import rerun_nodes
        from tasks.tracking import Store

        store = Store.open()
        target = store.record(artifact)

        def start() -> dict[str, Any]:
            from flows.pipeline import rerun as rerun_flow

            return rerun_flow(target.id, assignments, downstream, force)

        about = Run(f"rerun {target.stage}", f"{target.title} again.", {"artifact": target.id})
        nodes = rerun_nodes(store, target.id, assignments, downstream)
        _run_or_plan(store, nodes, about, start, Wish(plan, force, as_json, debug))


class Run(NamedTuple):
    """What a run is called in MLflow."""

    name: str
    description: str
    config: dict[str, Any]


class Wish(NamedTuple):
    """The options that `run` and `rerun` share."""

    plan: bool
    force: bool
    as_json: bool
    debug: bool


def _run_or_plan(
    store: "Store", nodes: "list[Node]", about: Run, start: Callable[[], dict[str, Any]], wish: Wish
) -> None:
    from flows import embedded, runs
    from flows import show as view
    from tasks.graph import plan

    planned = plan(nodes, store, force=[node.name for node in nodes] if wish.force else ())
    if wish.plan:
        emit(view.plan_document(planned), wish.as_json, lambda: view.plan_table(planned))
        return
    if all(step.status == "reuse" for step in planned):
        document = runs.reuse_all(store, planned, *about)
    else:
        embedded.prepare(store.home, wish.debug)
        document = start()
    emit(document, wish.as_json, lambda: view.run_summary(store, document))


@app.command()
def artifacts(
    stage: Annotated[str | None, typer.Option(help="Only those of one stage.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what has been made, newest first."""
    with reported(debug):
        from flows import show
        from tasks.table import stage_named
        from tasks.tracking import Store

        records = Store.open().records(stage_named(stage).name if stage else None)
        emit([show.record_document(record) for record in records], as_json, lambda: show.record_table(records))


@app.command()
def show(artifact: Identifier, as_json: Json = False, debug: Debug = False) -> None:
    """Show one artifact: settings, what it was made from, what it was used for, metrics and files."""
    with reported(debug):
        from flows import show as view
        from tasks.tracking import Store

        store = Store.open()
        record = store.record(artifact)
        document = view.artifact_document(store, record)
        emit(document, as_json, lambda: view.artifact_view(store, record, document))


@app.command()
def verify(
    artifact: Annotated[str | None, typer.Argument(metavar="[ID]", help="One artifact.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every finished artifact.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Hash every file of an artifact again and compare. Exit status 1 if anything is wrong."""
    with reported(debug):
        from flows import show as view
        from tasks.tracking import Store

        if (artifact is None) == (not everything):
            raise UsageError("give one artifact ID, or --all")
        store = Store.open()
        records = [r for r in store.records() if r.finished] if artifact is None else [store.record(artifact)]
        checked = [(record, store.verify(record.id)) for record in records]
        emit(view.verification_document(checked), as_json, lambda: view.verification_table(checked))
        if any(problems for _, problems in checked):
            raise SystemExit(1)


@app.command()
def export(
    artifact: Identifier,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    part: Annotated[
        str | None, typer.Option(help="sft or ref for a reward; a kept fraction such as 0.50 for an SFT run.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model as a plain Hugging Face checkpoint, which from_pretrained loads."""
    with reported(debug):
        from tasks.export import export_checkpoint
        from tasks.tracking import Store

        written = export_checkpoint(Store.open(), artifact, folder, part)
        emit(written, as_json, lambda: f"{written['checkpoint']} -> {written['folder']}")


@app.command()
def score(
    reward: Identifier,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.jsonl]", help="Rows with prompt and response.")] = None,
    text: Annotated[
        tuple[str, str] | None, typer.Option(metavar="PROMPT RESPONSE", help="One prompt and one response.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="OUT", help="Also write a self-contained page.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the reward of every token of given text (the paper's Figure 1): red is high, blue is low.

    With --json: one document for --text; one line a row for a file. Positions count from the start of the response.
    """
    with reported(debug):
        from flows.score import given_texts, score_texts
        from tasks.tracking import Store

        texts = given_texts(file, text)
        score_texts(Store.open(), reward, texts, html, as_json)


@app.command()
def reproduce(
    what: Annotated[Reproduced, typer.Argument(help="What to reproduce.")],
    instances: Annotated[int, typer.Option(min=1, help="Random instances of each claim.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the instances.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the paper's theory on random tabular MDPs: the worst residual of every claim, and which do not hold.

    Example: dpr reproduce theory --instances 200
    """
    with reported(debug):
        from dataclasses import asdict

        from dpr_core.theory import checks
        from tasks.progress import StageProgress

        with StageProgress(what.value) as progress:
            identities = checks.run(seed, instances, progress.advance)
        emit({"identities": [asdict(i) for i in identities]}, as_json, lambda: checks.table(identities))


@app.command("recipes")
def list_recipes(as_json: Json = False, debug: Debug = False) -> None:
    """List the recipes that ship with dpr."""
    with reported(debug):
        from flows import recipes

        found = [{"name": name, "description": recipes.load(name).description} for name in recipes.names()]
        width = max(len(recipe["name"]) for recipe in found)
        emit(
            found,
            as_json,
            lambda: "\n".join(f"{recipe['name']:<{width}}  {recipe['description']}" for recipe in found),
        )


@app.command("config")
def show_config(
    recipe: Annotated[str, typer.Argument(help="A recipe or a .yaml file.")],
    assignments: Set = [],  # noqa: B006
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print every setting of a recipe with its meaning, as YAML that `dpr run` takes.

    With --json: the values alone, as `prefect deployment run --params` takes them under "config".
    """
    with reported(debug):
        from dpr_core.config.base import commented_yaml
        from flows import recipes

        config = recipes.load(recipe, assignments)
        emit(config.model_dump(mode="json"), as_json, lambda: commented_yaml(config).rstrip("\n"))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000, debug: Debug = False
) -> None:
    """Open the store in MLflow's web interface, on http://127.0.0.1:5000."""
    with reported(debug):
        import os
        import socket

        from tasks.tracking import Store

        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                hint = f"port {port} cannot be used ({error.strerror}); try another: dpr ui --port {port % 65535 + 1}"
                raise UsageError(hint) from None
        command = Store.open().ui_command(port)
        print(f"MLflow at http://127.0.0.1:{port} (stop with Ctrl-C)", file=sys.stderr)
        os.execvp(command[0], command)


def emit(document: Any, as_json: bool, make_view: "Callable[[], RenderableType]") -> None:
    """The JSON document or the view for people, on stdout; the view is made only where it is shown."""
    if as_json:
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    view = make_view()
    if isinstance(view, str):
        print(view)
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(view, overflow="ignore", crop=False)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Errors as a sentence on stderr and an exit status: 2 a wrong request, 1 a failure, 130 an interrupt."""
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dense_path").setLevel(logging.INFO)
    try:
        yield
    except DensePathError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        print("interrupted; nothing unfinished will be taken for whole", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        if debug:
            raise
        print(f"error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        raise SystemExit(1) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
