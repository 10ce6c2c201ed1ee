"""The source framework's own execution of a model: what an executable is proved against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Arrays: TypeAlias = dict[str, Array]


class Reference(Protocol):
    """Runs the source model; made by a frontend, or from golden data by the runtime."""

    name: str
    """Framework and version: ``torch 2.13.0``."""

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the source for ``inputs``; names are those of the program's entry ``main``."""
        ...

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the source's layers by layer path, for paths in ``Program.layers``; may be empty."""
        ...
