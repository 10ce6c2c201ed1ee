"""The program of one rank: of everything that is split, its own share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.dialect import MIAOTUI
from ...compiler.dialect.collective import COLLECTIVES
from ...compiler.ir.rewrite import Rewriter
from ...compiler.parallel.sharding import clear, set_stage, sharding, stage
from ...compiler.program import Program
from ...compiler.reference import Array
from ..sparsity.flow import Flow
from .collectives import behind
from .groups import TABLES, operator
from .shares import ShareFlow

Cuts: TypeAlias = dict[tuple[int, str], tuple[ir.TensorProtocol, ir.TensorProtocol]]
"""Tensors and one rank's shares of them, by identity and sharding: its models go on sharing them."""


def rank_programs(program: Program, ranks: int) -> list[Program]:
    """What each of ``ranks`` runs of a ``program`` that is annotated for them; itself if it is but one."""
    if ranks == 1:
        return [program]
    found = []
    for shard in range(ranks):
        cuts: Cuts = {}
        entries = {entry: rank_model(model, ranks, shard, cuts) for entry, model in program.entries.items()}
        found.append(replace(program, entries=entries))
    return found


def rank_model(model: ir.Model, ranks: int, shard: int, cuts: Cuts | None = None) -> ir.Model:
    """What the rank ``shard`` of ``ranks`` runs of an annotated ``model``; collectives are left in it.

    Nodes and values keep their names. Tensors are cut when they are read, one at a time; ``cuts`` has those
    of the rank's other models.
    """
    cuts = {} if cuts is None else cuts
    copy = model.clone()
    graph = copy.graph
    flow = ShareFlow.annotated(graph, ranks, shard)
    for node in tuple(graph):
        if operator(node) in TABLES and 0 in flow.at(node, 0):
            _look_up_own(node, flow, ranks, shard)
        elif node.domain == MIAOTUI and node.op_type in COLLECTIVES:
            _set_sizes(node, ranks, shard)
        elif node.op_type == "Identity" and node.domain == "" and _is_whole(node, flow):
            _take_own(node, flow)
        elif _is_touched(node, flow):
            rule = flow.rules.get(operator(node))
            if rule is not None and rule.cut is not None:
                at = Rewriter(node)
                rule.cut(node, flow, at)
                _stay(node, at)
    for key, axes in flow.axes.items():
        assert isinstance(key, ir.Value)
        kept = {axis: flow.keeps(units) for axis, units in axes.items()}
        assert key.shape is not None
        key.shape = ir.Shape([len(kept[a]) if a in kept else dim for a, dim in enumerate(key.shape)])
        if key.is_initializer() and key.const_value is not None:
            whole, way = key.const_value, (id(key.const_value), sharding(key).dumps())
            if way not in cuts:
                cuts[way] = whole, own_share(whole, kept)
            key.const_value = cuts[way][1]
    clear(copy)
    return copy


def own_share(tensor: ir.TensorProtocol, kept: Mapping[int, Array]) -> ir.TensorProtocol:
    """The elements ``kept`` along some axes, read when they are needed."""
    shape = [len(kept[axis]) if axis in kept else size for axis, size in enumerate(tensor.shape.numpy())]

    def made() -> ir.TensorProtocol:
        array = tensor.numpy()
        for axis, at in kept.items():
            array = array[(slice(None),) * axis + (_stretch(at),)]
        return ir.Tensor(np.ascontiguousarray(array), dtype=tensor.dtype)

    return ir.LazyTensor(made, dtype=tensor.dtype, shape=ir.Shape(shape), name=tensor.name)


def _stretch(at: Array) -> slice | Array:
    """Indices as a slice if they have no gaps: nothing else is read then."""
    plain = len(at) > 0 and int(at[-1]) - int(at[0]) + 1 == len(at)
    return slice(int(at[0]), int(at[-1]) + 1) if plain else at


def _is_touched(node: ir.Node, flow: Flow) -> bool:
    return any(flow.at(node, slot) for slot in range(-len(node.outputs), len(node.inputs)))


def _stay(node: ir.Node, at: Rewriter) -> None:
    """New nodes run where ``node`` does."""
    for made in at.made:
        set_stage(made, stage(node))


def _is_whole(node: ir.Node, flow: Flow) -> bool:
    """Whether it makes a share of what is whole."""
    return bool(flow.at(node, -1)) and not flow.at(node, 0)


def _take_own(node: ir.Node, flow: ShareFlow) -> None:
    """Gather in the place of Identity: this rank's elements of what it has all of."""
    ((axis, units),) = flow.at(node, -1).items()
    old, whole, kept = node.outputs[0], node.inputs[0], flow.keeps(units)
    assert old.shape is not None
    at = Rewriter(node)
    own = at.op("Gather", whole, at.const(kept, f"{old.name}.elements"), axis=axis)
    own.type = old.type
    own.shape = ir.Shape([len(kept) if a == axis else dim for a, dim in enumerate(old.shape)])
    at.replace(old, own)


def _set_sizes(node: ir.Node, ranks: int, shard: int) -> None:
    value = node.inputs[0]
    assert value is not None
    split = sharding(value).splits.get(node.attributes.get_int("axis", 0))
    sizes = (1,) * ranks if node.op_type == "AllReduce" or split is None else split.sizes(ranks)
    node.attributes["sizes"] = ir.AttrInt64s("sizes", sizes)
    if node.op_type == "ReduceScatter":
        node.attributes["rank"] = ir.AttrInt64("rank", shard)


def _look_up_own(node: ir.Node, flow: ShareFlow, ranks: int, shard: int) -> None:
    """Rows of a table by the ids that are this rank's, zeros for all others.

    The last rank looks up what no other has: an id outside of the table is still refused there.
    """
    table, ids, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert table is not None and ids is not None and table.shape is not None and ids.dtype is not None
    at, kept = Rewriter(node), flow.keeps(flow.at(node, 0)[0])
    rows, start, end = len(flow.at(node, 0)[0]), int(kept[0]), int(kept[-1]) + 1

    def number(value: int, name: str) -> ir.Value:
        assert ids is not None and ids.dtype is not None
        return at.const(np.asarray(value, ids.dtype.numpy()), f"{y.name}.{name}")

    def made(
        op_type: str, *inputs: ir.Value, like: ir.Value = ids, kind: ir.DataType | None = None
    ) -> ir.Value:
        found = at.op(op_type, *inputs)
        found.type = ir.TensorType(kind or like.dtype or ir.DataType.INT64)
        found.shape = None if like.shape is None else like.shape.copy()
        return found

    zero, bool_ = number(0, "zero"), ir.DataType.BOOL
    negative = made("Less", ids, zero, kind=bool_)
    places = made("Where", negative, made("Add", ids, number(rows, "count")), ids)
    low = made("GreaterOrEqual", places, number(start, "start"), kind=bool_)
    if shard == ranks - 1:
        below = made("GreaterOrEqual", places, zero, kind=bool_)
        elsewhere = made("And", below, made("Not", low, kind=bool_), kind=bool_)
        own = made("Not", elsewhere, kind=bool_)
    else:
        own = made("And", low, made("Less", places, number(end, "end"), kind=bool_), kind=bool_)
    local = made("Where", own, made("Sub", places, number(start, "first")), zero)
    node.replace_input_with(1, local)
    axes = at.const(np.array([-1], np.int64), f"{y.name}.last")
    column = at.op("Unsqueeze", own, axes)
    column.type = ir.TensorType(bool_)
    column.shape = None if ids.shape is None else ir.Shape([*ids.shape, 1])
    assert y.dtype is not None
    nothing = at.const(np.asarray(0, y.dtype.numpy()), f"{y.name}.nothing")
    behind(y, "Where", [column, y, nothing], "rows")
    _stay(node, at)
