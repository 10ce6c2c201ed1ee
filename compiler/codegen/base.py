"""The protocol a backend's code generator follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from ..manifest import Segment
from ..options import Target
from ..program import Program
from ..weights import WeightStore


@dataclass(frozen=True, slots=True)
class Build:
    """What a backend wrote: files by entry, relative to the variant's folder, and its runner's settings.

    ``segments``: of each entry, if several backends take turns, their files relative to the same folder.
    """

    entries: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    segments: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)


class Backend(Protocol):
    """Turns a lowered program into files. Passes that lower for it live in ``passes/lowering/<name>``."""

    name: str

    def supports(self, node: ir.Node, target: Target) -> str | None:
        """None if the backend runs ``node`` on ``target`` itself, else the reason it can't."""
        ...

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        """Write the program's files into ``folder``, its large tensors into the shared ``weights``."""
        ...
