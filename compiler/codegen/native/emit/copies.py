"""Copies between views of one shape and dtype."""

from __future__ import annotations

from .base import View
from .loops import loop, read, written


def copied(source: View, target: View) -> str:
    """C that fills ``target`` from ``source``."""
    operands = [read(source, target.shape), written(target)]
    return loop(target.shape, operands, lambda names: [f"{names[1]} = {names[0]};"])
