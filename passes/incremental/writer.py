"""Writer: builds the decode graph, copying nodes of the whole-sequence graph with their names and sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.ir.provenance import add_passes
from ...compiler.ir.rewrite import remove_dead
from ...compiler.ir.shapes import infer_model_shapes
from ...compiler.program import Dim

PASS = "derive-cache"


class Writer:
    """``graph``: what is built; ``copies``: values of the source that are the same in every call."""

    __slots__ = ("_constants", "_interface", "_taken", "copies", "graph")

    def __init__(self, source: ir.Graph, name: str = "decode") -> None:
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports=dict(source.opset_imports))
        self._taken = {str(v.name) for v in source.inputs} | {str(n) for n in source.initializers}
        self._taken |= {str(v.name) for node in source for v in node.outputs}
        self._taken |= {str(node.name) for node in source}
        self._constants: dict[tuple[str, bytes], ir.Value] = {}
        self.copies: dict[ir.Value, ir.Value] = {}
        self._interface: set[str] = set()

    def name(self, wanted: str) -> str:
        """``wanted``, or with a number behind it if the source or this graph has it already."""
        unique, count = wanted, 0
        while unique in self._taken:
            count += 1
            unique = f"{wanted}_{count}"
        self._taken.add(unique)
        return unique

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """A graph input; a value of the source that is called the same gets another name."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.reserve(name)
        self.graph.inputs.append(value)
        return value

    def reserve(self, *names: str) -> None:
        """Keep names of inputs and outputs for them."""
        self._interface.update(names)
        self._taken.update(names)

    def output(self, value: ir.Value, name: str) -> None:
        """Make ``value`` the next graph output, called ``name``."""
        value.name = name
        self.graph.outputs.append(value)

    def model(self, ir_version: int) -> ir.Model:
        """The finished graph, without what nothing reads."""
        remove_dead([n for n in self.graph if not any(o.uses() or o.is_graph_output() for o in n.outputs)])
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
        # cloned, as a graph only knows the names of initializers it was made with when it makes up names
        made = ir.Model(self.graph, ir_version=ir_version).clone()
        infer_model_shapes(made)
        return made

    def const(self, array: Any, name: str = "const") -> ir.Value:
        """An initializer; equal arrays are one."""
        array = np.asarray(array)
        key = f"{array.dtype}{array.shape}", array.tobytes()
        if key not in self._constants:
            unique = self.name(name)
            tensor = ir.tensor(array, name=unique)
            value = ir.Value(
                name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.const(np.array(values, np.int64), "ints")

    def op(
        self, op_type: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """The output of a new node; ``dtype`` where it is not that of the first input."""
        return self.ops(op_type, *inputs, dtype=dtype, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int = 1,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node."""
        given = {k: v for k, v in attributes.items() if v is not None}
        name = self.name(f"{self.graph.name}.{op_type}")
        node = ir.node(op_type, inputs, given, domain=domain, num_outputs=outputs, name=name)
        first = next((v for v in inputs if v is not None), None)
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else f"{name}.{index}"
            kind = dtype if dtype is not None else None if first is None else first.dtype
            value.type = None if kind is None else ir.TensorType(kind)
        add_passes(node, [PASS])
        self.graph.append(node)
        return node.outputs

    def copy(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], named: bool = True
    ) -> Sequence[ir.Value]:
        """``node`` over other inputs, with its types and sources; ``named``: with the names of its values."""
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            node.attributes.values(),
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=str(node.name) if named else self.name(f"{self.graph.name}.{node.name}"),
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, made.outputs, strict=True):
            free = named and old.name not in self._interface
            new.name = old.name if free or not old.name else self.name(f"{self.graph.name}.{old.name}")
            new.type = old.type
        add_passes(made, () if named else [PASS])
        self.graph.append(made)
        return made.outputs

    def static(self, value: ir.Value) -> ir.Value:
        """The same for a value that depends on no input: weights share their tensor with the source."""
        found = self.copies.get(value)
        if found is not None:
            return found
        node = value.producer()
        if node is None:
            made = ir.Value(
                name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
            )
            self.graph.register_initializer(made)
            self.copies[value] = made
            return made
        inputs = [None if v is None else self.static(v) for v in node.inputs]
        for old, new in zip(node.outputs, self.copy(node, inputs), strict=True):
            new.shape = old.shape
            self.copies[old] = new
        return self.copies[value]
