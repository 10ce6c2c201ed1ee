"""Progress of a compile: named stages with elapsed time, for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol


class Progress(Protocol):
    """Told about stages and notes while a compile runs; the command line draws them on stderr."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Entered when the stage starts, left when it ends."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know, in a sentence."""
        ...

    def count(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts of the stage that runs are done."""
        ...


class Silent:
    """Shows nothing: the default in Python."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Nothing to draw."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Nothing to draw."""

    def count(self, done: int, total: int) -> None:
        """Nothing to draw."""


@dataclass(slots=True)
class Journal:
    """Forwards to a Progress and remembers stages and notes for the report."""

    progress: Progress
    stages: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the stage in seconds, also when it fails."""
        start = time.perf_counter()
        try:
            with self.progress.stage(name):
                yield
        finally:
            self.stages.append((name, time.perf_counter() - start))

    def note(self, text: str) -> None:
        """Keep and forward ``text``; the same note is kept once."""
        if text not in self.notes:
            self.notes.append(text)
            self.progress.note(text)

    def count(self, done: int, total: int) -> None:
        """Forward how far the stage has come."""
        self.progress.count(done, total)
