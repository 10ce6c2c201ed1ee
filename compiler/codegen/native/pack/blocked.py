"""Packing integer weights: codes in the fewest bits that hold them, scales and offsets as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....ir.constants import constant_tensor
from ....ir.quantized import BlockedWeight, blocked_weight
from ....reference import Array
from .int_codes import Codes, common_codes, least_code
from .int_format import BLOCK, IntFormat, interleaved
from .int_scales import Scales, common_scales
from .packed import TILE, PackedWeight

_CHUNK = 1 << 22
"""Codes that are packed at a time."""

_INTEGERS = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True, slots=True)
class IntWeight:
    """Integers with a scale, and perhaps a zero point and an offset, for every ``group`` columns.

    ``data``: (u)int4 or (u)int8[rows, columns]; the others [rows, columns / group]. ``group`` 0: one per row.
    """

    data: ir.TensorProtocol
    scale: Array
    zero_point: Array | None
    offset: Array | None
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.data.shape.numpy()
        return rows, columns

    def regrouped(self, group: int) -> IntWeight:
        """The same with groups of a divisor of its own."""
        if group == self.group:
            return self
        times = self.group // group if self.group else -(-self.shape[1] // group)
        parts = (
            None if p is None else p.repeat(times, 1) for p in (self.scale, self.zero_point, self.offset)
        )
        scale, zero_point, offset = parts
        assert scale is not None
        return IntWeight(self.data, scale, zero_point, offset, group)

    def with_offset(self) -> IntWeight:
        """The same with an offset instead of zero points, its codes counted from the least."""
        if self.offset is not None:
            return self
        least = least_code(self.data)
        zero = 0 if self.zero_point is None else self.zero_point.astype(np.float32)
        offset = (least - zero) * self.scale.astype(np.float32)
        counted = np.full(self.scale.shape, least, np.int16)
        return IntWeight(self.data, self.scale, counted, offset, self.group)


def int_weight(value: ir.Value) -> IntWeight | None:
    """What the dequantized weight[rows, columns] ``value`` is made of; None if it is no such."""
    blocked = blocked_weight(value)
    if blocked is not None:
        both = blocked.zero_point is not None and blocked.offset is not None
        return None if both else of_blocked(blocked)
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    data, scale, *rest = (constant_tensor(v) for v in node.inputs)
    zero = rest[0] if rest else None
    if data is None or scale is None or len(data.shape) != 2 or data.dtype not in _INTEGERS:
        return None
    per_row = node.attributes.get_int("axis", 1) in (0, -2) and scale.shape.numpy() == data.shape.numpy()[:1]
    if node.attributes.get_int("block_size", 0) or (scale.size != 1 and not per_row):
        return None
    return of_rows(data, scale, zero)


def of_blocked(weight: BlockedWeight) -> IntWeight:
    """A blocked weight; blocks that are no multiple of 32 columns in groups of 16."""
    parts = (None if p is None else p.numpy() for p in (weight.scale, weight.zero_point, weight.offset))
    scale, zero_point, offset = parts
    assert scale is not None
    found = IntWeight(weight.data, scale, zero_point, offset, weight.block)
    return found.regrouped(weight.block if weight.block % BLOCK == 0 else TILE)


def of_rows(
    data: ir.TensorProtocol, scale: ir.TensorProtocol, zero_point: ir.TensorProtocol | None
) -> IntWeight:
    """A weight with one scale, and zero point, per row ([rows]) or for all of it ([])."""
    parts = (None if p is None else p.numpy().reshape(-1, 1) for p in (scale, zero_point))
    spread = (None if p is None else np.broadcast_to(p, (data.shape.numpy()[0], 1)) for p in parts)
    scales, zeros = spread
    assert scales is not None
    return IntWeight(data, scales, zeros, None, 0)


def pack_integers(value: ir.Value, up: ir.Value | None = None) -> PackedWeight | None:
    """A dequantized weight (or the gate and up weights of a gated layer) packed; None if it is none."""
    weights = [int_weight(v) for v in (value, up) if v is not None]
    return None if None in weights else pack_weights([w for w in weights if w is not None])


def pack_blocked(weight: BlockedWeight) -> PackedWeight:
    """A blocked weight packed."""
    return pack_weights([of_blocked(weight)])


def pack_gated(gate: BlockedWeight, up: BlockedWeight) -> PackedWeight:
    """Both packed in one format, a tile of ``gate`` before each tile of ``up``."""
    return pack_weights([of_blocked(gate), of_blocked(up)])


def pack_rows(
    data: ir.TensorProtocol, scale: ir.TensorProtocol, zero_point: ir.TensorProtocol | None = None
) -> PackedWeight:
    """A weight with scales per row packed."""
    return pack_weights([of_rows(data, scale, zero_point)])


def pack_weights(weights: Sequence[IntWeight]) -> PackedWeight:
    """Weights of one shape in one format, their tiles interleaved; none of their numbers is rounded."""
    group = math.gcd(*(w.group for w in weights))
    weights = [w.regrouped(group) for w in weights]
    if any(w.offset is not None for w in weights):  # what one has, all have: offsets hold zero points too
        weights = [w.with_offset() for w in weights]
    rows, columns = weights[0].shape
    codes = common_codes([(w.data, w.zero_point) for w in weights], group or columns)
    zeros = [_zeros(w, c) for w, c in zip(weights, codes, strict=True)]
    scale, offset, scales = common_scales(
        [w.scale for w in weights], [w.offset for w in weights], zeros, group, columns
    )
    form = IntFormat(codes[0].bits, codes[0].biased, scale, offset, group)
    parts = [_Part(w.data, c, s) for w, c, s in zip(weights, codes, scales, strict=True)]
    size = form.tile(columns).itemsize * -(-rows // TILE) * len(parts)
    return PackedWeight(str(form), group, rows, columns, size, lambda: _chunks(form, parts, rows, columns))


@dataclass(frozen=True, slots=True)
class _Part:
    data: ir.TensorProtocol
    codes: Codes
    scales: Scales


def _zeros(weight: IntWeight, codes: Codes) -> Array | None:
    if not codes.zeroed:
        return None
    zero = np.zeros(weight.scale.shape, np.int16) if weight.zero_point is None else weight.zero_point
    return np.asarray(zero.astype(np.int16) - codes.low)


def _chunks(form: IntFormat, parts: list[_Part], rows: int, columns: int) -> Iterator[Array]:
    arrays = [part.data.numpy() for part in parts]
    tile = form.tile(columns)
    step = max(TILE, _CHUNK // max(1, columns) // TILE * TILE)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        made = np.zeros((-(-(stop - start) // TILE), len(parts)), tile)
        for index, (part, array) in enumerate(zip(parts, arrays, strict=True)):
            whole = made[:, index]
            if "superblocks" in (tile.names or ()):
                whole = whole["superblocks"]
                whole["head"] = part.scales.head(start, stop)
            groups = whole["groups"]
            records = part.scales.record(start, stop)
            places = math.prod(groups["record"].shape[1:-1])
            if records.shape[1] < places:  # half a block of padding
                records = np.pad(records, ((0, 0), (0, places - records.shape[1]), (0, 0)))
            groups["record"] = records.reshape(groups["record"].shape)
            codes = interleaved(part.codes.of(array[start:stop], part.data.dtype), form.bits)
            groups["codes"] = codes.reshape(groups["codes"].shape)
        yield made.reshape(-1).view(np.uint8)
