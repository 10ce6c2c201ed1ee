"""Where output goes: results on stdout as table or JSON, everything else on stderr."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 1000
"""Columns of a table that no terminal shows: so wide that commands to copy stay on one line."""


class Format(StrEnum):
    """How a result is written on stdout."""

    table = "table"
    json = "json"


def stdout() -> Console:
    """The console for results. Markup is off: shapes such as ``[batch]`` are text."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout; NaN and infinity become null, which JSON can say."""
    sys.stdout.write(json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(data: Any) -> Any:
    match data:
        case dict():
            return {str(key): _plain(value) for key, value in data.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in data]
        case bool() | int() | str() | None:
            return data
        case float():
            return data if abs(data) < float("inf") else None
    if hasattr(data, "tolist"):
        return _plain(data.tolist())
    return str(data)
