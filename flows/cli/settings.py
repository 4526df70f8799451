"""Commands about recipes and their settings, and the web interface."""

import sys
from typing import Annotated

import typer

from dpr_core.errors import UsageError
from flows.cli.console import Debug, Json, Preset, Set, emit, reported


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


def show_config(
    recipe: Annotated[str, typer.Argument(help="A recipe or a .yaml file.")],
    assignments: Set = [],  # noqa: B006
    preset: Preset = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print every setting of a recipe with its meaning, as YAML that `dpr run` takes.

    With --json: the values alone, as `prefect deployment run dense-path/run` takes them for `recipe`.
    """
    with reported(debug):
        from dpr_core.config.base import commented_yaml
        from flows import recipes

        config = recipes.load(recipe, assignments, preset)
        emit(config.model_dump(mode="json"), as_json, lambda: commented_yaml(config).rstrip("\n"))


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000, debug: Debug = False
) -> None:
    """Open the store in MLflow's web interface, on http://127.0.0.1:5000."""
    with reported(debug):
        import os
        import socket

        from tasks.artifacts.store import Store

        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                hint = f"port {port} cannot be used ({error.strerror}); try another: dpr ui --port {port % 65535 + 1}"
                raise UsageError(hint) from None
        command, environment = Store.open().ui_command(port)
        print(f"MLflow at http://127.0.0.1:{port} (stop with Ctrl-C)", file=sys.stderr)
        os.execvpe(command[0], command, environment)
