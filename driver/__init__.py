"""The driver joins the rooms: it alone knows frontends, passes, code generation and runtime at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compilation import compile_model as compile  # noqa: A004 - the verb's name
    from .dry_run import plan
    from .mending import repair
    from .opening import open_folder as open  # noqa: A004
    from .verification import verify

__all__ = ["compile", "open", "plan", "repair", "verify"]

_VERBS = {
    "compile": ("compilation", "compile_model"),
    "open": ("opening", "open_folder"),
    "plan": ("dry_run", "plan"),
    "repair": ("mending", "repair"),
    "verify": ("verification", "verify"),
}


def __getattr__(name: str) -> Any:
    """Verbs are loaded on first use: each brings rooms that the others don't need."""
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, function = _VERBS[name]
    return getattr(import_module(f".{module}", __name__), function)
