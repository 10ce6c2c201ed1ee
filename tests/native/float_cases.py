"""The float kernels, called from numpy: linear layers, norms, vector math, the thread pool."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from miaotui.compiler.codegen.isa import Isa
from miaotui.compiler.codegen.native.pack import PackedWeight
from miaotui.compiler.codegen.native.toolchain import find_toolchain
from miaotui.compiler.dialect.linear import ACTIVATIONS

Array = npt.NDArray[Any]
HARNESS = Path(__file__).with_name("float_harness.c")
NORMS = ("", "rms", "layer")
FORMATS = {"WEIGHT_F32": 1, "WEIGHT_F16": 2, "WEIGHT_BF16": 3, "WEIGHT_SPARSE": 4, "WEIGHT_BF16_BOTH": 5}
"""C's enumerators."""


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
    """One call. ``weights``: tensors [rows, columns], two of a gated layer. ``x``, ``residual``: rows whose
    last axis is contiguous.
    """

    x: Array
    weights: Sequence[ir.TensorProtocol]
    biases: Sequence[Array | None]
    norm_scale: Array | None = None
    norm_bias: Array | None = None
    residual: Array | None = None
    norm: str = ""
    epsilon: float = 1e-5
    activation: str = ""
    gated: bool = False


def aligned(data: Array) -> Array:
    """The bytes of ``data`` at an address that is a multiple of 64."""
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    memory = np.zeros(flat.size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + flat.size] = flat
    return memory[start : start + flat.size]


def packed_bytes(weight: PackedWeight) -> Array:
    """All chunks of a packed weight, as many bytes as it says."""
    data = np.concatenate([np.ascontiguousarray(c).reshape(-1).view(np.uint8) for c in weight.chunks()])
    assert data.size == weight.size
    return aligned(data)


class Kernels:
    """The harness, compiled for an instruction set."""

    def __init__(self, folder: Path, isa: Isa, flags: tuple[str, ...] = ()) -> None:
        self.multiplies_bf16 = "AVX512-BF16" in isa.needs
        library = folder / "float.so"
        find_toolchain().compile([HARNESS], library, (*isa.flags, *flags))
        self.library = ctypes.CDLL(str(library))
        self.library.run_rounds.restype = ctypes.c_int64
        self.library.run_rounds.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]

        self.library.open_pool.restype = ctypes.c_void_p
        self.library.close_pool.argtypes = [ctypes.c_void_p]

    def open_pool(self, threads: int) -> int:
        """A pool that has done one run."""
        pool = self.library.open_pool(threads)
        assert pool
        return int(pool)

    def close_pool(self, pool: int) -> None:
        """End its threads."""
        self.library.close_pool(pool)

    def linear(
        self, case: Case, packed: Sequence[PackedWeight], threads: int = 1, over_residual: bool = False
    ) -> Array:
        """``miaotui::Linear`` by weights as packed; NaN stands behind every row of the output, and stays.

        over_residual: the output is written over a copy of the residual.
        """
        held: list[Array] = []

        def pointer(array: Array | None) -> int | None:
            if array is None:
                return None
            held.append(array)
            return int(array.ctypes.data)

        width = sum(p.rows for p in packed)
        y = np.full((case.x.shape[0], width + 3), np.nan, np.float32)
        residual = case.residual
        if over_residual:
            assert residual is not None
            y[:, :width] = residual
            residual = y
        memory = [packed_bytes(p) for p in packed]
        args = Args(
            count=case.x.shape[0],
            x=pointer(case.x),
            x_stride=case.x.strides[0] // 4,
            y=pointer(y),
            y_stride=y.shape[1],
            residual=pointer(residual),
            residual_stride=0 if residual is None else residual.strides[0] // 4,
            norm_scale=pointer(case.norm_scale),
            norm_bias=pointer(case.norm_bias),
        )
        for i, data in enumerate(memory):
            args.weight[i] = pointer(data)
        for i, bias in enumerate(case.biases):
            args.bias[i] = pointer(bias)
        spec = Spec(
            columns=packed[0].columns,
            norm=NORMS.index(case.norm),
            epsilon=case.epsilon,
            act=list(ACTIVATIONS).index(case.activation),
            gated=case.gated,
            parts=len(packed),
        )
        for i, p in enumerate(packed):
            spec.part[i] = Part(p.rows, FORMATS[p.format], p.group)
        assert self.library.run_linear(ctypes.byref(spec), ctypes.byref(args), threads)
        assert np.isnan(y[:, width:]).all()
        return y[:, :width]

    def row(self, packed: PackedWeight, row: int) -> Array:
        """A row of a packed weight as floats."""
        y, data = np.full(packed.columns, np.nan, np.float32), packed_bytes(packed)
        part = Part(packed.rows, FORMATS[packed.format], packed.group)
        pointers = (ctypes.c_void_p(a.ctypes.data) for a in (data, y))
        weight, out = pointers
        self.library.run_unpack(ctypes.byref(part), packed.columns, weight, ctypes.c_int64(row), out)
        return y

    def norm(
        self,
        kind: str,
        x: Array,
        scale: Array | None = None,
        bias: Array | None = None,
        epsilon: float = 1e-5,
    ) -> Array:
        """One row normed."""
        y = np.full_like(x, np.nan)
        pointers = [None if a is None else ctypes.c_void_p(a.ctypes.data) for a in (x, y, scale, bias)]
        self.library.run_norm(
            NORMS.index(kind), *pointers[:2], ctypes.c_int64(x.size), *pointers[2:], ctypes.c_float(epsilon)
        )
        return y

    def math(self, name: str, x: Array) -> Array:
        """``name``: such as ``exp16`` (on whole vectors) or ``exp1``."""
        y = np.full_like(x, np.nan)
        pointers = (ctypes.c_void_p(a.ctypes.data) for a in (x, y))
        getattr(self.library, f"run_{name}")(*pointers, ctypes.c_int64(x.size))
        return y
