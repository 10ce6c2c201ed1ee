"""The limits of this machine, measured: reading a pool of weights, int8 dot products, float multiply-adds."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_ROUNDS = 7
_LOOPS = 4_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """``read``: bytes a second; ``int8``: operations a second (VNNI), ``fp32``: of multiply-adds."""

    read: float
    int8: float
    fp32: float

    def __str__(self) -> str:
        read, int8, fp32 = self.read / 1e9, self.int8 / 1e9, self.fp32 / 1e9
        return f"reads {read:.1f} GB/s, {int8:.0f} int8 GOP/s, {fp32:.0f} GFLOP/s"


@cache
def _library() -> Any:
    output = Path(tempfile.mkdtemp()) / "limits.so"
    source = Path(__file__).with_suffix(".c")
    command = ["gcc", "-O2", "-march=native", "-shared", "-fPIC", "-o", str(output), str(source), "-lpthread"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(output))
    library.limit_seconds.restype = ctypes.c_double
    library.limit_seconds.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
    ]  # fmt: skip
    return library


def limits(threads: int, pool_bytes: int) -> Limits:
    """The best of several runs with ``threads`` threads; the pool is read again and again, as weights are."""
    run = _library().limit_seconds
    pool = np.ones(pool_bytes + 64, np.uint8)
    start = pool.ctypes.data + -pool.ctypes.data % 64
    rounds = max(1, (1 << 29) // pool_bytes)
    read = min(run(0, start, pool_bytes, rounds, threads) for _ in range(_ROUNDS))
    int8, fp32 = (min(run(k, None, 0, _LOOPS, threads) for _ in range(3)) for k in (1, 2))
    operations = threads * _LOOPS * 16
    return Limits(
        rounds * (pool_bytes // threads // 512 * 512) * threads / read,
        operations * 128 / int8,
        operations * 32 / fp32,
    )
