"""The application: its commands, its log, and the one place where errors become messages and exit codes.

stdout carries the result, stderr the log. Exit codes: 0 done, 1 an error of ours or Ctrl-C, 2 wrong usage.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from secateur._version import __version__
from secateur.cli import compare, compress, evaluate, export, inspect, measure, prune, recipe, sparsify
from secateur.errors import SecateurError


@contextmanager
def boundary() -> Iterator[None]:
    """Turn what may go wrong into one message and exit code 1; what remains is a bug and shows its traceback."""
    try:
        yield
        sys.stdout.flush()
    except SecateurError as error:
        raise _failed(str(error)) from None
    except KeyboardInterrupt:
        raise _interrupted() from None
    except RuntimeError as error:
        # Python 3.11 wraps what is raised while a class is made, as in an import
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise _interrupted() from None
        raise
    except MemoryError:
        raise _failed("out of memory. Use a smaller model, input shape or batch size.") from None
    except OSError as error:
        # nothing more can be written to a closed pipe or a full disk, not even when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from None
        raise _failed(f"the system refused: {error}. Check the disk and the paths.") from None


def _failed(message: str) -> typer.Exit:
    sys.stderr.write(f"secateur: error: {message}\n")
    return typer.Exit(1)


def _interrupted() -> typer.Exit:
    # Python 3.11 remembers an interrupt that passed through exec("…"), as of a dataclass in an import, even when it is
    # caught, and then ends `python -m` by signal; each new exec makes it forget
    exec("")  # noqa: S102
    return _failed("interrupted. What was there before is unchanged.")


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with boundary():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make trained neural networks smaller and faster, and see what that did.",
)
for command in (
    *(compress.demo, inspect.inspect, prune.prune, sparsify.sparsify, compress.compress),
    *(evaluate.evaluate, measure.measure, compare.compare, export.export, recipe.recipe),
):
    app.command()(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"secateur {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No log on stderr, only errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Set the log up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("secateur: %(message)s"))
    log = logging.getLogger("secateur")
    log.handlers = [handler]
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def main() -> None:
    """Run the command line."""
    app(prog_name="secateur")
