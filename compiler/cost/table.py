"""Cost of a program at concrete sizes: operations and bytes per node, summed and on a device's roofline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from .. import dialect
from ..ir.check_structure import subgraphs
from ..ir.constants import scalar
from ..ir.sizes import resolve_sizes
from ..program import Program
from .concrete import concrete_model
from .device import Device
from .operators import SELECTS, VIEWS, standard_flops


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One node: operations, bytes read and written, and how often it runs.

    ``exact`` is False where a size, an operator or a trip count is only known at run time; what is
    unknown counts as one.
    """

    node: str
    op: str
    dtype: ir.DataType
    flops: float
    read: float
    written: float
    runs: int = 1
    exact: bool = True

    def seconds(self, device: Device) -> float:
        """Roofline time of all its runs; nothing for a node that does and moves nothing."""
        if not self.flops and not self.read + self.written:
            return 0.0
        return self.runs * device.seconds(self.flops, self.read + self.written, self.dtype)


@dataclass(frozen=True, slots=True)
class CostTable:
    """Every node's cost at ``sizes``."""

    rows: tuple[NodeCost, ...]
    sizes: Mapping[str, int]

    @property
    def flops(self) -> float:
        """Floating-point operations of one run."""
        return sum(row.flops * row.runs for row in self.rows)

    @property
    def traffic(self) -> float:
        """Bytes read and written if nothing stays in cache between nodes."""
        return sum((row.read + row.written) * row.runs for row in self.rows)

    @property
    def exact(self) -> bool:
        """Whether every row is."""
        return all(row.exact for row in self.rows)

    def seconds(self, device: Device) -> float:
        """Sum of the nodes' roofline times."""
        return sum(row.seconds(device) for row in self.rows)

    def by_op(self) -> dict[str, tuple[int, float, float]]:
        """Count, operations and bytes by operator, most operations first."""
        totals: dict[str, tuple[int, float, float]] = {}
        for row in self.rows:
            count, flops, traffic = totals.get(row.op, (0, 0.0, 0.0))
            moved = (row.read + row.written) * row.runs
            totals[row.op] = (count + row.runs, flops + row.flops * row.runs, traffic + moved)
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def program_cost(program: Program, sizes: Mapping[str, int] | None = None, entry: str = "main") -> CostTable:
    """Cost of one run of an entry. Branches count the dearer one, loops their constant trip count.

    Raises: InputError if ``sizes`` does not fit the entry's dimensions.
    """
    resolved = resolve_sizes(program, entry, sizes)
    model = concrete_model(program.entries[entry], resolved)
    return CostTable(tuple(_graph_rows(model.graph, 1, True)), resolved)


def _graph_rows(graph: ir.Graph, runs: int, exact: bool) -> Iterator[NodeCost]:
    for node in graph:
        bodies = list(subgraphs(node))
        if not bodies:
            yield _row(node, runs, exact)
        elif node.op_type == "If":
            branches = [list(_graph_rows(body, runs, False)) for body in bodies]
            yield from max(branches, key=lambda rows: sum(r.flops + r.read + r.written for r in rows))
        else:
            trips = _trips(node)
            for body in bodies:
                yield from _graph_rows(body, runs * (trips or 1), exact and trips is not None)


def _trips(node: ir.Node) -> int | None:
    if node.op_type == "Loop":
        count = scalar(node.inputs[0])
        return None if count is None else int(count)
    if node.op_type == "Scan":
        scanned = node.inputs[-1]
        length = scanned.shape[0] if scanned is not None and scanned.shape else None
        return length if isinstance(length, int) else None
    return None


def _row(node: ir.Node, runs: int, exact: bool) -> NodeCost:
    inputs, outputs = [_static(v) for v in node.inputs], [_static(v) for v in node.outputs]
    known = all(
        v is None or not v.name or (v.shape is not None and v.shape.is_static())
        for v in (*node.inputs, *node.outputs)
    )
    schema = dialect.schema(node.domain, node.op_type)
    if schema is not None:
        values = schema.attribute_values(node)
        size = math.prod(outputs[0] or ())
        flops = schema.flops(inputs, outputs, values) if schema.flops is not None else float(size)
    else:
        flops = standard_flops(node, inputs, outputs) if node.domain == "" else 0.0
        known &= node.domain == ""
    read = written = 0.0
    if node.domain != "" or node.op_type not in VIEWS:
        written = sum(_bytes(v) for v in node.outputs)
        read = sum(_bytes(v) for v in node.inputs)
        if node.domain == "" and node.op_type in SELECTS:
            read = written + sum(_bytes(v) for v in node.inputs[1:])
    dtype = next((v.dtype for v in node.outputs if v.dtype is not None), ir.DataType.FLOAT)
    return NodeCost(str(node.name), node.op_type, dtype, flops, read, written, runs, exact and known)


def _static(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else 1 for d in value.shape)


def _bytes(value: ir.Value | None) -> float:
    if value is None or value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return 0.0
    return math.prod(_static(value) or ()) * value.dtype.bitwidth / 8 if value.shape is not None else 0.0
