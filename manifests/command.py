"""A command line of ours: the typer application that both programs are, and the one way out of every command.

An error of ours becomes one sentence on stderr and its exit code, an interrupt 130, a closed pipe a quiet end; a
traceback means a defect and exits with a code of its own.
"""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from io import TextIOWrapper
from typing import Annotated, ParamSpec

import typer

from .. import __version__
from .console import err, say
from .errors import DEFECT_EXIT_CODE, INTERRUPTED_EXIT_CODE, MoepackError, StorageError

P = ParamSpec("P")


def application(name: str, purpose: str, exit_codes: str) -> typer.Typer:
    """An application without commands yet; it knows --help, -h and --version."""
    app = typer.Typer(
        help=purpose,
        epilog=exit_codes,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"{name} {__version__}")
            raise typer.Exit

    wanted = typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and leave.")

    @app.callback()
    def options(version: Annotated[bool, wanted] = False) -> None:
        """Options that stand before a command."""

    return app


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """`command` under `run` already inside typer, which would give a broken pipe the exit code of a bad pack."""

    @wraps(command)
    def inside(*args: P.args, **kwargs: P.kwargs) -> None:
        run(lambda: command(*args, **kwargs))

    return inside


def main(app: Callable[[], None]) -> None:
    """Run an application to its exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ?, and the work goes on
    try:
        run(app)
    except Exception:
        traceback.print_exc()
        sys.exit(DEFECT_EXIT_CODE)  # Python's own 1 would mean that bytes differ


def run(command: Callable[[], None]) -> None:
    """Run a command to its exit."""
    try:
        command()
    except MoepackError as error:
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _leave(f"{error.strerror or error}: {error.filename}", StorageError.exit_code)


def _leave(sentence: str, code: int) -> None:
    err.print("[bold red]error:[/]", end=" ")
    say(sentence)
    sys.exit(code)
