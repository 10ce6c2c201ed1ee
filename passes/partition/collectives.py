"""Groups of units written into a graph: shardings of values, collectives behind what is partial or split."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ...compiler.dialect import MIAOTUI
from ...compiler.ir.constants import is_constant
from ...compiler.ir.provenance import add_passes, merge_sources
from ...compiler.ir.rewrite import Rewriter
from ...compiler.parallel.sharding import Sharding, set_sharding, set_stage, stage
from ..sparsity.flow import size
from .groups import Groups
from .shares import even_units, sharding_of

Readers = dict[ir.Value, dict[tuple[ir.Node, int], Sharding]]


def annotate(groups: Groups, step: str) -> None:
    """Write ``groups`` into their graph, for the pass ``step``; the whole program still gives the same."""
    ranks = groups.ranks
    readers: Readers = {}
    for flow in (*groups.found, *groups.gathered.values()):
        for key, axes in flow.axes.items():
            found = sharding_of(axes, ranks)
            if isinstance(key, ir.Value):
                set_sharding(key, found)
            else:
                node, slot = key
                value = node.inputs[slot]
                assert value is not None
                readers.setdefault(value, {})[key] = found
    for node in groups.tables:
        for slot in (0, 2, 3):
            value = node.inputs[slot] if slot < len(node.inputs) else None
            if value is not None:
                rows = size(value, 0)
                assert isinstance(rows, int)
                found = sharding_of({0: even_units(rows, ranks)}, ranks)
                readers.setdefault(value, {})[node, slot] = found
    for value, slots in readers.items():
        if is_constant(value):
            _annotate_constant(value, slots)
        else:
            _take_own(value, slots, step)
    summed = [node for flow in groups.found for node in flow.consumers] + groups.tables
    for node in dict.fromkeys(summed):
        bias = _bias(node)
        product = node.outputs[0]
        total = _meet(product, "AllReduce", step)
        set_sharding(product, Sharding(partial="tp"))
        if bias is not None:
            _add(total, bias)
    for value, flow in groups.gathered.items():
        (axis,) = flow.axes[value]
        _meet(value, "AllGather", step, axis=axis)


def _annotate_constant(value: ir.Value, slots: dict[tuple[ir.Node, int], Sharding]) -> None:
    """Its sharding, where all read it alike; else a value for each way, of the same tensor."""
    uses = {(usage.node, usage.idx) for usage in value.uses()}
    ways = list(dict.fromkeys(found.dumps() for found in slots.values()))
    if len(ways) == 1 and uses == set(slots) and not value.is_graph_output():
        set_sharding(value, next(iter(slots.values())))
        return
    made: dict[str, ir.Value] = {}
    tensor = value.const_value
    assert tensor is not None
    for (node, slot), found in slots.items():
        way = found.dumps()
        if way not in made:
            made[way] = Rewriter(node).const(tensor, str(value.name))
            set_sharding(made[way], found)
        node.replace_input_with(slot, made[way])


def _take_own(value: ir.Value, slots: dict[tuple[ir.Node, int], Sharding], step: str) -> None:
    """An Identity in front of each who reads its own elements of a value that every rank has all of."""
    for (node, slot), found in slots.items():
        own = Rewriter(node).op("Identity", value)
        own.type, own.shape = value.type, None if value.shape is None else value.shape.copy()
        set_sharding(own, found)
        node.replace_input_with(slot, own)
        add_passes(node, [step])


def _bias(node: ir.Node) -> ir.Value | None:
    """The bias of a product whose result becomes a part of a sum, taken from it."""
    slot = {"Gemm": 2, "MatMulNBits": 5}.get(node.op_type, len(node.inputs))
    bias = node.inputs[slot] if slot < len(node.inputs) else None
    if bias is not None:
        node.resize_inputs(slot)
    return bias


def _meet(value: ir.Value, op_type: str, step: str, **attributes: Any) -> ir.Value:
    """What a collective makes of ``value``, in its place and under its name."""
    maker = value.producer()
    assert maker is not None
    made = behind(value, op_type, [value], _ENDINGS[op_type], attributes, MIAOTUI)
    node = made.producer()
    assert node is not None
    merge_sources(node, [maker])
    add_passes(node, [step])
    return made


def _add(value: ir.Value, other: ir.Value) -> None:
    maker = value.producer()
    made = behind(value, "Add", [value, other], "product")
    node = made.producer()
    assert node is not None and maker is not None
    merge_sources(node, [maker])


def behind(
    value: ir.Value,
    op_type: str,
    inputs: list[ir.Value],
    ending: str,
    attributes: dict[str, Any] | None = None,
    domain: str = "",
) -> ir.Value:
    """A new node's result in the place of ``value``, one of its inputs, and under its name.

    ``value``, from now on read by that node alone, is called as before with ``ending`` behind it.
    """
    maker = value.producer()
    assert maker is not None and maker.graph is not None
    node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=1)
    set_stage(node, stage(maker))
    maker.graph.insert_after(maker, node)
    made = node.outputs[0]
    made.type, made.shape = value.type, None if value.shape is None else value.shape.copy()
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    node.replace_input_with(inputs.index(value), value)
    name, value.name = value.name, f"{value.name}.{ending}"
    made.name = name
    return made


_ENDINGS = {"AllReduce": "partial", "AllGather": "share"}
"""What the names of values end in that a collective reads."""
