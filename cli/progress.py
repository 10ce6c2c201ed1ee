"""Progress on stderr: stages with elapsed time, live on a terminal, plain lines elsewhere; and a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from .console import stderr

if TYPE_CHECKING:
    from rich.console import Console


class Stages:
    """The ``Progress`` that people watch: a spinner while a stage runs, a line when it is done."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.log = logging.getLogger("miaotui")
        self._depth = 0
        self._shown: Callable[[str], None] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show ``name`` with its elapsed seconds; a stage inside a stage is indented."""
        start, self._depth = time.perf_counter(), self._depth + 1
        self.log.info("%s: start", name)
        ending = "failed"
        try:
            with self._live(name):
                yield
            ending = "done"
        finally:
            self._depth -= 1
            seconds = time.perf_counter() - start
            self.log.info("%s: %s after %.3f s", name, ending, seconds)
            if not self.quiet:
                mark = "" if ending == "done" else "  failed"
                self.console.print(
                    f"{'  ' * self._depth}{name:<{30 - 2 * self._depth}}{seconds:8.2f} s{mark}"
                )

    def note(self, text: str) -> None:
        """A sentence the user should know; ``-q`` keeps it for the report."""
        self.log.info("note: %s", text)
        if not self.quiet:
            self.console.print(f"{'  ' * self._depth}note: {text}", style="yellow", soft_wrap=True)

    def count(self, done: int, total: int) -> None:
        """Tell beside the stage's name how far it has come; on a terminal only."""
        if self._shown is not None:
            self._shown(f"{done} of {total}")

    @contextmanager
    def _live(self, name: str) -> Iterator[None]:
        if self.quiet or self._depth > 1 or not self.console.is_terminal:
            yield
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        bar = Progress(*columns, console=self.console, transient=True)
        task = bar.add_task(name, total=None)
        self._shown = lambda text: bar.update(task, description=f"{name} {text}")
        try:
            with bar:
                yield
        finally:
            self._shown = None


@contextmanager
def watched(*, quiet: bool = False, verbose: bool = False, log_file: Path | None = None) -> Iterator[Stages]:
    """Progress for the work inside. What libraries print there goes to stderr: stdout is for results."""
    handler = _log_to(log_file, verbose) if log_file is not None else None
    try:
        with redirect_stdout(sys.stderr):
            yield Stages(stderr(), quiet=quiet)
    except Exception as error:
        if handler is not None:
            logging.getLogger("miaotui").error("%s", error, exc_info=error)
        raise
    finally:
        if handler is not None:
            logging.getLogger("miaotui").removeHandler(handler)
            handler.close()


def _log_to(path: Path, verbose: bool) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("miaotui")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    return handler
