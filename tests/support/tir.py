"""Kernels in TIR compiled by themselves and called on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.isa import ISAS, can_run
from miaotui.compiler.codegen.tvm.kernels import Cpu, Kernel
from miaotui.compiler.codegen.tvm.target import spelled
from miaotui.compiler.codegen.tvm.versions import require_tvm
from miaotui.compiler.ir.quantized import BlockedWeight
from miaotui.compiler.options import Target

Array = np.ndarray[Any, Any]


def llvm(arch: str = "", threads: int = 2) -> Any:
    """TVM's target of an instruction set, by default this machine's."""
    tvm = require_tvm()
    return tvm.target.Target({**spelled(Target("cpu", arch)), "num-cores": threads})


def cpu(arch: str = "", threads: int = 2) -> Cpu:
    """What kernels know of it."""
    return Cpu.of(llvm(arch, threads))


def runs(arch: str) -> bool:
    """Whether this machine runs code of that instruction set."""
    return can_run(ISAS[arch])


class Compiled:
    """A kernel of this machine, or of ``arch``."""

    def __init__(self, kernel: Kernel, arch: str = "") -> None:
        self._tvm = require_tvm()
        module = self._tvm.IRModule({kernel.name: kernel.function})
        self.library = self._tvm.compile(module, llvm(arch))
        self._call, self._weights = self.library[kernel.name], [w.numpy() for w in kernel.weights]

    def __call__(self, inputs: Sequence[Array], *shapes: tuple[int, ...]) -> list[Array]:
        """float32 outputs of ``shapes``; they start as NaN, so that none stays unwritten unseen."""
        outputs = [np.full(shape, np.nan, np.float32) for shape in shapes]
        arrays = [np.ascontiguousarray(a) for a in (*inputs, *self._weights, *outputs)]
        tensors = [self._tvm.runtime.tensor(a) for a in arrays]
        self._call(*tensors)
        return [t.numpy() for t in tensors[len(tensors) - len(shapes) :]]


def blocked(
    rows: int,
    columns: int,
    dtype: str,
    block: int,
    *,
    zeros: bool = False,
    offsets: bool = False,
    seed: int = 0,
) -> BlockedWeight:
    """A random weight in blocks; scales are exact in float16 unless there are offsets."""
    random, kind = np.random.default_rng(seed), ir.DataType[dtype]
    low = {"INT8": -128, "INT4": -8}.get(dtype, 0)
    codes = random.integers(low, low + (1 << kind.bitwidth), (rows, columns)).astype(np.int16)
    scale: Array = random.random((rows, columns // block)).astype(np.float16).astype(np.float32)
    points = random.integers(low, low + (1 << kind.bitwidth), scale.shape).astype(np.int16)
    return BlockedWeight(
        ir.Tensor(codes.astype(kind.numpy())),
        ir.Tensor(scale),
        ir.Tensor(points.astype(kind.numpy())) if zeros else None,
        ir.Tensor(random.random(scale.shape, dtype=np.float32)) if offsets else None,
        block,
    )


def sparse_weight(outputs: int, inputs: int, share: float, seed: int = 0) -> Array:
    """float32[outputs, inputs], ``share`` of its blocks of 16 outputs by one input not zero."""
    random = np.random.default_rng(seed)
    kept = random.random((-(-outputs // 16), inputs)) < share
    weight: Array = random.standard_normal((outputs, inputs), dtype=np.float32)
    return weight * kept.repeat(16, 0)[:outputs]
