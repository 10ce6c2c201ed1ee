"""Rotary embeddings that GroupQueryAttention does itself, from tables over positions that layers share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ....compiler.reference import Array
from ...base import NoMatch, decline
from .rotary_table import table_of

_PAIRS = 8
"""The kernel rotates pairs in multiples of this many, in heads of multiples of twice as many."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotary embeddings of query and key, to be done by the kernel."""

    query: ir.Value
    key: ir.Value
    cos: Array
    sin: Array
    interleaved: int


@dataclass(slots=True)
class Rotations:
    """Those of a graph's layers; their tables have ``context`` positions, each is made and stored once."""

    context: int | None
    _tables: dict[tuple[ir.Value | None, ...], Array | NoMatch] = field(default_factory=dict)
    _stored: dict[tuple[ir.DataType, bytes], ir.Value] = field(default_factory=dict)

    def of(self, query: ir.Value, key: ir.Value, lengths: ir.Value, size: int) -> Rotation | None:
        """How the kernel is to rotate; None if nothing is rotated. Raises: NoMatch if it can't."""
        makers = [value.producer() for value in (query, key)]
        turned = [n for n in makers if n is not None and n.op_type == "RotaryEmbedding" and n.domain == ""]
        if len(turned) < 2:
            return None
        if self.context is None:
            decline("nothing bounds the positions")
        first, second = turned
        sources = first.inputs[0], second.inputs[0]
        assert sources[0] is not None and sources[1] is not None
        styles = [n.attributes.get_int("interleaved", 0) for n in turned]
        if styles[0] != styles[1]:
            decline("queries and keys are rotated in different styles")
        cos, sin = (self._table(first, index, lengths) for index in (1, 2))
        for index, table in ((1, cos), (2, sin)):
            other = self._table(second, index, lengths)
            if table is not other and not np.array_equal(table, other):
                decline("queries and keys are rotated differently")
        pairs = cos.shape[1]
        if any(n.attributes.get_int("rotary_embedding_dim", 0) not in (0, 2 * pairs) for n in turned):
            decline("the tables are wider than what they rotate")
        if 2 * pairs > size or pairs % _PAIRS or size % (2 * _PAIRS):
            decline(f"the kernel does not rotate {pairs} pairs of heads of {size}")
        return Rotation(sources[0], sources[1], cos, sin, styles[0])

    def stored(self, at: Rewriter, table: Array, like: ir.Value, name: str) -> ir.Value:
        """The table as an initializer of the dtype of ``like``, one for all layers."""
        assert like.dtype is not None
        array = np.ascontiguousarray(table.astype(like.dtype.numpy()))
        case = like.dtype, array.tobytes()
        if case not in self._stored:
            self._stored[case] = at.const(array, f"rotary_{name}")
        return self._stored[case]

    def _table(self, rotary: ir.Node, index: int, lengths: ir.Value) -> Array:
        case = (rotary.inputs[index], rotary.inputs[3] if len(rotary.inputs) > 3 else None)
        if case not in self._tables:
            assert self.context is not None
            try:
                self._tables[case] = table_of(rotary, index, lengths, self.context)
            except NoMatch as left:
                self._tables[case] = left
        found = self._tables[case]
        if isinstance(found, NoMatch):
            raise found
        return found
