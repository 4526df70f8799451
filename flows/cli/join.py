"""The command that joins a multi-machine stage: the rendezvous of every machine but the first."""

from typing import Annotated

import typer

from flows.cli.console import Debug, reported


def join(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="launch.main_address and launch.main_port of the run.")
    ],
    once: Annotated[bool, typer.Option("--once", help="End after one stage.")] = False,
    debug: Debug = False,
) -> None:
    """Have this machine do its share of every stage that another one runs with launch.machines above 1.

    The run itself is started on the first machine alone; both may be started first. DPR_HOME has to be the same folder
    on all of them, on a file system that they share: there lies the secret by which they know each other. It waits for
    one stage after the other until Ctrl-C.

    Example: dpr join 10.0.0.1:29555, while there runs dpr run llama-3.1-8b-2nodes --set launch.main_address=10.0.0.1
    """
    with reported(debug):
        from tasks.launch.joining import join as take_part

        take_part(address, once)
