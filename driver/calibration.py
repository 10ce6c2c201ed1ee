"""Activations of a program on calibration data: ranges for 16 bits, second moments for smaller weights."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..compiler.draft import Draft
from ..compiler.options import Target
from ..compiler.program import Program
from ..compiler.reference import Array, Arrays
from ..passes.cleanup import CLEANUP
from ..passes.moments import Moment
from ..passes.precision.ranges import Ranges, ranges_of
from ..passes.raising import RAISING
from .probe import Probe, prepared
from .workbench import SOURCE_BACKEND, Workbench, tensor_bytes

LARGEST = 1 << 30
"""Bytes of weights up to which second moments are measured: that runs the model in float32."""

IN_MEMORY = 256 << 20
"""Bytes of second moments that are kept in memory; more lie in a file that is gone with the process."""

MOST = 2 << 30
"""Bytes of second moments in all; the widest activations go without where it would be more."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def measured_ranges(program: Program, inputs: Sequence[Arrays]) -> Ranges:
    """Least and greatest value of every float tensor of ``main``, run on the CPU as imported."""
    names = [
        value.name
        for node in program.main.graph
        for value in node.outputs
        if value.name and value.dtype in _FLOATS
    ]
    ranges: Ranges = {}
    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder, "calibration")) as draft:
        built = Workbench(draft, SOURCE_BACKEND, Target("cpu")).source(program)
        with built.open(taps=names) as runner:
            for arrays in inputs:
                ranges = ranges_of({**arrays, **runner.run(arrays)}, ranges)
    return ranges


def measured_moments(
    program: Program, inputs: Sequence[Arrays], threads: int | None = None
) -> dict[str, Moment]:
    """Second moments of what linear layers read, by the name it has when weights are approximated.

    Those are the names after cleanup and raising: where an exporter spells a norm in six nodes, products
    read another value than in the end. None for a model over ``LARGEST``, or without inputs.
    """
    if not inputs or tensor_bytes(program) > LARGEST:
        return {}
    raised = prepared(program, (*CLEANUP, *RAISING, *CLEANUP))
    widths = _narrowest(read_by_products(raised))
    if not widths:
        return {}
    sums = _zeros(widths)
    rows = dict.fromkeys(widths, 0)
    with Probe(raised, values=list(widths), threads=threads) as probe:
        for arrays in inputs:
            found = {**arrays, **probe.run(arrays)}
            for name, total in sums.items():
                flat = np.asarray(found[name], np.float32).reshape(-1, total.shape[0])
                total += flat.T @ flat
                rows[name] += len(flat)
    for name, total in sums.items():
        total /= max(1, rows[name])
    return {name: Moment(total, rows[name]) for name, total in sums.items()}


def read_by_products(program: Program) -> dict[str, int]:
    """Name and width of every float value that a MatMul or Gemm of ``main`` multiplies a matrix with."""
    found: dict[str, int] = {}
    for node in program.main.graph:
        if node.op_type not in ("MatMul", "Gemm") or node.domain != "" or len(node.inputs) < 2:
            continue
        value, weight = node.inputs[0], node.inputs[1]
        if value is None or not value.name or value.dtype not in _FLOATS or _is_turned(node):
            continue
        rank = None if weight is None or weight.shape is None else len(weight.shape)
        width = value.shape[-1] if value.shape else None
        if rank == 2 and isinstance(width, int):
            found[value.name] = width
    return found


def _narrowest(widths: Mapping[str, int]) -> dict[str, int]:
    """Those whose moments fit within ``MOST`` together, in the order given."""
    left, kept = MOST // 4, set()
    for name, width in sorted(widths.items(), key=lambda item: item[1]):
        left -= width * width
        if left >= 0:
            kept.add(name)
    return {name: width for name, width in widths.items() if name in kept}


def _is_turned(node: ir.Node) -> bool:
    return node.attributes.get_int("transA", 0) != 0


def _zeros(widths: Mapping[str, int]) -> dict[str, Array]:
    """A float32[width, width] of zeros each, all in one file without a name if there are many."""
    size = sum(width * width for width in widths.values())
    if 4 * size <= IN_MEMORY:
        return {name: np.zeros((width, width), np.float32) for name, width in widths.items()}
    with tempfile.TemporaryFile(prefix="miaotui-moments-") as file:
        file.truncate(4 * size)
        whole = np.memmap(file, np.float32, "r+", shape=(size,))
    found, start = {}, 0
    for name, width in widths.items():
        found[name] = whole[start : start + width * width].reshape(width, width)
        start += width * width
    return found
