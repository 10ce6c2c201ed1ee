"""What a frontend hands over: the program, and the source framework's own execution of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..compiler.program import Program

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]


class Reference(Protocol):
    """The source framework running the model: what an executable is proved against."""

    name: str
    """Framework and version: ``torch 2.13.0``."""

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Outputs of the source for ``inputs``; names are those of the program's entry ``main``."""
        ...

    def layers(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        """Outputs of the source's layers by layer path, for the paths in ``Program.layers``."""
        ...


@dataclass(slots=True)
class Import:
    """A frontend's result. ``examples``: inputs the user gave, if any, by input name."""

    program: Program
    reference: Reference
    examples: Arrays | None = None
