"""What a rule works with: the graph's values as Relax expressions, sizes, constants, tensor expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ...errors import InternalError
from ...ir.constants import constant, constant_tensor
from ...ir.symbols import Walk
from ...program import dim_of, dtype_name
from ...reference import Array
from .dims import UnknownSizeError, size_of
from .kernels.build import OPAQUE
from .kernels.kernel import Cpu

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

    ``cpu``: what kernels of our own are written for, None on another device. ``sizes``: name of a dimension →
    its variable. ``parameters``: weights, in order of their first use. ``asks``: whether sizes are read from
    tensors while it runs.
    """

    def __init__(self, tvm: Any, graph: ir.Graph, builder: Any, cpu: Cpu | None = None) -> None:
        from tvm import relax, te, tirx, topi

        self.tvm, self.relax, self.te, self.tirx, self.topi = tvm, relax, te, tirx, topi
        self.graph, self.builder, self.analyzer = graph, builder, tvm.sym.Analyzer()
        self.walk, self.cpu = Walk(graph), cpu
        self.sizes: dict[str, Any] = {}
        self.parameters: list[Parameter] = []
        self.parameter_vars: list[Any] = []
        self.outputs_in_place: dict[ir.Value, Any] = {}
        self.asks = False
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
        if not array.size:
            return self.empty(array.shape, str(array.dtype))
        return self.relax.const(self.tvm.runtime.tensor(array.copy(order="C")))

    def empty(self, shape: Sequence[Any], dtype: str) -> Any:
        """A tensor without elements.

        It counts as made of an input, lest TVM fold it into a constant: it can't read empty ones back.
        """
        zero = self.const(0, dtype)
        inputs = [self._values[v] for v in self.graph.inputs[:1] if v in self._values]
        return self.compute(
            lambda sizes, *_: self.te.compute(sizes, lambda *i: zero, name="empty"),
            self.prims(shape),
            *inputs,
            name="empty",
        )

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

    def prims(self, sizes: Sequence[Any]) -> list[Any]:
        """Sizes as a function of tensor expressions takes them."""
        return [self.tirx.IntImm("int64", s) if isinstance(s, int) else s for s in sizes]

    def simplified(self, size: Any) -> Any:
        """A size in its simplest form; an int if it is one."""
        return size if isinstance(size, int) else self.size(self.analyzer.simplify(size))

    def broadcast(self, shapes: Sequence[Sequence[Any]]) -> list[Any]:
        """The shape that all broadcast to."""
        rank = max(map(len, shapes))
        result: list[Any] = [1] * rank
        for shape in shapes:
            for axis, size in enumerate(shape, rank - len(shape)):
                result[axis] = self._wider(result[axis], self.size(size))
        return result

    def _wider(self, one: Any, other: Any) -> Any:
        if isinstance(other, int):
            return one if other == 1 else other
        if isinstance(one, int):
            return other if one == 1 else one
        return one if self.equal(one, other) else self.tirx.max(one, other)

    def equal(self, one: Any, other: Any) -> bool:
        """Whether two sizes are surely the same."""
        if isinstance(one, int) and isinstance(other, int):
            return one == other
        same = not isinstance(one, int) and one.same_as(other)
        return bool(same or self.analyzer.can_prove_equal(one, other))

    def runtime_shape(self, sizes: Any, value: ir.Value | None) -> list[Any]:
        """Sizes that only running tells, int64[rank] or a scalar, as variables: those of ``value``, if any.

        Whatever else has a size of the same name has that variable too.
        """
        rank = self.shape(sizes)
        if not rank:
            sizes = self.emit(self.relax.op.reshape(sizes, self.relax.ShapeExpr([1])))
        count = rank[0] if rank else 1
        # with a call that is not pure a block ends: fusion moves no kernel before the sizes it needs
        read, kind = self.relax.ExternFunc("vm.builtin.tensor_to_shape"), self.relax.ShapeType(ndim=count)
        found = self.emit(self.relax.Call(read, [sizes], ty_args=[kind]))
        self.asks = True
        dims = [None] * count if value is None or value.shape is None else [dim_of(d) for d in value.shape]
        names = [d if isinstance(d, str) and d not in self.sizes else f"size_{i}" for i, d in enumerate(dims)]
        made = [self.tirx.Var(name, "int64") for name in names]
        self.builder.match_cast(found, self.relax.ShapeType(made))
        if value is not None:
            self.learn(value, made)
        return made

    def learn(self, value: ir.Value, sizes: Sequence[Any]) -> None:
        """The named sizes of ``value`` are these from now on, unless they were known before."""
        for dim, size in zip(value.shape or (), sizes, strict=False):
            name = dim_of(dim)
            if isinstance(name, str) and name not in self.sizes:
                self.sizes[name] = size

    def array(self, value: ir.Value | None) -> Array | None:
        """The array of a constant."""
        return constant(value, limit=None)

    # computing

    def compute(self, function: Callable[..., Any], *arguments: Any, name: str = "") -> Any:
        """The result of a function of tensor expressions; a tuple's where it gives several.

        ``arguments``: Relax expressions arrive as te tensors, sizes as what they are inside the function.
        """
        named: dict[str, Any] = {"primfunc_name_hint": name or function.__name__}
        if self.cpu is not None and any(_is_bfloat16(argument) for argument in arguments):
            named["primfunc_attrs"] = {"op_pattern": OPAQUE}  # see cast
        return self.builder.emit_te(function, *arguments, **named)

    def call(self, function: Any, inputs: Sequence[Any], shape: Sequence[Any], dtype: str) -> Any:
        """The output of a kernel."""
        kernel = self._kernel(function)
        return self.emit(self.relax.call_tir(kernel, list(inputs), self.relax.TensorType(list(shape), dtype)))

    def in_place(self, function: Any, inputs: Sequence[Any], place: int) -> Any:
        """The input at ``place`` after a kernel has written to it."""
        kernel, kept = self._kernel(function), inputs[place]
        return self.emit(self.relax.op.call_tir_inplace(kernel, list(inputs), place, kept.ty))

    def _kernel(self, function: Any) -> Any:
        name = function.attrs["global_symbol"]
        return self.builder.add_func(function.without_attr("global_symbol"), name)

    def emit(self, expression: Any) -> Any:
        """A variable that holds a Relax expression."""
        return self.builder.emit(expression)

    def cast(self, x: Any, dtype: str) -> Any:
        """A number inside a tensor expression as ``dtype``."""
        if x.ty.dtype != "bfloat16" or dtype == "bfloat16" or self.cpu is None:
            return x.astype(dtype)
        # TVM's own cast is wrong inside a Let, where it takes the bits for an integer. What it fuses it keeps
        # as float32, which has other bits: so nothing is fused to what reads bfloat16.
        bits = self.tirx.reinterpret("uint16", x).astype("uint32") << self.tirx.const(16, "uint32")
        return self.tirx.reinterpret("float32", bits).astype(dtype)

    def const(self, number: float, dtype: str) -> Any:
        """A number inside a tensor expression."""
        return self.tirx.const(number, dtype)


def _is_bfloat16(argument: Any) -> bool:
    return getattr(getattr(argument, "ty", None), "dtype", None) == "bfloat16"


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


def fixed(value: ir.Value) -> list[int]:
    """The sizes of a constant."""
    return [] if value.shape is None else list(value.shape.numpy())
