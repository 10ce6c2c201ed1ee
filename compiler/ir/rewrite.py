"""The one door for graph edits: build new nodes at a place, replace old values, keep names and sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import InternalError
from ..parallel.sharding import KEY as SHARDING
from .provenance import merge_sources


class Rewriter:
    """Edits around one anchor node: ``op`` and ``const`` build, ``replace`` swaps values and cleans up.

    New nodes are inserted before the anchor, so they may read anything the anchor could read.
    A replacement takes over name, dtype, shape and sharding of the value it replaces: an intermediate that
    survives a rewrite keeps its name, which is how executables are compared layer by layer.
    """

    __slots__ = ("_new", "anchor", "graph")

    def __init__(self, anchor: ir.Node) -> None:
        if anchor.graph is None:
            raise InternalError(f"node {anchor.name!r} is in no graph")
        self.anchor = anchor
        self.graph: ir.Graph | ir.Function = anchor.graph
        self._new: list[ir.Node] = []

    @property
    def made(self) -> tuple[ir.Node, ...]:
        """The nodes built so far."""
        return tuple(self._new)

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        version: int | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Append ``op_type(inputs)`` and return its only output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, version=version, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        version: int | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append ``op_type(inputs)`` and return its ``outputs`` outputs; None attributes are left out."""
        node = ir.node(
            op_type,
            inputs,
            {name: value for name, value in attributes.items() if value is not None},
            domain=domain,
            version=version,
            num_outputs=outputs,
        )
        self.graph.insert_before(self.anchor, node)  # names the node and its outputs uniquely
        self._new.append(node)
        return node.outputs

    def const(self, array: np.ndarray[Any, Any] | ir.TensorProtocol, name: str) -> ir.Value:
        """A new initializer of the anchor's graph; ``name`` is made unique."""
        if not isinstance(self.graph, ir.Graph):
            raise InternalError("constants can't be made inside a function: inline functions first")
        unique, count = name, 0
        while unique in self.graph.initializers:
            count += 1
            unique = f"{name}_{count}"
        tensor = ir.tensor(array, name=unique)
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new`` stand for ``old`` everywhere, and drop every node that is now unused.

        The new nodes inherit the sources of all nodes that disappear.
        """
        producer = old.producer()
        if new.dtype is None:
            new.type = old.type
        if new.shape is None and old.shape is not None:
            new.shape = old.shape
        if SHARDING in old.metadata_props and SHARDING not in new.metadata_props:
            new.metadata_props[SHARDING] = old.metadata_props[SHARDING]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if new.producer() in self._new:
            name, old.name = old.name, None
            new.name = name
        dead = remove_dead([producer] if producer is not None else [])
        for node in self._new:
            merge_sources(node, dead)


def remove_dead(candidates: Sequence[ir.Node]) -> list[ir.Node]:
    """Remove nodes none of whose outputs is used, and then their producers; returns them, users first."""
    removed: list[ir.Node] = []
    pending = list(candidates)
    while pending:
        node = pending.pop()
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        producers = [v.producer() for v in node.inputs if v is not None]
        discard(node)
        removed.append(node)
        pending.extend(p for p in dict.fromkeys(producers) if p is not None)
    return removed


def discard(node: ir.Node) -> None:
    """Remove ``node``, whose outputs nobody reads; its subgraphs no longer read values of outer graphs."""
    if node.graph is None:
        raise InternalError(f"node {node.name!r} is in no graph")
    node.graph.remove(node, safe=True)
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for inner in (inner for graph in graphs for inner in graph.all_nodes()):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
