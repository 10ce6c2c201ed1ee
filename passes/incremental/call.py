"""One call of the decode entry: its inputs, and what is computed from them once for all layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ...compiler.program import Dim
from .writer import Writer

TOKENS, SELECTED = "tokens", "selected"


class Call:
    """``ids``: int64[batch, tokens]; ``lengths``: int64[batch]; ``select``: int64[batch, selected]."""

    __slots__ = ("_made", "ids", "lengths", "select", "write")

    def __init__(self, write: Writer, tokens: str, batch: Dim) -> None:
        self.write = write
        self.ids = write.input(tokens, ir.DataType.INT64, [batch, TOKENS])
        self.lengths = write.input("past_lengths", ir.DataType.INT64, [batch])
        self.select = write.input("select", ir.DataType.INT64, [batch, SELECTED])
        self._made: dict[str, ir.Value] = {}

    def _once(self, name: str, make: Callable[[], ir.Value]) -> ir.Value:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def tokens(self) -> ir.Value:
        """int64[1]: new tokens of each row."""
        return self._once("tokens", lambda: self.write.op("Shape", self.ids, start=1, end=2))

    def positions(self) -> ir.Value:
        """int64[batch, tokens]: absolute positions of the new tokens."""
        write = self.write

        def make() -> ir.Value:
            zero, one = write.const(np.int64(0), "zero"), write.const(np.int64(1), "one")
            steps = write.op("Range", zero, write.op("Squeeze", self.tokens()), one)
            return write.op("Add", write.op("Unsqueeze", self.lengths, write.ints(1)), steps)

        return self._once("positions", make)

    def selected_positions(self) -> ir.Value:
        """int64[batch, selected]: absolute positions of the selected tokens."""
        write = self.write
        return self._once(
            "selected",
            lambda: write.op("Add", write.op("Unsqueeze", self.lengths, write.ints(1)), self.select),
        )

    def total(self) -> ir.Value:
        """int64[1]: tokens of the longest row afterwards."""
        write = self.write
        return self._once(
            "total", lambda: write.op("Add", write.op("ReduceMax", self.lengths, keepdims=1), self.tokens())
        )

    def selected(self, value: ir.Value) -> ir.Value:
        """``value`` [batch, tokens, ...] at the selected tokens."""
        write = self.write
        indices = self._once("indices", lambda: write.op("Unsqueeze", self.select, write.ints(-1)))
        return write.op("GatherND", value, indices, batch_dims=1)
