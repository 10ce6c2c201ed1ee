"""ONNX Runtime's exceptions in our words: the node, the fact, one line, no paths of its own source."""

from __future__ import annotations

import re

from ..compiler.errors import CompileError, UnsupportedError
from .device_errors import device_failure

_PLACES = re.compile(r"\S*\.(?:cc|cpp|h):\d+ (?:[\w:~]+(?:\([^)]*\))?(?: const)? )?")
"""Places in ONNX Runtime's own source: ``tensorprotoutils.cc:619 ValidatePath ``."""


def translated(error: Exception, place: str, device: str = "cpu") -> CompileError:
    """An exception of ONNX Runtime as ours, naming the node where its message does.

    ``device``: what the session runs on; a CPU's arena says the same words when main memory is short.
    """
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error)).strip()
    where = place
    if node := re.search(r"running (\w+) node\. Name:'([^']*)'", text):
        where = f"{place}: node {node[2]!r} ({node[1]})"
    elif node := re.search(r"node with name '([^']*)'", text):
        where = f"{place}: node {node[1]!r}"
    if device != "cpu" and (failure := device_failure(text, where)) is not None:
        return failure
    fact = re.sub(_PLACES, "", re.sub(r"^.*Status Message: ", "", text, flags=re.DOTALL))
    fact = re.sub(r"\s+", " ", fact) or type(error).__name__
    if type(error).__name__ == "NotImplemented":
        return UnsupportedError(where, fact, "compile for another target, or replace the operator")
    if "batch_size must be 1 when sequence_length > 1" in text:
        fact = "takes several tokens of several rows only where they fill the cache"
        return CompileError(
            where, fact, "give them row by row, or compile with --disable group-query-attention"
        )
    if "allocate memory" in text or "bad_alloc" in text or isinstance(error, MemoryError):
        return CompileError(where, f"out of memory: {fact}", "give smaller inputs")
    return CompileError(where, fact)
