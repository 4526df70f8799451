"""What all commands share: options, output, and error reports."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dpr_core.cores import MOST_PROCESSES
from dpr_core.errors import DensePathError
from dpr_core.redaction import redact, redact_logs
from dpr_core.text import escape_control_lines, json_text
from flows.cli import completion
from tasks.running.shutdown import terminations_raise

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's log.")]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a setting; may be given several times.",
        autocompletion=completion.fields,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Make it again even if nothing changed.")]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan", "--dry-run", help="Say what would run and why, and what judging it would cost; run nothing."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="A method of the family for the trained policy, such as srppo or exopd (docs/paper-index.md).",
        autocompletion=completion.presets,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_PROCESSES,
        help="Stages that are computed at once on this machine, each with a GPU of its own; if left out 1, and for "
        "sweeps on the lab as many as cores can be used.",
    ),
]
Place = Annotated[
    list[str],
    typer.Option(
        "--place",
        metavar="STAGE,...=POOL",
        help="Have stages done by the workers of a Prefect work pool, or of one of its queues as POOL/QUEUE; * stands "
        "for all that are not named. May be given several times.",
    ),
]
RESUME = "; go on with: dpr resume"
"""What follows an interrupt of a command that makes artifacts."""

Recipe = Annotated[
    str, typer.Argument(help="A recipe (see `dpr recipes`) or a .yaml file.", autocompletion=completion.recipes)
]
Identifier = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="An artifact ID, a unique prefix of one, or a runs:/ URI.",
        autocompletion=completion.ids,
    ),
]


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice where only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(list(args))[2]
        for option in given:
            single = option.param_type_name == "option" and not option.multiple and not option.is_flag
            if single and given.count(option) > 1:
                raise typer.BadParameter(f"{option.opts[0]} is given twice; keep one of them", ctx=ctx)
        return super().parse_args(ctx, args)


def emit(document: Any, as_json: bool, make_view: "Callable[[], RenderableType]") -> None:
    """The JSON document or the view for people, on stdout; the view is made only where it is shown."""
    if as_json:
        print(json_text(document, indent=2))
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
def reported(debug: bool, then: str = "") -> Iterator[None]:
    """Errors as a sentence on stderr and an exit status: 2 a wrong request, 1 a failure, 130 an interrupt (Ctrl-C,
    SIGTERM, SIGHUP).

    `then` names the command to give after an interrupt.
    """
    level = logging.INFO if debug else logging.WARNING
    redact_logs()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_EscapingFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("dense_path").setLevel(logging.INFO)
    try:
        with terminations_raise():
            yield
    except DensePathError as error:
        _show_traceback(debug)
        print(f"error: {escape_control_lines(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except (KeyboardInterrupt, typer.Abort):
        print(f"interrupted; nothing unfinished will be taken for whole{then}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    except Exception as error:
        _show_traceback(debug)
        hint = "" if debug else " (--debug shows where)"
        print(f"error: {type(error).__name__}: {escape_control_lines(redact(str(error)))}{hint}", file=sys.stderr)
        raise SystemExit(1) from None


def _show_traceback(debug: bool) -> None:
    if debug:
        print(redact(traceback.format_exc()), file=sys.stderr, end="")


class _EscapingFormatter(logging.Formatter):
    """A message, too, may quote data, an answer or a server."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_control_lines(super().format(record))
