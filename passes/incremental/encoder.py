"""The encoder's entry: what a decoder reads of a source, computed once for each source."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.program import dim_of
from ..base import decline
from .evaluation import FAILURES, SizedEvaluator, equal, shape_dims
from .masks import allowed
from .values import Values, is_static
from .writer import Writer


class Encoder:
    """Writes entry ``encode``: inputs are the source's, outputs what the decoder reads of it."""

    __slots__ = ("_copies", "_outputs", "_rows", "_values", "write")

    def __init__(self, values: Values) -> None:
        self._values = values
        self.write = Writer(values.graph, "encode")
        self._copies: dict[ir.Value, ir.Value] = {}
        self._rows: dict[ir.Value, ir.Value] = {}
        self._outputs: dict[ir.Value, str] = {}
        for value in values.sources:
            assert value.dtype is not None and value.shape is not None
            shape = [dim_of(d) for d in value.shape]
            self._copies[value] = self.write.input(str(value.name), value.dtype, shape)

    def copy(self, value: ir.Value) -> ir.Value:
        """A value that depends on the source alone."""
        if value in self._values.crossed or value in self._values.data:
            decline(f"{value.name} depends on the tokens")
        return self._copy(value, self._copies, named=True)

    def row(self, value: ir.Value) -> ir.Value:
        """A value as it is for one token of every row."""
        return self._copy(value, self._rows, named=False)

    def output(self, value: ir.Value, name: str) -> None:
        """Make ``value`` an output called ``name``; each name has a value of its own."""
        if value in self._outputs or value.producer() is None:
            value = self.write.op("Identity", value)
        self._outputs[value] = name
        self.write.reserve(name)
        self.write.output(value, name)

    def model(self, ir_version: int) -> ir.Model:
        """The finished entry."""
        return self.write.model(ir_version)

    def _copy(self, value: ir.Value, made: dict[ir.Value, ir.Value], named: bool) -> ir.Value:
        if is_static(value, self._values):
            return self.write.static(value)
        shared = self._copies if value in self._values.encoded else made
        if value in shared:
            return shared[value]
        node = value.producer()
        if node is None:
            decline(f"the source is read together with {value.name}")
        if node.op_type == "Shape" and node.inputs[0] in self._values.data:
            parts = [self._size(d) for d in shape_dims(node)]
            shared[value] = parts[0] if len(parts) == 1 else self.write.op("Concat", *parts, axis=0)
            return shared[value]
        inputs = [None if v is None else self._copy(v, made, named) for v in node.inputs]
        encoded = shared is self._copies
        for old, new in zip(node.outputs, self.write.copy(node, inputs, named=encoded), strict=True):
            shared[old] = new
            new.shape = old.shape if encoded else None
        return shared[value]

    def _size(self, dim: int | ir.SymbolicDim) -> ir.Value:
        """A size of the decoder: its batch is the source's, its length 1."""
        size = dim_of(dim)
        if isinstance(size, int):
            return self.write.ints(size)
        if size == self._values.sequence:
            return self.write.ints(1)
        for source in self._values.sources:
            if size in (places := [dim_of(d) for d in source.shape or ()]):
                axis, given = places.index(size), self._copies[source]
                return self.write.op("Shape", given, start=axis, end=axis + 1, dtype=ir.DataType.INT64)
        return decline(f"the size {size} is neither the batch nor the source's")


def row_of_mask(mask: ir.Value, evaluator: SizedEvaluator) -> bool:
    """Whether a mask of attention to the source masks anything; every token must see the same.

    Raises: NoMatch if tokens see different parts of the source.
    """
    masks = False
    for source in (4, 7):
        evaluator = _with_source(evaluator, source)
        for sequence in (1, 2, 5):
            try:
                one, many = (evaluator.at(mask, 2, n) for n in (1, sequence))
            except FAILURES as error:
                decline(f"mask {mask.name} can't be evaluated ({type(error).__name__})")
            if many.ndim < 2 or not equal(np.broadcast_to(one, many.shape), many):
                decline(f"tokens see different parts of the source by {mask.name}")
            masks |= not allowed(many).all() or (many.dtype != np.bool_ and bool((many != 0).any()))
    return masks


def _with_source(evaluator: SizedEvaluator, source: int) -> SizedEvaluator:
    made = SizedEvaluator(evaluator.values)
    made.source = source
    return made
