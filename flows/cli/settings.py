"""Commands about recipes and their settings, and the web interface."""

import sys
from ipaddress import ip_address
from itertools import chain
from typing import Annotated

import typer

from dpr_core.errors import UsageError
from flows.cli.console import Debug, Json, Preset, Recipe, Set, emit, reported

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = ("0.0.0.0", "::")


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
    recipe: Recipe,
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
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address or name of this machine to listen at, where others are to reach it.")
    ] = LOOPBACK,
    debug: Debug = False,
) -> None:
    """Open the store in MLflow's web interface, on http://127.0.0.1:5000.

    It asks for no password: with --host, whoever reaches the port can read, change and delete runs. It answers under
    this machine's name and addresses; MLFLOW_SERVER_ALLOWED_HOSTS gives it others.
    """
    with reported(debug):
        import errno
        import os
        import socket

        from tasks.artifacts.store import Store

        try:
            [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UsageError(
                f"--host: {host!r} is no address or name of this machine; 0.0.0.0 stands for all"
            ) from None
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise UsageError(f"--host: {host} is not an address of this machine") from None
                hint = f"port {port} cannot be used ({error.strerror}); try another: dpr ui --port {port % 65535 + 1}"
                raise UsageError(hint) from None
        store = Store.open()
        command, environment = store.ui_command(port, host)
        names = _names(host)
        if host != LOOPBACK:
            # MLflow answers only under names that it is told of.
            served = [f"{name}:{port}" for name in names]
            allowed = ",".join([*served, f"localhost:{port}", f"{LOOPBACK}:{port}"])
            environment.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", allowed)
            environment.setdefault("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", ",".join(f"http://{name}" for name in served))
            print("without a password: whoever reaches it can read, change and delete runs", file=sys.stderr)
        print(f"MLflow at http://{names[0]}:{port}/{store.page} (stop with Ctrl-C)", file=sys.stderr)
        os.execvpe(command[0], command, environment)


def _names(host: str) -> list[str]:
    """Those under which others reach a server that listens there."""
    import socket

    import psutil

    if host not in EVERY_ADDRESS:
        return [f"[{host}]" if ":" in host else host]
    families = (socket.AF_INET, socket.AF_INET6)
    found = [each for each in chain(*psutil.net_if_addrs().values()) if each.family in families]
    # A zone is no part of an address in a browser.
    addresses = [each.address.partition("%")[0] for each in found]
    own = (f"[{each}]" if ":" in each else each for each in addresses if not ip_address(each).is_loopback)
    return list(dict.fromkeys([socket.gethostname(), *own]))
