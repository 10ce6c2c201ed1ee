"""Weights that a budget rounded to float16, stored so: half the file, widened once when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import read_once
from ....compiler.program import HALVES, Program
from ...base import Note, Pass, PassContext, PassResult
from ...precision.half import FP16, half, is_exact
from ...precision.stored import storable, store

_READERS = frozenset(("MatMul", "FusedMatMul", "Gemm", "Gather", "Transpose"))
"""What reads weights; scales of blocks, which are float16 numbers too, belong to their kernels."""


@dataclass(frozen=True)
class StoreHalves(Pass):
    """Store what quantize-weights rounded to float16 in 16 bits, with a Cast that ONNX Runtime folds.

    Weights may have been joined, cut and transposed since: every float32 matrix of ``least`` elements that
    products or look-ups read and that is float16 in every element counts, in programs that have been rounded
    so. Nothing is rounded here.
    """

    name: ClassVar[str] = "store-halves"
    optional: ClassVar[bool] = False
    least: int = 1024

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every matrix of every entry; entries go on sharing theirs."""
        if not any(model.metadata_props.get(HALVES) for model in program.entries.values()):
            return PassResult()
        hits: list[Note] = []
        known: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol | None]] = {}
        for model in program.entries.values():
            for value, tensor, readers in storable(model.graph, self.least):
                if len(tensor.shape) != 2 or any(node.op_type not in _READERS for node in readers):
                    continue
                name = str(value.name)
                if id(tensor) not in known:  # the tensor is held too: an id is its own only while it lives
                    exact = is_exact(read_once(tensor), FP16)
                    known[id(tensor)] = tensor, half(tensor, name) if exact else None
                narrow = known[id(tensor)][1]
                if narrow is not None:
                    store(value, narrow, f"{name}.fp16", self.name)
                    hits.append(Note(name, "is stored in float16, as it was rounded"))
        return PassResult(len(hits), tuple(hits))
