"""Weights of linear layers as the native kernels take them: [rows, columns], a row per output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant_tensor
from ....compiler.ir.quantized import BlockedWeight, blocked_weight, emit_blocked
from ....compiler.ir.rewrite import Rewriter
from ....compiler.reference import Array

STORED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""dtypes in which a weight that is not quantized may be stored."""

_MADE: WeakValueDictionary[tuple[object, ...], ir.LazyTensor] = WeakValueDictionary()
"""Derived tensors by what they come from, which they hold: entries that share a weight go on sharing it."""


def is_weight(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant [rows, columns] in a form whose bytes can be packed when compiled."""
    if value is None or value.shape is None or len(value.shape) != 2 or not value.shape.is_static():
        return False
    if value.dtype != ir.DataType.FLOAT:
        return False
    return _stored(value) is not None or _per_row(value, 0) or blocked_weight(value) is not None


def is_quantized(value: ir.Value) -> bool:
    """Whether a weight is made of integers."""
    return _stored(value) is None


def is_stored_wide(value: ir.Value) -> bool:
    """Whether a weight is stored in float32."""
    tensor = _stored(value)
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class Right:
    """The right side of a MatMul, [columns, rows], found to be constant: ``rows(at)`` is it as a weight."""

    shape: tuple[int, int]
    rows: Callable[[Rewriter], ir.Value]


def right_side(value: ir.Value | None) -> Right | None:
    """``value`` [columns, rows] as a weight [rows, columns] to be; None if it is not constant."""
    if value is None or value.shape is None or len(value.shape) != 2 or not value.shape.is_static():
        return None
    columns, rows = value.shape.numpy()
    node, tensor = value.producer(), _stored(value)
    if node is not None and node.op_type == "Transpose" and node.domain == "":
        source = node.inputs[0]
        if (
            source is None
            or not is_weight(source)
            or tuple(node.attributes.get_ints("perm", (1, 0))) != (1, 0)
        ):
            return None
        return Right((rows, columns), lambda at: source)
    if tensor is not None and value.dtype == ir.DataType.FLOAT:
        return Right(
            (rows, columns),
            lambda at: _plain(turned(tensor), f"{value.name}".removesuffix(".T") + ".rows", at),
        )
    if _per_row(value, 1) or _blocked_columns(value):
        return Right((rows, columns), lambda at: _turned_scales(value, at))
    return None


def rows_between(value: ir.Value, begin: int, end: int, at: Rewriter) -> ir.Value:
    """Rows ``begin`` to ``end`` of a weight, as a weight."""
    name = f"{value.name}_{begin}_{end}"
    tensor = _stored(value)
    if tensor is not None:
        return _plain(cut(tensor, begin, end), name, at)
    blocked = blocked_weight(value)
    if blocked is not None:
        parts = (blocked.data, blocked.scale, blocked.zero_point, blocked.offset)
        data, scale, zero, offset = (None if p is None else cut(p, begin, end) for p in parts)
        assert data is not None and scale is not None
        return emit_blocked(BlockedWeight(data, scale, zero, offset, blocked.block), name, at)
    node = value.producer()
    assert node is not None and value.shape is not None
    inputs = []
    for operand in node.inputs:
        part = constant_tensor(operand)
        assert part is not None and operand is not None
        inputs.append(at.const(cut(part, begin, end), f"{operand.name}_{begin}_{end}"))
    made = at.op("DequantizeLinear", *inputs, axis=0)
    made.type, made.shape = value.type, ir.Shape([end - begin, value.shape[1]])
    return made


def flattened(value: ir.Value, at: Rewriter) -> ir.Value:
    """A float weight [rows, ...] as [rows, columns]."""
    tensor = _stored(value)
    assert tensor is not None
    rows = tensor.shape.numpy()[0]
    shape = [rows, math.prod(tensor.shape.numpy()[1:])]
    made = _derived(("flattened", id(tensor)), [tensor], lambda a: a.reshape(rows, -1), shape)
    return _plain(made, f"{value.name}.flat", at)


def again(value: ir.Value, at: Rewriter) -> ir.Value:
    """A weight computed once more from the same tensors, for a reader that stands before its nodes."""
    node = value.producer()
    if node is None:
        return value
    inputs = [None if v is None else again(v, at) for v in node.inputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made = at.op(node.op_type, *inputs, domain=node.domain, **attributes)
    made.type, made.shape = value.type, value.shape
    return made


def turned(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """A matrix transposed when it is read; the same tensor for the same one."""
    rows, columns = tensor.shape.numpy()
    return _derived(("turned", id(tensor)), [tensor], lambda a: np.ascontiguousarray(a.T), [columns, rows])


def cut(tensor: ir.TensorProtocol, begin: int, end: int) -> ir.LazyTensor:
    """Rows of a tensor, cut when it is read; the same tensor for the same ones."""
    shape = [end - begin, *tensor.shape.numpy()[1:]]
    return _derived(("cut", begin, end, id(tensor)), [tensor], lambda a: a[begin:end], shape)


def _derived(
    key: tuple[object, ...],
    sources: Sequence[ir.TensorProtocol],
    make: Callable[..., Array],
    shape: Sequence[int],
) -> ir.LazyTensor:
    known = _MADE.get(key)
    if known is None:
        dtype = sources[0].dtype
        known = _MADE[key] = ir.LazyTensor(
            lambda: ir.Tensor(make(*(s.numpy() for s in sources)), dtype=dtype),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=sources[0].name,
        )
    return known


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """The float tensor behind a value, a Cast to float32 looked through."""
    node = value.producer()
    source: ir.Value | None = value
    if node is not None and node.op_type == "Cast" and node.domain == "":
        source = node.inputs[0] if node.attributes.get_int("to", 0) == ir.DataType.FLOAT else None
    tensor = constant_tensor(source)
    return tensor if tensor is not None and tensor.dtype in STORED else None


def _plain(tensor: ir.TensorProtocol, name: str, at: Rewriter) -> ir.Value:
    """A float tensor as a float32 value; one initializer per tensor and graph."""
    value = held(at, tensor)
    if value is None:
        value = at.const(tensor, name)
    if tensor.dtype == ir.DataType.FLOAT:
        return value
    wide = at.op("Cast", value, to=ir.DataType.FLOAT.value)
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    return wide


def held(at: Rewriter, tensor: ir.TensorProtocol) -> ir.Value | None:
    """The initializer of the graph that is ``tensor``, if there is one."""
    assert isinstance(at.graph, ir.Graph)
    named = at.graph.initializers.get(str(tensor.name))
    candidates = [named] if named is not None else []
    return next((v for v in candidates if v.const_value is tensor), None)


def _per_row(value: ir.Value, axis: int) -> bool:
    """Whether ``value`` is dequantized by a scale per index of ``axis``, or by a single one."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "" or value.shape is None:
        return False
    tensors = [constant_tensor(v) for v in node.inputs if v is not None]
    if None in tensors or node.attributes.get_int("block_size", 0) != 0 or value.dtype != ir.DataType.FLOAT:
        return False
    scale = tensors[1]
    assert scale is not None
    count = value.shape[axis]
    given = int(node.attributes.get_int("axis", 1)) % 2
    return list(scale.shape.numpy()) in ([], [1]) or (given == axis and list(scale.shape.numpy()) == [count])


def _blocked_columns(value: ir.Value) -> bool:
    """Whether ``value`` [columns, rows] has a scale per row and block of columns."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "" or value.shape is None:
        return False
    block = node.attributes.get_int("block_size", 0)
    if not block or node.attributes.get_int("axis", 1) not in (0, -2) or value.dtype != ir.DataType.FLOAT:
        return False
    columns, rows = value.shape.numpy()
    tensors = [constant_tensor(v) for v in node.inputs if v is not None]
    scales = [t for t in tensors[1:] if t is not None]
    wanted = [columns // block, rows]
    return (
        None not in tensors and columns % block == 0 and all(list(t.shape.numpy()) == wanted for t in scales)
    )


def _turned_scales(value: ir.Value, at: Rewriter) -> ir.Value:
    node = value.producer()
    assert node is not None and value.shape is not None
    block = node.attributes.get_int("block_size", 0)
    inputs = []
    for operand in node.inputs:
        tensor = constant_tensor(operand)
        if tensor is not None and operand is not None:
            whole = len(tensor.shape) == 2
            inputs.append(at.const(turned(tensor) if whole else tensor, f"{operand.name}.rows"))
    made = at.op("DequantizeLinear", *inputs, axis=1 if block else 0, block_size=block or None)
    made.type, made.shape = value.type, ir.Shape([value.shape[1], value.shape[0]])
    return made
