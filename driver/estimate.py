"""Whether TVM's code may be as fast as ONNX Runtime's: a rough estimate, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ..compiler.cost import CostTable, program_cost
from ..compiler.cost.device import cpu
from ..compiler.errors import InputError
from ..compiler.ir.quantized import blocked_weight
from ..compiler.program import Program
from ..compiler.reference import Arrays
from .proof import typical_sizes
from .regions import ALONG, is_block_sparse

PLAUSIBLE = 1.0
"""Times ONNX Runtime's estimate up to which TVM's code is built and timed."""

SAMPLED = 12
"""Weights that are looked at for blocks of zeros, at most."""

SLOWER = {
    "MatMul": 1.1, "Gemm": 1.1, "Attention": 1.5, "Conv": 8.0, "ConvTranspose": 8.0, "LSTM": 100.0,
    "GRU": 100.0, "RNN": 100.0, "Einsum": 50.0,
}  # fmt: skip
"""Times as slow as ONNX Runtime's kernels TVM's dense ones are at best."""

SPARSE = 0.27
"""Time of a product of which 80 % of the blocks are zero, as a share of a dense one's, at 128 rows.

Source: ``benchmarks/results/tvm-kernels.md``; at one row and at 90 % it is less.
"""

FEW, FEW_ROWS = 0.9, 4.0
"""Time of dense products in a perceptron of up to 8 rows, as a share of ONNX Runtime's; operations for each
byte read up to which rows are that few. Source: ``benchmarks/results/tvm-sparse.md``, 0.70 to 0.95."""

_CALL, _KERNEL, _FUSED = 8e-6, 2e-6, 3e-7
_ORT_CALL, _ORT_KERNEL = 6e-6, 1e-6
"""Seconds that a call, a node, and one that is fused with its neighbours take however small they are."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """``ratio``: TVM's time over ONNX Runtime's. ``sparse``: the share of work in block-sparse products."""

    ratio: float
    sparse: float
    dense: str = ""

    @property
    def is_plausible(self) -> bool:
        """Whether it is worth building."""
        return self.ratio <= PLAUSIBLE

    def __str__(self) -> str:
        told = f", most of it in dense {self.dense}" if self.dense else ""
        return f"estimated to take {self.ratio:.1f} times as long as ONNX Runtime's{told}"


def estimate(program: Program, inputs: Arrays | None, cores: int, pruned: bool = False) -> Estimate | None:
    """Of one call at the sizes of ``inputs``; None where sizes are not known well enough to say anything.

    ``pruned``: weights will have blocks of zeros.
    """
    try:
        costs = program_cost(program, sizes_of(program, inputs))
    except InputError:
        return None
    device = cpu(cores)
    nodes = {str(node.name): node for node in program.main.graph.all_nodes()}
    products = set(_products(program))
    sparse = products if pruned else block_sparse(program)
    slower = {**SLOWER, **dict.fromkeys(("MatMul", "Gemm"), FEW)} if _few_rows(costs, products) else SLOWER
    ours, theirs, skipped, dense = _CALL, _ORT_CALL, 0.0, dict[str, float]()
    for row in costs.rows:
        seconds = max(0.0, row.seconds(device) - device.overhead * row.runs)
        theirs += seconds + _ORT_KERNEL * row.runs
        node = nodes.get(row.node)
        if node is not None and node in sparse:
            skipped += seconds
            ours += SPARSE * seconds + _KERNEL * row.runs
        elif row.op in slower:
            ours += slower[row.op] * seconds + _KERNEL * row.runs
            dense[row.op] = dense.get(row.op, 0.0) + slower[row.op] * seconds
        else:
            ours += seconds + (_FUSED if row.op in ALONG else _KERNEL) * row.runs
    most = max(dense, key=lambda op: dense[op], default="")
    return Estimate(ours / theirs, skipped / theirs, most if dense.get(most, 0.0) > ours / 2 else "")


def _few_rows(costs: CostTable, products: set[ir.Node]) -> bool:
    """Whether all that takes long is products of few rows with constant weights."""
    names = {str(node.name) for node in products}
    return all(
        row.node in names and row.flops <= FEW_ROWS * row.read for row in costs.rows if row.op in SLOWER
    )


def block_sparse(program: Program) -> set[ir.Node]:
    """Products with constant weights that are mostly blocks of zeros.

    Of many weights some are looked at, evenly spread; if most of those are sparse, all are taken to be.
    """
    products = list(_products(program))
    step = max(1, len(products) // SAMPLED)
    looked = products[::step]
    found = [node for node in looked if is_block_sparse(node)]
    if step == 1:
        return set(found)
    return set(products) if 2 * len(found) > len(looked) else set()


def _products(program: Program) -> Iterator[ir.Node]:
    for node in program.main.graph:
        if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1:
            weight = node.inputs[1]
            if weight is not None and weight.const_value is not None and blocked_weight(weight) is None:
                yield node


def sizes_of(program: Program, inputs: Arrays | None) -> Mapping[str, int]:
    """The sizes of named dimensions that ``inputs`` have, or those that are timed without any."""
    if inputs is None:
        return typical_sizes(program)
    return {
        dim: size
        for spec in program.inputs()
        if spec.name in inputs
        for dim, size in zip(spec.shape or (), inputs[spec.name].shape, strict=False)
        if isinstance(dim, str) and dim.isidentifier()
    }
