"""What this machine reaches: how fast its cores read together and alone, and how fast one multiplies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

from ..errors import OptionError, ToolError
from .catalogue import CPU, GIB, Accelerator, Link

_PROBE = """
import json, sys, threading, time
import numpy as np
cores = int(sys.argv[1])
def best(run, times):
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
def all_at_once(buffers):
    threads = [threading.Thread(target=buffer.max) for buffer in buffers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
buffers = [np.ones(1 << 24, np.float32) for _ in range(cores)]
square = np.random.default_rng(0).random((768, 768), np.float32)
print(json.dumps({
    "bandwidth": buffers[0].nbytes / best(buffers[0].max, 7),
    "shared": sum(b.nbytes for b in buffers) / best(lambda: all_at_once(buffers), 7),
    "fp32": 2 * 768**3 / best(lambda: square @ square, 7),
}))
"""
"""In a process of its own, so that its BLAS has one thread."""

BLOCKED = 2.0
"""Times the fp32 rate at which blocks of 4 or 8 bits are multiplied with rounded activations, about.

By ``vpdpbusd`` or the like; benchmarks/results/prefill.md has what it reaches on one machine.
"""

THREADS = Link("threads", 10e9, 29e-6)
"""A hop and a sum between threads of one process (benchmarks/results/parallel.md)."""

KERNEL = 2e-6
"""Seconds of a kernel however small it is: a call, and threads that meet."""


def local_cpu(count: int) -> Accelerator:
    """One of ``count`` equal shares of this machine. Takes about a second, the first time.

    Raises: OptionError if there are fewer cores; ToolError if it can't be measured.
    """
    cores = os.cpu_count() or 1
    if count > cores:
        fix = f"give at most {cores}x{CPU}, which share the cores"
        raise OptionError("--devices", f"{count}x{CPU}: this machine has {cores} cores", fix)
    found = _measured(cores)
    own = cores / count
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
    return Accelerator(
        name=CPU,
        title=f"{own:g} of this machine's {cores} cores",
        memory=memory,
        reserve=min(0.1 * memory, GIB),
        bandwidth=min(found["bandwidth"] * own, found["shared"]),
        rates={"fp32": found["fp32"] * own, "dot8": BLOCKED * found["fp32"] * own},
        node=count,
        link=THREADS,
        network=THREADS,
        shared=found["shared"],
        kernel=KERNEL,
    )


@cache
def _measured(cores: int) -> dict[str, float]:
    """Bytes a second of one core and of all, operations a second of one."""
    single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")}
    command = [sys.executable, "-c", _PROBE, str(cores)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **single}, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        fix = "plan for a device of the catalogue"
        raise ToolError(CPU, f"could not be measured: {error}", fix) from error
    found: dict[str, float] = json.loads(done.stdout)
    return found
