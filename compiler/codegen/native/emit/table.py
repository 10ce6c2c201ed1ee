"""Every operator that native code is emitted for, by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

import onnx_ir as ir

from .base import Operator


@cache
def operators() -> dict[str, Operator]:
    """Emitters by operator (``Add``, ``miaotui::Linear``): the ``OPERATORS`` of every file of this folder."""
    found: dict[str, Operator] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != "table":
            family = importlib.import_module(f".{module.name}", __package__)
            found.update(getattr(family, "OPERATORS", {}))
    return found


def operator_of(node: ir.Node) -> Operator | None:
    """How ``node`` is emitted; None if it is not."""
    name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
    return operators().get(name)
