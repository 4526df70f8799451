"""The `dpr` command line. Imports what a command needs only when that command runs, so that --help is quick."""

from typing import Annotated

import typer

from flows.cli import (
    benchmark,
    bring,
    costs,
    experiments,
    inspect,
    job,
    parity,
    plan,
    push,
    rate,
    resume,
    run,
    settings,
)
from flows.cli.console import OnceCommand

app = typer.Typer(
    name="dpr",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Dense-Path REINFORCE: demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers.

    Every stage makes an artifact with an ID. What is there already is reused; any stage can be made again by its ID.

    [bold]Start here[/bold]

      dpr run demo            the whole method on the embedded lab, in minutes

      dpr artifacts           what has been made

      dpr import FINAL REFERENCE --data FILE   two checkpoints of SFT that you have

      dpr resume              go on with what was interrupted

      dpr rerun ID --plan --downstream --set reference=0.3   what would change

      dpr score ID --text "Start at 1, add 2." "The answer is 3."   token rewards

    Everything lives in DPR_HOME (default: .dpr in the current folder).""",
)


def _version(asked: bool) -> None:
    if asked:
        from dpr_core import __version__

        print(f"dpr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


for command in (
    run.run,
    plan.plan,
    job.job,
    run.rerun,
    resume.resume,
    experiments.sweep,
    experiments.reproduce,
    inspect.artifacts,
    inspect.show,
    inspect.diff,
    inspect.verify,
    inspect.export,
    inspect.promote,
    push.push,
    inspect.backbone,
    resume.gc,
):
    app.command(cls=OnceCommand)(command)
app.command(cls=inspect.ScoreCommand)(inspect.score)
benchmark.app.command(cls=OnceCommand)(rate.rate)
benchmark.app.command(cls=OnceCommand)(parity.parity)
app.add_typer(benchmark.app, name="benchmark")
app.command(cls=OnceCommand)(costs.costs)
app.command("open", cls=OnceCommand)(inspect.open_page)
app.command("import", cls=OnceCommand)(bring.import_checkpoints)
app.command("recipes", cls=OnceCommand)(settings.list_recipes)
app.command("config", cls=OnceCommand)(settings.show_config)
app.command("ui", cls=OnceCommand)(settings.ui)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
