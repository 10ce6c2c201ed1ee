"""What a rule works with: the graph's values as Relax expressions, sizes, constants, tensor expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import InternalError
from ...ir.constants import constant, constant_tensor
from ...ir.symbols import Walk
from ...program import dim_of, dtype_name
from ...reference import Array
from .dims import UnknownSizeError, size_of

EMBEDDED = 256
"""Bytes up to which a constant becomes part of the library instead of a parameter."""

PACKED = {ir.DataType.INT4: "uint8", ir.DataType.UINT4: "uint8"}
"""Types whose elements share bytes → what they are read as."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight that the function takes behind its inputs. ``shape``: as the function declares it."""

    tensor: ir.TensorProtocol
    dtype: str
    shape: tuple[int, ...]


class Lowering:
    """Builds one Relax function. ``tvm`` and its parts are at hand for rules, which import nothing.

    ``sizes``: name of a dimension → its variable. ``parameters``: weights, in order of their first use.
    """

    def __init__(self, tvm: Any, graph: ir.Graph, builder: Any) -> None:
        from tvm import relax, te, tirx, topi

        self.tvm, self.relax, self.te, self.tirx, self.topi = tvm, relax, te, tirx, topi
        self.graph, self.builder, self.analyzer = graph, builder, tvm.sym.Analyzer()
        self.walk = Walk(graph)
        self.sizes: dict[str, Any] = {}
        self.parameters: list[Parameter] = []
        self.parameter_vars: list[Any] = []
        self.outputs_in_place: dict[ir.Value, Any] = {}
        self._values: dict[ir.Value, Any] = {}
        self._weights: dict[object, Any] = {}

    # values

    def bind(self, value: ir.Value, expression: Any) -> None:
        """``expression`` computes ``value``."""
        self._values[value] = expression

    def value(self, value: ir.Value | None) -> Any:
        """The expression that computes ``value``: a variable, a weight, or a small constant."""
        if value is None:
            raise InternalError("a rule reads an input that is left out")
        if value not in self._values:
            tensor = constant_tensor(value)
            if tensor is None:
                raise InternalError(f"value {value.name!r} is used before it is computed")
            self._values[value] = self.weight(tensor)
        return self._values[value]

    def values(self, node: ir.Node) -> list[Any]:
        """The expressions of all inputs of a node."""
        return [self.value(v) for v in node.inputs if v is not None]

    def weight(self, tensor: ir.TensorProtocol) -> Any:
        """A constant: in the library if it is small, else a parameter of the function."""
        shape = tuple(tensor.shape.numpy())
        if tensor.dtype in PACKED:
            return self.parameter(tensor, "uint8", (tensor.nbytes,))
        if tensor.nbytes <= EMBEDDED:
            return self.constant(tensor.numpy())
        return self.parameter(tensor, dtype_of(tensor.dtype), shape)

    def parameter(self, tensor: ir.TensorProtocol, dtype: str, shape: tuple[int, ...]) -> Any:
        """``tensor`` as a parameter, declared once."""
        key: object = id(tensor)
        if key not in self._weights:
            var = self.relax.Var(f"w{len(self.parameters)}", self.relax.TensorType(list(shape), dtype))
            self.parameters.append(Parameter(tensor, dtype, shape))
            self.parameter_vars.append(var)
            self._weights[key] = var
        return self._weights[key]

    def constant(self, array: Array) -> Any:
        """A constant that lies in the library."""
        array = np.ascontiguousarray(array)
        return self.relax.const(self.tvm.runtime.tensor(array))

    # sizes and integers

    def shape(self, expression: Any) -> list[Any]:
        """The sizes of an expression: ints where they are known."""
        return [self.size(d) for d in expression.ty.shape.values]

    def size(self, dim: Any) -> Any:
        """An int if the size is one."""
        return int(dim) if isinstance(dim, (int, self.tvm.tirx.IntImm)) else dim

    def wanted(self, value: ir.Value) -> list[Any] | None:
        """The sizes of a value as the IR has them; None if one of them is not known from the inputs'."""
        if value.shape is None:
            return None
        try:
            return [size_of(self.walk.now(dim_of(d)), self.sizes) for d in value.shape]
        except UnknownSizeError:
            return None

    def ints(self, value: ir.Value | None) -> list[Any] | None:
        """The integers in a value: ints or sizes; None if they are not known when compiled."""
        found = self.walk.read(value)
        if found is None:
            return None
        try:
            return [size_of(d, self.sizes) for d in found]
        except UnknownSizeError:
            return None

    def array(self, value: ir.Value | None) -> Array | None:
        """The array of a constant."""
        return constant(value, limit=None)

    # computing

    def compute(self, function: Callable[..., Any], *arguments: Any, name: str = "") -> Any:
        """The result of a function of tensor expressions; a tuple's where it gives several.

        ``arguments``: Relax expressions arrive as te tensors, sizes as what they are inside the function.
        """
        return self.builder.emit_te(function, *arguments, primfunc_name_hint=name or function.__name__)

    def emit(self, expression: Any) -> Any:
        """A variable that holds a Relax expression."""
        return self.builder.emit(expression)

    def const(self, number: float, dtype: str) -> Any:
        """A number inside a tensor expression."""
        return self.tirx.const(number, dtype)


def dtype_of(dtype: ir.DataType | None) -> str:
    """TVM's name of a dtype."""
    return dtype_name(dtype) if dtype else "float32"


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator is lowered, and what it does not take.

    ``lower`` gives the expression of the only output, or a sequence of them. ``reason``: why this node
    can't be lowered, None if it can.
    """

    lower: Callable[[Lowering, ir.Node], Any]
    reason: Callable[[ir.Node], str | None] = field(default=lambda node: None)


def static(value: ir.Value | None) -> bool:
    """Whether the rank of a value is known."""
    return value is not None and value.shape is not None


def normalized(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def given(node: ir.Node, index: int) -> ir.Value | None:
    """An optional input, None if it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def all_known(values: Sequence[Any] | None) -> bool:
    """Whether every integer is known when compiled, and a plain one."""
    return values is not None and all(isinstance(v, int) for v in values)
