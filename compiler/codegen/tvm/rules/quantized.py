"""Numbers in 8 and 4 bits: QuantizeLinear and DequantizeLinear, by tensor, by axis and in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from ....ir.constants import constant_tensor
from ..lowering import PACKED, Lowering, Rule, dtype_of, fixed, given, normalized
from .elementwise import mapped

_RANGES = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
}  # fmt: skip


def codes_of(b: Lowering, value: ir.Value, tensor: Any, shape: list[Any]) -> Callable[..., Any]:
    """Code at an index of ``shape``; those of 4 bits lie two in a byte of a flat tensor."""
    if value.dtype not in PACKED:
        return lambda *i: tensor(*i)

    def code(*i: Any) -> Any:
        flat = i[0]
        for index, size in zip(i[1:], shape[1:], strict=True):
            flat = flat * size + index
        byte = tensor(b.tirx.floordiv(flat, 2)).astype("int32")
        low = (byte >> (b.tirx.floormod(flat, 2).astype("int32") * 4)) & 15
        return low if value.dtype == ir.DataType.UINT4 else (low ^ 8) - 8

    return code


def _places(node: ir.Node, rank: int, scale_rank: int) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Where the scale of an element lies."""
    block = node.attributes.get_int("block_size", 0)
    axis = normalized(node.attributes.get_int("axis", 1), rank) if rank else 0
    if scale_rank == 0:
        return lambda i: ()
    if block:
        return lambda i: (*i[:axis], i[axis] // block, *i[axis + 1 :])
    return lambda i: (0,) if not i else (i[axis],)


def _dequantize(b: Lowering, node: ir.Node) -> Any:
    source, scale, zero = node.inputs[0], b.value(node.inputs[1]), given(node, 2)
    assert source is not None
    data, dtype = b.value(source), dtype_of(node.outputs[0].dtype)
    shape = b.shape(data) if source.dtype not in PACKED else fixed(source)
    where = _places(node, len(shape), _rank(b, scale, shape))
    zeros = [] if zero is None else [b.value(zero)]

    def dequantize(x: Any, s: Any, sizes: Any, *z: Any) -> Any:
        code = codes_of(b, source, x, shape)
        scale_at = _reader(s)
        zero_at = None if zero is None else codes_of(b, zero, z[0], fixed(zero))

        def element(*i: Any) -> Any:
            value = code(*i).astype("int32")
            if zero_at is not None:
                value = value - zero_at(*_fit(zero, where(i))).astype("int32")
            return value.astype(dtype) * scale_at(*where(i)).astype(dtype)

        return b.te.compute(sizes, element, name="dequantize")

    return b.compute(dequantize, data, scale, b.prims(shape), *zeros)


def _reader(tensor: Any) -> Callable[..., Any]:
    return lambda *i: tensor(*(i if len(tensor.shape) else ()))


def _fit(value: ir.Value | None, index: tuple[Any, ...]) -> tuple[Any, ...]:
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return index if rank == len(index) else (0,) * rank


def _rank(b: Lowering, scale: Any, shape: list[Any]) -> int:
    """0 for one scale of all; a vector of one element counts as one."""
    own = b.shape(scale)
    return 0 if not own else len(own)


def _quantize(b: Lowering, node: ir.Node) -> Any:
    source, scale, zero = b.value(node.inputs[0]), b.value(node.inputs[1]), given(node, 2)
    dtype = dtype_of(node.outputs[0].dtype)
    low, high = _RANGES[dtype]
    where = _places(node, len(b.shape(source)), _rank(b, scale, b.shape(source)))

    def quantize(x: Any, s: Any, *z: Any) -> Any:
        def element(*i: Any) -> Any:
            value = b.tirx.nearbyint(x(*i).astype("float32") / s(*where(i)).astype("float32"))
            if z:
                value = value + z[0](*where(i)).astype("float32")
            bounded = b.tirx.max(b.tirx.min(value, b.const(high, "float32")), b.const(low, "float32"))
            return bounded.astype("int32").astype(dtype)

        return b.te.compute(x.shape, element, name="quantize")

    return b.compute(quantize, source, scale, *([] if zero is None else [b.value(zero)]))


def _no_four_bits(node: ir.Node) -> str | None:
    dtype = node.outputs[0].dtype
    if dtype is None or dtype_of(dtype) not in _RANGES:
        return "its result is of a type that TVM does not store"
    return None


def _known_codes(node: ir.Node) -> str | None:
    data = node.inputs[0]
    if data is not None and data.dtype in PACKED and constant_tensor(data) is None:
        return f"{data.name!r} has 4 bits and is computed"
    zero = given(node, 2)
    if zero is not None and zero.dtype in PACKED and constant_tensor(zero) is None:
        return f"{zero.name!r} has 4 bits and is computed"
    return None


def _dynamic(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    zero = b.const(0, "float32")
    top, bottom = (
        b.compute(lambda x, k=kind: getattr(b.topi, k)(x), source, name=kind) for kind in ("max", "min")
    )

    def scaled(high: Any, low: Any) -> Any:
        return (b.tirx.max(high, zero) - b.tirx.min(low, zero)) / b.const(255, "float32")

    scale = mapped(b, scaled, [top, bottom], "scale")

    def point(low: Any, s: Any) -> Any:
        value = b.tirx.nearbyint((zero - b.tirx.min(low, zero)) / s)
        return b.tirx.max(b.tirx.min(value, b.const(255, "float32")), zero).astype("uint8")

    origin = mapped(b, point, [bottom, scale], "zero_point")

    def code(x: Any, s: Any, z: Any) -> Any:
        value = b.tirx.nearbyint(x / s) + z.astype("float32")
        return b.tirx.max(b.tirx.min(value, b.const(255, "float32")), zero).astype("uint8")

    return [mapped(b, code, [source, scale, origin], "quantize"), scale, origin]


RULES: dict[str, Rule] = {
    "DequantizeLinear": Rule(_dequantize, _known_codes),
    "QuantizeLinear": Rule(_quantize, _no_four_bits),
    "DynamicQuantizeLinear": Rule(_dynamic),
}
