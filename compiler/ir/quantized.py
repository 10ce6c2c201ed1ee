"""Blocked quantized weights in standard operators: DequantizeLinear, and an offset per block if any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..reference import Array
from .constants import constant, constant_tensor, is_constant
from .rewrite import Rewriter


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """A weight[rows, columns] whose rows are cut into blocks of ``block`` columns that share a scale.

    ``weight[n, k] = (data[n, k] - zero_point[n, b]) * scale[n, b] + offset[n, b]`` with ``b = k // block``.
    ``data``: (U)INT4 or (U)INT8[rows, columns]. ``scale``: float[rows, columns / block]. ``zero_point``: of
    the data's dtype, None is zero. ``offset``: of the scale's dtype, None is zero; GGUF's Q4_1, Q5_1, Q4_K
    and Q5_K have one, which no integer zero point can express.
    """

    data: ir.TensorProtocol
    scale: ir.TensorProtocol
    zero_point: ir.TensorProtocol | None
    offset: ir.TensorProtocol | None
    block: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.data.shape.numpy()
        return rows, columns

    @property
    def bits(self) -> int:
        """Bits of one element of ``data``."""
        return self.data.dtype.bitwidth

    def numpy(self) -> Array:
        """The weight as float32[rows, columns]."""
        rows, columns = self.shape
        data = self.data.numpy().astype(np.float32).reshape(rows, -1, self.block)
        if self.zero_point is not None:
            data -= self.zero_point.numpy().astype(np.float32)[..., None]
        data *= self.scale.numpy().astype(np.float32)[..., None]
        if self.offset is not None:
            data += self.offset.numpy().astype(np.float32)[..., None]
        return data.reshape(rows, columns)


def emit_blocked(weight: BlockedWeight, name: str, at: Rewriter) -> ir.Value:
    """The nodes that compute ``weight`` (float[rows, columns]) from initializers called after ``name``."""
    inputs = [at.const(weight.data, f"{name}.data"), at.const(weight.scale, f"{name}.scale")]
    if weight.zero_point is not None:
        inputs.append(at.const(weight.zero_point, f"{name}.zero_point"))
    value = at.op("DequantizeLinear", *inputs, axis=1, block_size=weight.block)
    rows, columns = weight.shape
    dtype = ir.TensorType(weight.scale.dtype)
    value.type, value.shape = dtype, ir.Shape([rows, columns])
    if weight.offset is None:
        return value
    blocks = columns // weight.block
    cut = at.const(np.array([rows, blocks, weight.block]), f"{name}.blocks")
    flat = at.const(np.array([rows, columns]), f"{name}.shape")
    lifted = ir.LazyTensor(
        lambda: ir.Tensor(_array(weight.offset).reshape(rows, blocks, 1)),
        dtype=weight.offset.dtype,
        shape=ir.Shape([rows, blocks, 1]),
    )
    parts = at.op("Reshape", value, cut)
    parts.type, parts.shape = dtype, ir.Shape([rows, blocks, weight.block])
    moved = at.op("Add", parts, at.const(lifted, f"{name}.offset"))
    moved.type, moved.shape = dtype, parts.shape
    whole = at.op("Reshape", moved, flat)
    whole.type, whole.shape = dtype, ir.Shape([rows, columns])
    return whole


def blocked_weight(value: ir.Value | None) -> BlockedWeight | None:
    """The blocked weight that ``value`` computes, as ``emit_blocked`` writes it; None for any other value."""
    node = None if value is None else value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "DequantizeLinear":
        return _dequantized(node, None)
    add = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    if add is None or add.op_type != "Add" or add.inputs[0] is None:
        return None
    offset, cut = constant_tensor(add.inputs[1]), add.inputs[0].producer()
    if offset is None or cut is None or cut.op_type != "Reshape" or cut.inputs[0] is None:
        return None
    inner = cut.inputs[0].producer()
    if inner is None or inner.op_type != "DequantizeLinear":
        return None
    found = _dequantized(inner, offset)
    if found is None:
        return None
    rows, columns = found.shape
    wanted = ((rows, columns // found.block, found.block), (rows, columns))
    shapes = tuple(constant(n.inputs[1]) for n in (cut, node))
    if any(s is None or tuple(s.tolist()) != w for s, w in zip(shapes, wanted, strict=True)):
        return None
    return found if offset.shape.numpy() == (rows, columns // found.block, 1) else None


def _dequantized(node: ir.Node, offset: ir.TensorProtocol | None) -> BlockedWeight | None:
    if not all(is_constant(v) for v in node.inputs if v is not None):
        return None
    data, scale = (constant_tensor(v) for v in node.inputs[:2])
    zero = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    block, axis = node.attributes.get_int("block_size", 0), node.attributes.get_int("axis", 1)
    if data is None or scale is None or len(data.shape) != 2 or axis not in (1, -1) or block <= 0:
        return None
    rows, columns = data.shape.numpy()
    if columns % block or scale.shape.numpy() != (rows, columns // block):
        return None
    if offset is not None:
        raised = offset
        offset = ir.LazyTensor(
            lambda: ir.Tensor(_array(raised).reshape(rows, columns // block)),
            dtype=raised.dtype,
            shape=ir.Shape([rows, columns // block]),
        )
    return BlockedWeight(data, scale, zero, offset, block)


def _array(tensor: ir.TensorProtocol | None) -> Array:
    assert tensor is not None
    return tensor.numpy()
