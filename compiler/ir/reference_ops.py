"""Standard operators whose implementation in onnx.reference is wrong or too slow to be a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..reference import Array

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun


def corrected_operators() -> tuple[type[OpRun], ...]:
    """Replacements for onnx.reference's own, by operator name."""
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):  # onnx 1.23 fails beyond 64 rows: np.choose has no more choices
        op_domain = ""

        def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
            return (
                np.take_along_axis(data, np.where(indices < 0, indices + data.shape[axis], indices), axis),
            )

    return (GatherElements,)
