"""The command that uploads a model to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import Debug, Identifier, Json, emit, reported


def push(
    artifact: Identifier,
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Such as your-name/dpr-model; it is made.")],
    part: Annotated[str | None, typer.Option(help="Which weights, as in dpr export.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    branch: Annotated[
        str | None, typer.Option("--branch", "--revision", help="A branch in place of main; made where there is none.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Take a repository that is there; its weights and card are replaced.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", "--licence", help="As the hub writes it, in place of what is known of the backbone's."
        ),
    ] = None,
    dry_run: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what would be uploaded into this new folder; upload nothing."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Upload a model to the Hugging Face hub, with a card made from its run: results, prompts, data, settings, licence.

    The token is that of `hf auth login`, or HF_TOKEN.

    Example: dpr push 3f2a your-name/dpr-model --private
    """
    with reported(debug):
        from flows.push import push as pushed
        from tasks.artifacts.store import Store

        done = pushed(
            Store.open(),
            artifact,
            repository,
            part=part,
            licence=licence,
            private=private,
            branch=branch,
            update=update,
            folder=dry_run,
        )
        emit(done, as_json, lambda: f"{done['checkpoint']} -> {done['commit'] or done['folder']}")
