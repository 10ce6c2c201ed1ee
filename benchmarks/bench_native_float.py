"""Float linear layers of the native kernels beside what the machine can do; block-sparse ones beside dense.

python benchmarks/bench_native_float.py [--threads N] [--case NAME]...
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from bench_native_kernels import POOL, best, filled, library
from limits import limits
from miaotui.compiler.codegen.native.pack.floats import pack_tensors
from miaotui.compiler.codegen.native.pack.packed import TILE, PackedWeight
from miaotui.compiler.codegen.native.pack.sparse import pack_sparse

COUNTS = (1, 4, 16, 128, 512)
DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True, slots=True)
class Case:
    """A layer's weight; ``density``: share of blocks of 16 rows by 1 column that are not zero, 1 is dense."""

    kind: str
    rows: int
    columns: int
    gated: bool = False
    density: float = 1.0

    @property
    def name(self) -> str:
        """As the table shows it."""
        sparse = f" {1 - self.density:.0%} sparse" if self.density < 1 else ""
        return f"{self.kind} {self.rows}x{self.columns}{' gated' if self.gated else ''}{sparse}"


CASES = (
    Case("fp32", 384, 384),
    Case("fp32", 1152, 384),
    Case("fp32", 1536, 384),
    Case("fp32", 384, 1536),
    Case("fp32", 3072, 768),
    Case("fp32", 3072, 768, density=0.2),
    Case("fp32", 3072, 768, density=0.1),
    Case("fp32", 768, 3072),
    Case("fp32", 768, 3072, density=0.2),
    Case("fp32", 768, 3072, density=0.1),
    Case("fp16", 3072, 768),
    Case("bf16", 3072, 768),
    Case("bf16", 5632, 2048, True),
    Case("fp32", 2048, 5632),
)


def packed(case: Case) -> PackedWeight:
    """Random numbers as the kernels read them."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal((case.rows, case.columns), np.float32)
    if case.density < 1:
        kept = rng.random((-(-case.rows // TILE), case.columns)) < case.density
        return pack_sparse([ir.Tensor(array * kept.repeat(TILE, 0)[: case.rows])])
    dtype = DTYPES[case.kind]
    tensor = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype)
    return pack_tensors([tensor, tensor] if case.gated else [tensor])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", action="append", default=[])
    options = parser.parse_args()
    chosen = [c for c in CASES if not options.case or any(c.name.startswith(n) for n in options.case)]
    cases = [(case, packed(case)) for case in chosen]
    dense: dict[tuple[int, int, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        code = library(cases, Path(folder))
        print(
            f"{options.threads} threads; 1 row: GB/s of weights, then GFLOP/s; sparse: times as fast as dense"
        )
        print(f"{'':30}" + "".join(f"{count:>15}" for count in COUNTS))
        for index, (case, w) in enumerate(cases):
            limit = limits(options.threads, POOL)
            pool = filled(w)
            cells = []
            for count in COUNTS:
                seconds = best(code, index, w, count, options.threads, pool)
                key = (case.rows, case.columns, count)
                if case.density < 1:
                    cells.append(
                        f"{dense[key] / seconds:10.2f} x" if key in dense else f"{seconds * 1e6:9.0f} us"
                    )
                    continue
                if case.kind == "fp32":
                    dense[key] = seconds
                operations = 2 * count * case.rows * case.columns * (2 if case.gated else 1) / seconds
                rate, most = (w.size / seconds, limit.read) if count == 1 else (operations, limit.fp32)
                cells.append(f"{rate / 1e9:7.1f} {100 * rate / most:4.0f} %")
            print(f"{case.name:30}" + "".join(f"{c:>15}" for c in cells) + f"   {limit}", flush=True)


if __name__ == "__main__":
    main()
