"""GGUF's tensor types: how blocks of quantized values are laid out, and their parts as arrays.

Source: ggml-common.h and ggml-quants.c of llama.cpp; a K block is 256 values of eight or sixteen parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array


@dataclass(frozen=True, slots=True)
class Parts:
    """Decoded blocks: ``data`` (u)int8 [n, elements], ``scale``, ``offset`` float32 [n, elements / size]."""

    data: Array
    scale: Array
    offset: Array | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A tensor type. ``elements`` and ``nbytes`` of a block as stored.

    ``decode``: uint8[n, nbytes] → parts; None for plain floats, whose dtype ``dtype`` is then. For quantized
    types ``dtype`` is that of ``data``; ``size`` elements share a scale; ``has_offset`` says whether they
    share an offset too.
    """

    name: str
    elements: int
    nbytes: int
    dtype: ir.DataType
    decode: Callable[[Array], Parts] | None = None
    size: int = 32
    has_offset: bool = False


def _q4_0(blocks: Array) -> Parts:
    return Parts(_nibbles(blocks[:, 2:], 16).view(np.int8) - np.int8(8), _half(blocks, 0))


def _q4_1(blocks: Array) -> Parts:
    return Parts(_nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Array) -> Parts:
    data = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return Parts(data.view(np.int8) - np.int8(16), _half(blocks, 0))


def _q5_1(blocks: Array) -> Parts:
    data = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return Parts(data, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Array) -> Parts:
    return Parts(blocks[:, 2:].view(np.int8), _half(blocks, 0))


def _q4_k(blocks: Array) -> Parts:
    scale, offset = _six_bit_scales(blocks)
    return Parts(_nibbles(blocks[:, 16:], 32), scale, offset)


def _q5_k(blocks: Array) -> Parts:
    scale, offset = _six_bit_scales(blocks)
    high = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << np.uint8(4)
    return Parts(_nibbles(blocks[:, 48:], 32) | high.reshape(len(blocks), 256), scale, offset)


def _q6_k(blocks: Array) -> Parts:
    count = len(blocks)
    low = _nibbles(blocks[:, :128], 64)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(count, 2, 1, 32) >> shifts & 3) << np.uint8(4)
    data = (low | high.reshape(count, 256)).view(np.int8) - np.int8(32)
    return Parts(data, _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32))


def _half(blocks: Array, at: int) -> Array:
    """The float16 at byte ``at`` of every block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Array, width: int) -> Array:
    """uint8 [n, bytes] → [n, 2 * bytes]: of every ``width`` bytes the low halves, then the high ones."""
    parts = packed.reshape(len(packed), -1, 1, width)
    shifts = np.array([0, 4], np.uint8)[:, None]
    return (parts >> shifts & 15).reshape(len(packed), -1)


def _fifth_bits(packed: Array) -> Array:
    """uint8 [n, 4] → [n, 32]: the bits, each in the place of a fifth one."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _six_bit_scales(blocks: Array) -> tuple[Array, Array]:
    """Scale and offset [n, 8] of the parts of a K block: 6-bit numbers times the block's two float16."""
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 2 & 48], axis=1)
    offsets = np.concatenate([second & 63, third >> 4 | second >> 2 & 48], axis=1)
    return _half(blocks, 0) * scales.astype(np.float32), -(_half(blocks, 2) * offsets.astype(np.float32))


_INT4, _UINT4, _INT8, _UINT8 = (
    ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8
)  # fmt: skip

BLOCKS: dict[int, Block] = {
    0: Block("F32", 1, 4, ir.DataType.FLOAT),
    1: Block("F16", 1, 2, ir.DataType.FLOAT16),
    30: Block("BF16", 1, 2, ir.DataType.BFLOAT16),
    8: Block("Q8_0", 32, 34, _INT8, _q8_0),
    2: Block("Q4_0", 32, 18, _INT4, _q4_0),
    3: Block("Q4_1", 32, 20, _UINT4, _q4_1, has_offset=True),
    6: Block("Q5_0", 32, 22, _INT8, _q5_0),
    7: Block("Q5_1", 32, 24, _UINT8, _q5_1, has_offset=True),
    12: Block("Q4_K", 256, 144, _UINT4, _q4_k, has_offset=True),
    13: Block("Q5_K", 256, 176, _UINT8, _q5_k, has_offset=True),
    14: Block("Q6_K", 256, 210, _INT8, _q6_k, size=16),
}
"""Tensor types by their number in the file."""

_OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


def type_name(number: int) -> str:
    """What ggml calls the tensor type, as far as known.

    >>> type_name(10), type_name(99)
    ('Q2_K', '99, which ggml does not have')
    """
    if number in BLOCKS:
        return BLOCKS[number].name
    return _OTHERS.get(number, f"{number}, which ggml does not have")
