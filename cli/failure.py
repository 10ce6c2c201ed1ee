"""What a verb does when it fails: an error in lines without a traceback, and the exit code of its kind."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from ..compiler.errors import CompileError, InternalError, MiaotuiError, Problem

INTERRUPTED, BROKEN_PIPE = 130, 141
"""128 + SIGINT, 128 + SIGPIPE: what a shell expects of a program that these signals end."""


class Verb(TyperCommand):
    """A command whose exceptions become messages and exit codes (see ``compiler.errors``)."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. Raises: typer.Exit with the exit code if it fails."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            # The reader has gone; the interpreter must not complain when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except KeyboardInterrupt:
            _say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            raise typer.Exit(report(error, trace=bool(ctx.params.get("verbose")))) from None


def report(error: Exception, *, trace: bool = False) -> int:
    """Write ``error`` on stderr, with its traceback if asked; its exit code."""
    if trace:
        import traceback

        sys.stderr.write("".join(traceback.format_exception(error)))
    match error:
        case CompileError():
            for problem in error.problems:
                _problem(problem)
            return error.exit_code
        case MiaotuiError() if not isinstance(error, InternalError):
            _say(f"error: {error}", "red")
            return error.exit_code
        case OSError() if error.strerror and error.filename is not None:
            _problem(Problem(str(error.filename), error.strerror.lower()))
            return CompileError.exit_code
        case MemoryError():
            _problem(
                Problem("memory", "this machine has too little", "use a machine with more, or smaller sizes")
            )
            return CompileError.exit_code
    from .. import __version__

    kind = "" if isinstance(error, InternalError) else f"{type(error).__name__}: "
    _say(f"internal error: {kind}{error}", "red")
    _say(f"fix: this is a defect of miaotui {__version__}; report it with the model and the output of -v")
    return InternalError.exit_code


def _problem(problem: Problem) -> None:
    _say(f"error: {problem.place}: {problem.fact}", "red")
    if problem.fix:
        _say(f"fix: {problem.fix}")


def _say(line: str, style: str | None = None) -> None:
    from .console import stderr

    stderr().print(line, style=style, soft_wrap=True)
