"""Linear layers of the native kernels, called from numpy: C structs, packed weights, the reference."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from miaotui.compiler.codegen.native.pack import PackedWeight
from miaotui.compiler.codegen.native.toolchain import find_toolchain
from miaotui.compiler.dialect.linear import ACTIVATIONS, linear, normalized

Array = npt.NDArray[Any]
HARNESS = Path(__file__).with_name("linear_harness.c")
NORMS = ("", "rms", "layer")
SCALES = ("SCALE_F16", "SCALE_F32", "SCALE_TWO_LEVEL", "SCALE_ROW")
OFFSETS = ("OFFSET_NONE", "OFFSET_ZERO_POINT", "OFFSET_F16", "OFFSET_F32", "OFFSET_TWO_LEVEL")
"""In the order of C's enumerators, as the activations are."""


class Part(ctypes.Structure):
    """linear_part."""

    _fields_ = (("rows", ctypes.c_int), ("format", ctypes.c_int), ("group", ctypes.c_int))


class Spec(ctypes.Structure):
    """linear_spec."""

    _fields_ = (
        ("columns", ctypes.c_int),
        ("norm", ctypes.c_int),
        ("epsilon", ctypes.c_float),
        ("act", ctypes.c_int),
        ("gated", ctypes.c_int),
        ("parts", ctypes.c_int),
        ("part", Part * 3),
    )


class Args(ctypes.Structure):
    """linear_args."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("residual", ctypes.c_void_p),
        ("residual_stride", ctypes.c_int64),
        ("norm_scale", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("weight", ctypes.c_void_p * 3),
        ("bias", ctypes.c_void_p * 3),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """``weights``: float64[rows, columns] and packed; of a gated layer, two and one."""

    x: Array
    weights: Sequence[Array]
    packed: Sequence[PackedWeight]
    norm: str = ""
    activation: str = ""
    gated: bool = False
    norm_scale: Array | None = None
    norm_bias: Array | None = None
    biases: Sequence[Array | None] = field(default=(None, None, None))
    residual: Array | None = None
    epsilon: float = 1e-5

    def expected(self) -> Array:
        """In float64, of activations as the kernel rounds them."""
        rows = normalized(self.x, self.norm, self.norm_scale, self.norm_bias, self.epsilon)
        layers: list[Array | None] = []
        for weight, bias in zip(self.weights, self.biases, strict=False):
            layers += [weight, bias]
        facts = {"norm": "", "epsilon": 0.0, "activation": self.activation, "gated": int(self.gated)}
        return linear(rounded(rows), None, None, self.residual, *layers, **facts)[0]


def rounded(rows: Array) -> Array:
    """float[count, columns] as 8-bit codes stand for it: 32 columns share a scale."""
    count, columns = rows.shape
    blocks = np.pad(rows, ((0, 0), (0, -columns % 32))).astype(np.float32)
    blocks = blocks.reshape(count, -(-columns // 32), 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    factor = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    codes = np.rint(blocks * factor).astype(np.float64)
    wide = codes * (most / np.float32(127))
    return wide.reshape(count, -(-columns // 32) * 32)[:, :columns]


def contents(weight: PackedWeight) -> Array:
    """All bytes of a packed weight, aligned."""
    chunks = list(weight.chunks())
    size = sum(c.size for c in chunks)
    assert size == weight.size
    room = np.zeros(size + 128, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + size] = np.concatenate(chunks) if chunks else 0
    return room[start : start + size + 64 - size % 64]


class Kernels:
    """The harness, compiled with some flags."""

    def __init__(self, folder: Path, flags: Sequence[str], harness: Path = HARNESS) -> None:
        output = folder / "linear.so"
        find_toolchain().compile([harness], output, flags)
        self.library = ctypes.CDLL(str(output))
        self.library.bytes_of_tile.restype = ctypes.c_int64

    def part(self, weight: PackedWeight) -> Part:
        """Facts of a packed weight in C."""
        name, _, rest = weight.format.partition("(")
        assert name == "WEIGHT_INT"
        bits, biased, scale, offset = rest.rstrip(")").split(", ")
        numbers = (int(bits), int(biased), SCALES.index(scale), OFFSETS.index(offset))
        return Part(weight.rows, self.library.format_of(*numbers), weight.group)

    def __call__(self, case: Case, threads: int = 1, call: str = "run_linear") -> Array:
        """The layer's output."""
        count, columns = case.x.shape
        norm, act = NORMS.index(case.norm), list(ACTIVATIONS).index(case.activation)
        parts = (Part * 3)(*map(self.part, case.packed))
        spec = Spec(columns, norm, case.epsilon, act, case.gated, len(case.packed), parts)
        width = sum(w.rows for w in case.packed)
        y = np.full((count, width + 3), np.nan, np.float32)
        if case.residual is not None:
            y[:, :width] = case.residual
        weights = [contents(w) for w in case.packed]
        args = Args(count, case.x.ctypes.data, case.x.strides[0] // 4, y.ctypes.data, width + 3)
        if case.residual is not None:
            args.residual, args.residual_stride = y.ctypes.data, width + 3
        args.norm_scale = None if case.norm_scale is None else case.norm_scale.ctypes.data
        args.norm_bias = None if case.norm_bias is None else case.norm_bias.ctypes.data
        args.weight = (ctypes.c_void_p * 3)(*(w.ctypes.data for w in weights))
        args.bias = (ctypes.c_void_p * 3)(*(None if b is None else b.ctypes.data for b in case.biases))
        assert getattr(self.library, call)(ctypes.byref(spec), ctypes.byref(args), threads)
        assert np.isnan(y[:, width:]).all()
        return y[:, :width].copy()

    def unpacked(self, weight: PackedWeight) -> Array:
        """A packed weight's rows as floats."""
        held, part = contents(weight), self.part(weight)
        y = np.empty((weight.rows, weight.columns), np.float32)
        for row in range(weight.rows):
            at = [ctypes.c_void_p(p) for p in (held.ctypes.data, y[row:].ctypes.data)]
            self.library.run_unpack(ctypes.byref(part), weight.columns, at[0], ctypes.c_int64(row), at[1])
        return y
