"""What of a graph can be split over ranks: heads of attention, channels of MLPs, rows of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import is_constant, is_widening
from ...compiler.reference import Array
from ..base import Note
from ..logits import are_ids
from ..sparsity.channels import PASSING
from ..sparsity.flow import Blocked, rank, size
from .heads import form_of, head_counts
from .rules import MICROSOFT
from .shares import ShareFlow, even_units, units_of

Key: TypeAlias = "ir.Value | tuple[ir.Node, int]"
"""What a flow knows units of: a value, or a constant as one node reads it."""

SUMMED = frozenset({"MatMul", "Gemm", f"{MICROSOFT}MatMulNBits", f"{MICROSOFT}FusedMatMul"})
"""Products with weights whose shares can be summed up: what they read is as it is."""

PRODUCTS = SUMMED | {f"{MICROSOFT}MatMulIntegerToFloat"}
TABLES = frozenset({"Gather", f"{MICROSOFT}GatherBlockQuantized"})
POINTWISE = frozenset(f"{MICROSOFT}{name}" for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu"))


def operator(node: ir.Node) -> str:
    """With its domain but for the standard one."""
    return f"{node.domain}::{node.op_type}".removeprefix("::")


@dataclass(slots=True)
class Groups:
    """Groups of units of one graph, found one after the other; none holds what another does.

    ``edges``: state tensors, of which a rank keeps its own heads. ``least``: rows of a vocabulary that a
    rank must have. ``found``: groups whose consumers' results are summed; ``gathered``: outputs whose
    elements are joined, with the group that makes them; ``tables``: look-ups of rows that lie on ranks.
    """

    graph: ir.Graph
    ranks: int
    edges: frozenset[ir.Value] = frozenset()
    least: int = 64
    found: list[ShareFlow] = field(default_factory=list)
    gathered: dict[ir.Value, ShareFlow] = field(default_factory=dict)
    tables: list[ir.Node] = field(default_factory=list)
    hits: list[Note] = field(default_factory=list)
    declined: list[Note] = field(default_factory=list)
    _held: set[Key] = field(default_factory=set)

    def search(self) -> None:
        """Find all."""
        nodes = tuple(self.graph)
        for node in nodes:
            if form_of(node) is not None:
                self._try(node, "heads", partial(self._heads, node))
        for node in nodes:
            if operator(node) in SUMMED and (node, 1) not in self._held and _reads_a_product(node):
                self._try(node, "channels", partial(self._channels, node))
        for value in dict.fromkeys(self.graph.outputs):
            if value not in self.edges and self._is_wide(value):
                self._try(value, "elements", partial(self._outputs, value))
        for node in nodes:
            if operator(node) in PRODUCTS and (node, 1) not in self._held and _has_weight(node):
                self._try(node, "outputs", partial(self._outputs, node.outputs[0]))
        for node in nodes:
            if operator(node) in TABLES and are_ids(node.inputs[1]):
                self._try(node, "rows", partial(self._table, node))

    def _try(self, place: ir.Node | ir.Value, what: str, take: Callable[[], str]) -> None:
        try:
            self.hits.append(Note(str(place.name), take()))
        except Blocked as blocked:
            self.declined.append(Note(str(place.name), f"not split by {what}: {blocked.reason}"))

    def _heads(self, node: ir.Node) -> str:
        queries, keys = head_counts(node)
        owners = head_owners(queries, keys, self.ranks)
        if owners is None:
            raise Blocked(f"{queries} query and {keys} KV heads are not {self.ranks} equal shares")
        y = node.outputs[0]
        axis = 1 if rank(y) == 4 else 2
        width = size(y, axis)
        if not isinstance(width, int):
            raise Blocked(f"the width of {y.name} is not known")
        units = units_of(owners, owners + 1, self.ranks).repeat(width // queries)
        kept = max(1, keys // self.ranks)
        text = f"{queries // self.ranks} query and {kept} KV heads of {queries} and {keys} a rank"
        try:
            self._add(self._followed(y, axis, units))
        except Blocked as blocked:
            try:
                self._gather(y, axis, units)
            except Blocked:
                raise blocked from None
            return f"{text}, gathered"
        return text

    def _channels(self, node: ir.Node) -> str:
        x = node.inputs[0]
        assert x is not None
        axis = rank(x) - 1
        if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
            axis = 0
        count, unit = size(x, axis), granule(node)
        if not isinstance(count, int):
            raise Blocked("how many channels it reads is not known")
        if count < unit * self.ranks:
            what = f"{count} channels" if unit == 1 else f"{count} channels in blocks of {unit}"
            raise Blocked(f"{what} are less than one for each of {self.ranks} ranks")
        flow = self._followed(x, axis, even_units(count, self.ranks, unit))
        if not flow.producers:
            raise Blocked("no product makes its channels")
        self._add(flow)
        return f"{count} channels over {self.ranks} ranks{'' if unit == 1 else f', in blocks of {unit}'}"

    def _is_wide(self, value: ir.Value) -> bool:
        count = size(value, rank(value) - 1) if value.shape is not None and len(value.shape) > 1 else None
        floats = value.dtype is not None and value.dtype.is_floating_point()
        return floats and isinstance(count, int) and count >= self.least * self.ranks

    def _outputs(self, value: ir.Value) -> str:
        axis = rank(value) - 1
        count = size(value, axis)
        if not isinstance(count, int) or count < self.least * self.ranks:
            raise Blocked(f"{count} are fewer than {self.least} for each of {self.ranks} ranks")
        self._gather(value, axis, even_units(count, self.ranks))
        return f"{count} outputs over {self.ranks} ranks, gathered"

    def _gather(self, value: ir.Value, axis: int, units: Array) -> None:
        """Split what makes ``value``, but nobody who reads it. Raises: Blocked."""
        flow = self._followed(value, axis, units, frozenset({value}))
        if flow.consumers or not flow.producers:
            raise Blocked("no product makes its elements")
        self._hold(flow)
        self.gathered[value] = flow

    def _table(self, node: ir.Node) -> str:
        rows = size(node.inputs[0], 0) if node.inputs[0] is not None else None
        axis = node.attributes.get_int("gather_axis" if node.domain else "axis", 0)
        if not is_constant(node.inputs[0]) or axis != 0 or not isinstance(rows, int):
            raise Blocked("it looks up no rows of a constant table")
        if rows < self.least * self.ranks:
            raise Blocked(f"{rows} rows are fewer than {self.least} for each of {self.ranks} ranks")
        self.tables.append(node)
        return f"{rows} rows over {self.ranks} ranks"

    def _followed(
        self, value: ir.Value, axis: int, units: Array, ends: frozenset[ir.Value] = frozenset()
    ) -> ShareFlow:
        """Everything that ``units`` reach. Raises: Blocked if another group holds some of it."""
        wholes = frozenset(self.graph.inputs) - self.edges
        flow = ShareFlow.within(value.graph, self.ranks, self.edges | ends, ends, wholes)
        flow.follow(value, axis, units)
        if taken := [key for key in flow.axes if key in self._held]:
            raise Blocked(f"{_name(taken[0])} is split in another way")
        both = [node for node in flow.consumers if node in flow.producers]
        if both:
            raise Blocked(f"{both[0].op_type} {both[0].name} reads and makes them")
        for node in flow.consumers:
            if operator(node) == "Gemm" and node.attributes.get_float("beta", 1.0) != 1:
                raise Blocked(f"Gemm {node.name} scales its bias")
        return flow

    def _add(self, flow: ShareFlow) -> None:
        if not flow.consumers:
            raise Blocked("no product reads them")
        self._hold(flow)
        self.found.append(flow)

    def _hold(self, flow: ShareFlow) -> None:
        self._held |= set(flow.axes)


def head_owners(queries: int, keys: int, ranks: int) -> Array | None:
    """The rank of each query head; None if ranks can't share them equally.

    Each rank has whole groups of query heads with their KV head; where there are fewer KV heads than ranks,
    equal shares of a group, and the ranks of a group all have its KV head.
    """
    groups = keys % ranks == 0 and queries % keys == 0
    shared = ranks % keys == 0 and queries % ranks == 0 and queries % keys == 0
    return np.arange(queries) // (queries // ranks) if groups or shared else None


def granule(node: ir.Node) -> int:
    """How many channels a product reads at least at once: the elements that share a scale."""
    if node.op_type == "MatMulNBits":
        zeros = node.inputs[3] if len(node.inputs) > 3 else None
        packs = 8 // node.attributes.get_int("bits", 4)
        packed = zeros is not None and zeros.dtype == ir.DataType.UINT8
        return node.attributes.get_int("block_size", 32) * (packs if packed else 1)
    weight = node.inputs[1]
    maker = None if weight is None else weight.producer()
    turned = False
    while maker is not None and maker.op_type == "Transpose" and maker.inputs[0] is not None:
        maker, turned = maker.inputs[0].producer(), not turned
    if maker is None or maker.op_type != "DequantizeLinear":
        return 1
    inner = int(turned != (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1))
    block = maker.attributes.get_int("block_size", 0)
    return block if block and maker.attributes.get_int("axis", 1) % 2 == inner else 1


def _reads_a_product(node: ir.Node) -> bool:
    """Whether what it multiplies with a weight comes of such a product, elementwise or by moves."""
    return _has_weight(node) and any(operator(made) in PRODUCTS for made in _makers(node.inputs[0]))


def _makers(value: ir.Value | None) -> Iterator[ir.Node]:
    pending, seen = [value], set()
    while pending:
        maker = None if (given := pending.pop()) is None else given.producer()
        if maker is None or maker in seen:
            continue
        seen.add(maker)
        if operator(maker) in PRODUCTS and _has_weight(maker):
            yield maker
        elif operator(maker) in PASSING or operator(maker) in POINTWISE:
            pending += maker.inputs


def _has_weight(node: ir.Node) -> bool:
    value = node.inputs[1]
    while value is not None and not is_constant(value):
        maker = value.producer()
        moves = maker is not None and maker.op_type in ("Transpose", "DequantizeLinear")
        if maker is None or not (moves or is_widening(maker)):
            return False
        value = maker.inputs[0]
    return value is not None


def _name(key: Key) -> str:
    value = key if isinstance(key, ir.Value) else key[0].inputs[key[1]]
    return "" if value is None else str(value.name)
