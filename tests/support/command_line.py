"""Types of the command line's fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Call: TypeAlias = Callable[..., Any]
"""``call("verb", argument, …)``: exit_code, stdout and stderr of the command line."""
