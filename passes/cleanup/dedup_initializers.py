"""Equal initializers are stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.program import Program
from ..base import Note, Pass, PassContext, PassResult


@dataclass(frozen=True)
class DedupInitializers(Pass):
    """Merge initializers of equal dtype, shape and content.

    ``limit``: elements up to which contents are compared; larger tensors are merged only where they
    are the same tensor object or the same bytes of an external file, so no weight is read.
    """

    name: ClassVar[str] = "dedup-initializers"
    limit: int = 1 << 14

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Keep the first of equals in every graph."""
        hits: list[Note] = []
        for graph in program.graphs():
            if not isinstance(graph, ir.Graph):
                continue
            first: dict[Hashable, ir.Value] = {}
            for name, value in list(graph.initializers.items()):
                if value.is_graph_input() or value.is_graph_output() or value.const_value is None:
                    continue
                kept = first.setdefault(self._key(value.const_value), value)
                if kept is value:
                    continue
                value.replace_all_uses_with(kept)
                del graph.initializers[name]
                hits.append(Note(name, f"equals {kept.name}"))
        return PassResult(len(hits), tuple(hits))

    def _key(self, tensor: ir.TensorProtocol) -> Hashable:
        kind = (tensor.dtype, tuple(tensor.shape))
        if isinstance(tensor, ir.ExternalTensor):
            return (*kind, str(tensor.path), tensor.offset, tensor.length)
        if tensor.size > self.limit or isinstance(tensor, ir.LazyTensor):
            return id(tensor)
        if tensor.dtype == ir.DataType.STRING:
            return (*kind, tuple(tensor.numpy().ravel().tolist()))
        return (*kind, hashlib.sha256(tensor.tobytes()).digest())
