"""Times kernels for the process that started this file, which imports neither TVM's compiler nor miaotui.

A request is a line of JSON: ``libraries``, paths; ``arguments``, [dtype, shape] of each; ``seconds`` for each
library. The answer: ``seconds`` of a call, a list for each library; or ``error``.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

ROUND = 1e-3
"""Seconds that a kernel is called for in a row, before the next one's turn."""

LEAST = 4
"""Rounds at least."""


def tensor(ffi: Any, dtype: str, shape: list[int]) -> Any:
    """Of numbers between 0.1 and 1, at a cache line; integers, which may be indices, are zeros."""
    import numpy as np

    count = int(np.prod(shape, dtype=np.int64))
    size = -(-count * ffi.dtype(dtype).bits // 8)
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    data = memory[start : start + size]
    if dtype in ("float32", "float64", "float16"):
        values = data.view(dtype)
        values[...] = np.random.default_rng(0).uniform(0.1, 1.0, count)
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(ffi.from_dlpack(data), ffi.Shape(shape), ffi.dtype(dtype), 0)


def timed(ffi: Any, request: dict[str, Any]) -> list[list[float]]:
    """Seconds of a call in every round, for each library; they take turns."""
    kernels = [ffi.load_module(path)["main"] for path in request["libraries"]]
    arguments = [tensor(ffi, dtype, shape) for dtype, shape in request["arguments"]]
    counts = []
    for kernel in kernels:
        kernel(*arguments)
        start = time.perf_counter()
        kernel(*arguments)
        counts.append(max(1, int(ROUND / max(time.perf_counter() - start, 1e-7))))
    found: list[list[float]] = [[] for _ in kernels]
    end = time.perf_counter() + request["seconds"] * len(kernels)
    while len(found[0]) < LEAST or time.perf_counter() < end:
        for kernel, count, seconds in zip(kernels, counts, found, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                kernel(*arguments)
            seconds.append((time.perf_counter() - start) / count)
    return found


def main(runtime: str) -> None:
    """Answer until there is nothing more to read."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi imports it where it is installed
    import tvm_ffi

    ctypes.CDLL(runtime, ctypes.RTLD_GLOBAL)
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, 1)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"seconds": timed(tvm_ffi, json.loads(line))}
        except Exception as error:  # whatever a kernel raises: the next one may do better
            answer = {"error": str(error).strip()[-300:] or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
