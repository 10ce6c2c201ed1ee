"""What the options mean for passes and backends: the context passes see, placement, unsupported nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ..compiler.codegen.isa import features, isa_of
from ..compiler.codegen.native.speed import kernel_speed
from ..compiler.codegen.onnxruntime.placement import fallbacks
from ..compiler.errors import PlacementError, Problem
from ..compiler.ir.quantized import blocked_weight
from ..compiler.options import CompileOptions
from ..compiler.program import Program
from ..passes.base import PassContext
from ..runtime.placement import left_to_cpu_by
from .progress import Journal
from .regions import NAME as REGIONS
from .workbench import BACKENDS, Built

SUMS_BYTES = frozenset({"AVX512-VNNI", "AVX-VNNI", "DOTPROD"})
"""Features that multiply bytes and add up in 32 bits. ONNX Runtime's other x86 kernels add pairs in 16."""


def context_of(options: CompileOptions) -> PassContext:
    """What passes may ask: the target, whether the backend has a kernel, and how fast sparse ones are."""
    name = backend_of(options)
    backend = BACKENDS["ort" if name == REGIONS else name]  # which takes what is no region of TVM's
    return PassContext(
        options.target,
        lambda node: backend.supports(node, options.target),
        speed=speed_of(options),
        sums_bytes=bool(features() & SUMS_BYTES),
        reads_halves=name == "native",
    )


def speed_of(options: CompileOptions) -> Callable[[str, int, int, float], float]:
    """``PassContext.speed``: of native kernels and TVM's as measured; ONNX Runtime skips no zeros, so 1.0."""
    if options.backend in ("tvm", "ort+tvm") and options.target.device == "cpu":
        return lambda pattern, rows, columns, density: tvm_speed(pattern, density)
    if options.backend != "native":
        return lambda pattern, rows, columns, density: 1.0
    return partial(kernel_speed, isa=isa_of(options.target))


def tvm_speed(pattern: str, density: float) -> float:
    """Times as fast as ONNX Runtime's dense kernel TVM's of blocks of zeros is, at least; 1.0 for others."""
    known = list(_TVM_BLOCKS)
    return float(np.interp(density, known, list(_TVM_BLOCKS.values()))) if pattern == "block" else 1.0


_TVM_BLOCKS = {0.1: 6.0, 0.2: 3.8, 0.6: 1.3, 0.8: 1.0}
"""By the share of blocks besides zero, 768 x 3072, with 128 rows of activations; with fewer it gains more.

To .2 the least that ``benchmarks/results/tvm-kernels.md`` has, from there less than its time, which goes by
the blocks, gives.
"""


def backend_of(options: CompileOptions) -> str:
    """The backend's name; ``auto``, where nothing was chosen yet, is the one that takes every model."""
    return "ort" if options.backend == "auto" else options.backend


def check_placement(program: Program, options: CompileOptions, journal: Journal) -> None:
    """On CUDA, name every node that ONNX Runtime is bound to run on the CPU; TVM runs none there.

    Raises: PlacementError if ``strict``.
    """
    if options.target.device == "cuda" and backend_of(options) != "tvm":
        _refuse_or_note(fallbacks(program, options.target), options, journal)


def check_session(built: Built, options: CompileOptions, journal: Journal) -> None:
    """The same, as real sessions on the device have placed them. Raises: PlacementError if ``strict``."""
    problems = [
        replace(problem, place=problem.place if entry == "main" else f"entry {entry}, {problem.place}")
        for entry, model in built.models.items()
        for problem in left_to_cpu_by(model)
    ]
    _refuse_or_note(problems, options, journal)


def _refuse_or_note(problems: list[Problem], options: CompileOptions, journal: Journal) -> None:
    if problems and options.strict:
        raise PlacementError.of(problems)
    for problem in problems:
        journal.note(f"runs on the CPU: {problem}")


def precision_of(program: Program, options: CompileOptions) -> str:
    """The precision that results are judged by: ``int8`` if the source's weights are quantized already.

    ``pruned``, the widest tolerance, if weights are pruned or factored: it refuses rubbish, what they may
    cost is for a budget to say, and ``driver/faithful.py`` holds all other passes to the precision's own.
    """
    if options.sparsity is not None or options.rank is not None:
        return "pruned"
    if options.precision != "fp32":
        return options.precision
    blocked = (blocked_weight(n.outputs[0]) for n in program.main.graph if n.op_type == "DequantizeLinear")
    return "int8" if any(weight is not None for weight in blocked) else "fp32"


def variant_name(options: CompileOptions) -> str:
    """The optimized variant's name: ``cpu-ort``."""
    return f"{options.target.device}-{backend_of(options)}"


def unsupported(program: Program, options: CompileOptions) -> list[Problem]:
    """Every node that the backend can't run anywhere, by name, with the reason."""
    backend = BACKENDS[backend_of(options)]
    return [
        Problem(f"node {node.name!r} ({node.op_type})", reason)
        for model in program.entries.values()
        for node in model.graph.all_nodes()
        if (reason := backend.supports(node, options.target)) is not None
    ]
