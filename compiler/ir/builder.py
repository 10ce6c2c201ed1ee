"""Builder: small models written as a few lines, for tests, examples and documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import InternalError
from ..program import OPSET, Dim, DimRange, Program
from .provenance import Source, set_sources
from .shapes import infer_model_shapes

FLOAT, FLOAT16, INT64, INT32, BOOL = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL
)  # fmt: skip


class Builder:
    """Builds one graph; ``model()`` or ``program()`` finishes it with shapes inferred.

    >>> b = Builder()
    >>> x = b.input("x", ("batch", 4))
    >>> y = b.op("Relu", b.op("MatMul", x, b.weight("w", np.ones((4, 2)))))
    >>> b.output(y, "y")
    >>> str(b.program().outputs()[0])
    'y: float32[batch, 2]'
    """

    __slots__ = ("graph", "opset")

    def __init__(self, opset: int = OPSET, name: str = "main") -> None:
        self.opset = opset
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": opset})

    def input(self, name: str, shape: Sequence[Dim] | None, dtype: ir.DataType = FLOAT) -> ir.Value:
        """A graph input: ``shape`` of sizes, symbol names and None."""
        value = ir.Value(
            name=name, type=ir.TensorType(dtype), shape=None if shape is None else ir.Shape(shape)
        )
        self.graph.inputs.append(value)
        return value

    def weight(self, name: str, array: Any) -> ir.Value:
        """An initializer; float64 arrays become float32."""
        array = np.asarray(array)
        tensor = ir.tensor(array.astype(np.float32) if array.dtype == np.float64 else array, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """The only output of a new node; ``name`` names node and output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, name=name, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        domain: str = "",
        name: str | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node with ``outputs`` outputs."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        self.graph.append(node)
        if name is not None:
            for index, value in enumerate(node.outputs):
                value.name = name if outputs == 1 else f"{name}_{index}"
        set_sources(node, [Source("test", str(node.name), op_type)])
        self.graph.opset_imports.setdefault(domain, 1)
        return node.outputs

    def output(self, value: ir.Value, name: str | None = None) -> None:
        """Make ``value`` a graph output, called ``name``."""
        if name is not None:
            if value.producer() is None:
                raise InternalError(f"graph output {name!r} would rename an input or weight")
            value.name = name
        self.graph.outputs.append(value)

    def model(self, infer: bool = True) -> ir.Model:
        """The finished model; ``infer=False`` leaves shapes unset."""
        model = ir.Model(self.graph, ir_version=11)
        if infer:
            infer_model_shapes(model)
        return model

    def program(self, **dims: DimRange) -> Program:
        """The finished model as a program's ``main``; keyword arguments are dimension ranges."""
        return Program({"main": self.model()}, dims=dims)
