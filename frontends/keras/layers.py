"""Follow Keras layer calls: their paths go into the traced graph, or their outputs into a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

KEY = "miaotui.layers"
SEPARATOR = "/"


@contextmanager
def traced_calls() -> Iterator[None]:
    """Annotate every traced torch operation with the path of the Keras layer calls it happens in."""
    from torch.fx import traceback

    with traceback.preserve_node_meta(), _calls(lambda path: traceback.annotate({KEY: path}), None):
        yield


@contextmanager
def recorded_calls(record: Callable[[str, Any], None]) -> Iterator[None]:
    """Tell ``record`` the path and the result of every layer call, inner calls first."""
    with _calls(lambda path: nullcontext(), record):
        yield


@contextmanager
def _calls(
    inside: Callable[[str], AbstractContextManager[Any]], record: Callable[[str, Any], None] | None
) -> Iterator[None]:
    import keras

    original = keras.layers.Layer.__call__
    stack: list[str] = []
    counts: dict[str, int] = {}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The outermost call is the model itself: its path is empty.
        if not stack:
            counts.clear()
        own = SEPARATOR.join([*stack[1:], self.name]) if stack else ""
        count = counts[own] = counts.get(own, -1) + 1
        path = f"{own}@{count}" if count and own else own
        stack.append(path.rpartition(SEPARATOR)[2] or self.name)
        try:
            with inside(path):
                result = original(self, *args, **kwargs)
        finally:
            stack.pop()
        if record is not None and path:
            record(path, result)
        return result

    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original


def write_module_stacks(exported: Any, root: str) -> None:
    """Put annotated paths where torch keeps module paths, so that sources and layers follow."""
    for node in exported.graph.nodes:
        path = (node.meta.get("custom") or {}).get(KEY)
        if path is None:
            continue
        parts = path.split(SEPARATOR) if path else []
        stack = {"root": ("", "keras.Model")}
        for depth in range(1, len(parts) + 1):
            stack[f"layer{depth}"] = (f"{root}.{SEPARATOR.join(parts[:depth])}", "keras.Layer")
        node.meta["nn_module_stack"] = stack
