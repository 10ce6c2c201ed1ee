"""Weights rounded to float16: float32 numbers still, which the lowering stores in half the bytes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import HALVES
from ..approximation import Approximation
from ..base import Note, PassContext
from ..weight_uses import Reader
from .half import rounded

HALF = 16
"""Bits that stand for float16."""


class Halves:
    """Swaps weights for rounded ones; one that entries share is rounded once, and stays shared."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, tuple[ir.TensorProtocol, ir.LazyTensor]] = {}

    def put(
        self, model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol, readers: Sequence[Reader]
    ) -> Note | None:
        """Let ``readers`` of the initializer ``value``, whose contents are ``tensor``, read it rounded.

        None if it has been rounded so before.
        """
        name = str(value.name)
        if HALVES in tensor.metadata_props:
            return None
        # the tensor is held too: an id is its own only while it lives
        _, made = self._known.setdefault(id(tensor), (tensor, rounded(tensor, name)))
        made.metadata_props[HALVES] = model.metadata_props[HALVES] = "1"
        if len(value.uses()) == len(readers):
            value.const_value = made
        else:
            apart = Rewriter(readers[0][0]).const(made, f"{name}.half")
            for node, index in readers:
                node.replace_input_with(index, apart)
        rows, columns = tensor.shape.numpy()
        return Note(name, f"{rows} x {columns} in float16")


def as_half(tensor: ir.TensorProtocol, context: PassContext) -> Approximation:
    """The weight rounded; products read what is stored, or float32 again where that is made on loading."""
    nbytes = tensor.nbytes // 2
    array = rounded(tensor, str(tensor.name)).numpy()
    return Approximation(array, nbytes, nbytes if context.reads_halves else tensor.nbytes)
