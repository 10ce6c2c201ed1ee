"""Integer linear layers of the native kernels beside what the machine can do: bytes read, int8 products.

python benchmarks/bench_native_kernels.py [--threads N] [--case NAME]...
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from limits import limits
from miaotui.compiler.codegen.isa import isa_of
from miaotui.compiler.codegen.native.pack.blocked import pack_blocked, pack_gated
from miaotui.compiler.codegen.native.pack.packed import PackedWeight
from miaotui.compiler.codegen.native.toolchain import find_toolchain
from miaotui.compiler.ir.quantized import BlockedWeight
from miaotui.compiler.options import Target

POOL = 160 << 20
"""Bytes of weights that are gone through: several times the last-level cache's."""

COUNTS = (1, 4, 16, 128, 512)
_RUNS = 15


@dataclass(frozen=True, slots=True)
class Case:
    """A layer's weight: ``kind`` as in GGUF."""

    kind: str
    rows: int
    columns: int
    gated: bool = False

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.kind} {self.rows}x{self.columns}{' gated' if self.gated else ''}"


CASES = (
    Case("q4_1", 960, 576),
    Case("q4_1", 1536, 576, True),
    Case("q4_1", 576, 1536),
    Case("q8_0", 8192, 576),
    Case("q4_0", 2048, 5632),
    Case("q8_0", 2048, 5632),
    Case("q4_k", 2048, 5632),
    Case("q6_k", 2048, 5632),
    Case("q5_1", 2048, 5632),
    Case("q4_0", 5632, 2048, True),
)


def weight(case: Case, random: np.random.Generator) -> BlockedWeight:
    """Random codes and scales of that kind."""
    rows, columns = case.rows, case.columns

    def levels(group: int, most: int) -> Any:
        first = random.random((rows, columns // 256, 1)).astype(np.float16).astype(np.float32)
        whole = random.integers(1, most + 1, (rows, columns // 256, 256 // group))
        return (first * whole.astype(np.float32)).reshape(rows, -1)

    def halves() -> Any:
        return random.random((rows, columns // 32)).astype(np.float16).astype(np.float32)

    low, high, dtype = {
        "q4_0": (-8, 8, ir.DataType.INT4),
        "q4_1": (0, 16, ir.DataType.UINT4),
        "q5_1": (0, 32, ir.DataType.UINT8),
        "q8_0": (-127, 128, ir.DataType.INT8),
        "q4_k": (0, 16, ir.DataType.UINT4),
        "q6_k": (-32, 32, ir.DataType.INT8),
    }[case.kind]
    data = ir.Tensor(random.integers(low, high, (rows, columns)).astype(np.int16).astype(dtype.numpy()))
    group = 16 if case.kind == "q6_k" else 32
    scale = levels(group, 63) if case.kind.endswith("k") else halves()
    offset = -levels(32, 63) if case.kind == "q4_k" else halves()
    moved = ir.Tensor(offset) if case.kind in ("q4_1", "q5_1", "q4_k") else None
    return BlockedWeight(data, ir.Tensor(scale), None, moved, group)


def packed(case: Case) -> PackedWeight:
    """The weight, or gate and up, as the kernels read it."""
    made = weight(case, np.random.default_rng(0))
    return pack_gated(made, made) if case.gated else pack_blocked(made)


class Layer(Protocol):
    """What ``library`` must know of a layer besides its packed weight."""

    @property
    def gated(self) -> bool:
        """Whether the weight is of gate and up."""
        ...


def library(cases: Sequence[tuple[Layer, PackedWeight]], folder: Path, target: Target | None = None) -> Any:
    """The layers compiled for ``target``, by default this CPU, each specialised as in a model."""
    specs, calls, bytes_ = [], [], {"worker": [""], "shared": [""]}
    for index, (case, w) in enumerate(cases):
        part = f"{{{{{w.rows}, {w.format}, {w.group}}}}}"
        fields = f".columns = {w.columns}, .gated = {int(case.gated)}, .parts = 1, .part = {part}"
        specs.append(f"static const linear_spec spec_{index} = {{{fields}}};")
        specs.append(
            f"static void layer_{index}(worker *w, const linear_args *a) {{ linear(w, &spec_{index}, a); }}"
        )
        calls.append(f"case {index}: layer_{index}(w, a); break;")
        for kind, lines in bytes_.items():
            lines.append(f"case {index}: return linear_{kind}_bytes(&spec_{index}, count);")
    specs.append("static void run_layer(int which, worker *w, const linear_args *a)")
    specs.append("{ switch (which) { " + " ".join(calls) + " } }")
    for kind, lines in bytes_.items():
        head = f"static size_t layer_{kind}_bytes(int which, int64_t count)"
        specs.append(f"{head} {{ switch (which) {{ {' '.join(lines)} }} return 0; }}")
    source, output = folder / "kernels.c", folder / "kernels.so"
    text = Path(__file__).with_name("native_kernels.c").read_text(encoding="utf-8")
    source.write_text(text.replace("\nSPECS\n", "\n" + "\n".join(specs) + "\n"), encoding="utf-8")
    toolchain = find_toolchain()
    toolchain.compile([source], output, toolchain.cpu(isa_of(target or Target("cpu"))))
    return ctypes.CDLL(str(output))


def best(code: Any, index: int, w: PackedWeight, count: int, threads: int, pool: Any) -> float:
    """Seconds of the best run through one layer; ``pool`` holds as many as fit in it."""
    layers = pool.size // w.size if count <= 16 else 1
    times = (ctypes.c_double * _RUNS)()
    numbers = (count, w.columns, w.rows, threads, _RUNS)
    done = code.time_layers(
        index,
        ctypes.c_void_p(pool.ctypes.data),
        ctypes.c_int64(layers),
        ctypes.c_int64(w.size),
        ctypes.c_int64(numbers[0]),
        *numbers[1:],
        times,
    )
    assert done
    return float(min(times)) / layers


def filled(w: PackedWeight) -> Any:
    """The weight again and again, from a cache line's beginning on."""
    once = np.concatenate(list(w.chunks()))
    times = max(1, POOL // w.size)
    room = np.empty(times * w.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    pool = room[start : start + times * w.size]
    for i in range(times):
        pool[i * w.size : (i + 1) * w.size] = once
    return pool


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", action="append", default=[])
    options = parser.parse_args()
    chosen = [c for c in CASES if not options.case or any(c.name.startswith(n) for n in options.case)]
    cases = [(case, packed(case)) for case in chosen]
    with tempfile.TemporaryDirectory() as folder:
        code = library(cases, Path(folder))
        print(f"{options.threads} threads; up to 16 rows: GB/s of weights, from 128 on: int8 GOP/s")
        print(f"{'':24}" + "".join(f"{count:>14}" for count in COUNTS))
        for index, (case, w) in enumerate(cases):
            limit = limits(options.threads, POOL)
            pool = filled(w)
            cells = []
            for count in COUNTS:
                seconds = best(code, index, w, count, options.threads, pool)
                operations = 2 * count * w.rows * w.columns * (2 if case.gated else 1) / seconds
                rate, most = (w.size / seconds, limit.read) if count <= 16 else (operations, limit.int8)
                cells.append(f"{rate / 1e9:7.1f} {100 * rate / most:4.0f} %")
            print(f"{case.name:24}" + "".join(f"{c:>14}" for c in cells) + f"   {limit}", flush=True)


if __name__ == "__main__":
    main()
