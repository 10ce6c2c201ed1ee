"""Measure native kernels of other weights against dense float32, write what compiles decide by.

python benchmarks/write_native_speed.py    (compiler/codegen/native/speed.tsv; a quiet machine, 3 minutes)
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_native_kernels as kernels
import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.isa import isa_of
from miaotui.compiler.codegen.native.pack.blocked import pack_blocked
from miaotui.compiler.codegen.native.pack.floats import pack_tensors
from miaotui.compiler.codegen.native.pack.packed import TILE, PackedWeight
from miaotui.compiler.codegen.native.pack.sparse import pack_sparse
from miaotui.compiler.codegen.native.speed import NARROW, TABLE, WIDE
from miaotui.compiler.ir.quantized import BlockedWeight
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions

COUNTS = (1, 8, 128)
SHAPES = ((768, 768), (3072, 768), (768, 3072))
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """A layer's weight; ``density``: of its blocks."""

    kernel: str
    rows: int
    columns: int
    density: float = 1.0
    gated: bool = False


def packed(case: Case) -> PackedWeight:
    """Random numbers as the kernel reads them."""
    rng = np.random.default_rng(0)
    shape = case.rows, case.columns
    if case.kernel in ("int8", "int4"):
        scales = ir.Tensor(rng.random((case.rows, case.columns // 32)).astype(np.float32))
        dtype = ir.DataType.INT8 if case.kernel == "int8" else ir.DataType.UINT4
        low, high = (-127, 128) if case.kernel == "int8" else (0, 16)
        data = ir.Tensor(rng.integers(low, high, shape).astype(dtype.numpy()), dtype=dtype)
        zero = rng.integers(0, 16, scales.shape.numpy()).astype(dtype.numpy())
        points = None if case.kernel == "int8" else ir.Tensor(zero, dtype=dtype)
        return pack_blocked(BlockedWeight(data, scales, points, None, 32))
    array = rng.standard_normal(shape, np.float32)
    if case.kernel in ("dense", "fp16"):
        return pack_tensors([ir.Tensor(array.astype(np.float16) if case.kernel == "fp16" else array)])
    used = rng.random((-(-case.rows // TILE), case.columns)) < case.density
    return pack_sparse([ir.Tensor(array * used.repeat(TILE, 0)[: case.rows])])


def measured(arch: str) -> dict[tuple[str, float], list[float]]:
    """Gains by kernel and density, for each of ``COUNTS``: the least of weights in memory and in caches,
    in the geometric mean over ``SHAPES``.
    """
    kinds = [("dense", 1.0), *(("block", d) for d in DENSITIES), ("int8", 1.0), ("int4", 1.0), ("fp16", 1.0)]
    cases = [Case(kind, *shape, density) for shape in SHAPES for kind, density in kinds]
    weights = [(case, packed(case)) for case in cases]
    logs: dict[tuple[str, float], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        code = kernels.library(weights, Path(folder), Target.parse(f"cpu:{arch}"))
        dense: Weight | None = None
        for index, (case, w) in enumerate(weights):
            weight = Weight(code, index, w, kernels.filled(w))
            if case.kernel == "dense":
                dense = weight
                continue
            assert dense is not None
            gains = [min(weight.gain(dense, count, cold) for cold in (True, False)) for count in COUNTS]
            logs.setdefault((case.kernel, case.density), []).append([float(np.log(g)) for g in gains])
            print(arch, case, *(f"{g:.2f}" for g in gains), flush=True)
    return {key: np.exp(np.mean(found, axis=0)).tolist() for key, found in logs.items()}


@dataclass(frozen=True, slots=True)
class Weight:
    """A packed weight and where its kernel is; ``pool``: more copies of it than caches hold."""

    code: Any
    index: int
    packed: PackedWeight
    pool: Any

    def seconds(self, count: int, cold: bool) -> float:
        """Of the processor, for some runs with ``count`` rows: what others run meanwhile does not count."""
        pool = self.pool if cold and count <= 16 else self.pool[: self.packed.size]
        start = time.process_time()
        kernels.best(self.code, self.index, self.packed, count, 1, pool)
        return (time.process_time() - start) / int(pool.size // self.packed.size)

    def gain(self, dense: Weight, count: int, cold: bool) -> float:
        """Times as fast as ``dense``: the median of pairs, one timed right behind the other."""
        pairs = [(dense.seconds(count, cold), self.seconds(count, cold)) for _ in range(_PAIRS)]
        return float(np.median([slow / fast for slow, fast in pairs]))


def main() -> None:
    """Write the table."""
    at = conditions(Target())
    lines = [
        f"# times as fast as dense float32, 1 thread, with {', '.join(map(str, COUNTS))} rows; {at.cpu}, "
        f"{isa_of(Target('cpu')).name}, load {at.load:.1f}",
        "# instruction set\tkernel\tdensity\tgains",
    ]
    for family, arch in ((WIDE, isa_of(Target("cpu")).name), (NARROW, NARROW)):
        for (kernel, density), gains in measured(arch).items():
            lines.append("\t".join([family, kernel, f"{density:g}", *(f"{g:.2f}" for g in gains)]))
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {TABLE}")


if __name__ == "__main__":
    main()
