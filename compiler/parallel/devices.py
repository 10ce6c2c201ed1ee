"""Mesh, stages and shardings as ONNX's own multi-device metadata (IR version 11), and back.

A configuration has a device for each rank; nodes name their stage and how their values lie on its ranks.
ONNX knows equal shares of an axis only: what it can't say (uneven or interleaved shares, partial sums) stays
in our own metadata, which ONNX files carry too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import onnx_ir as ir

from .mesh import Coordinate, Mesh, MeshAxis
from .sharding import KEY, STAGE, Sharding, Split, set_sharding, set_stage, sharding, stage

IR_VERSION = 11
"""The first that has multi-device metadata."""

_NAME = re.compile(r"dp=(\d+) pp=(\d+) tp=(\d+)")


def write_devices(model: ir.Model, mesh: Mesh) -> None:
    """Say in ``model``'s own metadata what its annotations say, as far as ONNX can."""
    names = tuple(f"dp{at.dp}.pp{at.pp}.tp{at.tp}" for at in mesh.coordinates())
    configuration = ir.ModelConfiguration(str(mesh), mesh.size, names)
    model.ir_version = max(model.ir_version, IR_VERSION)
    model.device_configurations = (configuration,)
    for node in model.graph:
        number = stage(node)
        values = dict.fromkeys([*(v for v in node.inputs if v is not None), *node.outputs])
        specs = [spec for value in values if (spec := _spec(value, mesh, number or 0)) is not None]
        if number is not None or specs:
            found = ir.NodeDeviceConfiguration(configuration, tuple(specs), number)
            node.device_configurations = (found,)


def read_devices(model: ir.Model) -> Mesh | None:
    """Annotate ``model`` with what its multi-device metadata says; its mesh, None if it says nothing.

    Annotations of our own stay, they say more. Of several configurations the first is taken. One that others
    wrote has as many stages as its nodes name, and as many shards as its values.
    """
    if not model.device_configurations:
        return None
    first = model.device_configurations[0]
    stages, shards = 1, 1
    for node in model.graph:
        for given in node.device_configurations:
            if given.configuration is not first:
                continue
            if given.pipeline_stage is not None:
                stages = max(stages, given.pipeline_stage + 1)
                if STAGE not in node.metadata_props:
                    set_stage(node, given.pipeline_stage)
            for spec in given.sharding_specs:
                shards = max(shards, *(_shards(spec), 1))
                if spec.value is not None and KEY not in spec.value.metadata_props:
                    set_sharding(spec.value, _sharding(spec))
    named = _NAME.fullmatch(first.name)
    return Mesh(pp=stages, tp=shards) if named is None else Mesh(*map(int, named.groups()))


def clear_devices(model: ir.Model) -> None:
    """Drop the multi-device metadata: it does not follow rewrites, annotations do."""
    model.device_configurations = ()
    for node in model.graph:
        node.device_configurations = ()


def _spec(value: ir.Value, mesh: Mesh, number: int) -> ir.ShardingSpec | None:
    """How a value lies on the ranks of a stage; None if it is whole, or ONNX can't say it."""
    splits = sharding(value).splits
    overs = {split.over for split in splits.values()}
    if len(overs) != 1 or not all(_is_equal(split, mesh) for split in splits.values()):
        return None
    (over,) = overs
    groups = [tuple(_ranks(mesh, over, place, number)) for place in range(mesh.length(over))]
    sharded = tuple(
        ir.ShardedDim(axis, (ir.SimpleShardedDim(split.size, mesh.length(over)),))
        for axis, split in sorted(splits.items())
    )
    if all(len(group) == 1 for group in groups):
        return ir.ShardingSpec(value, tuple(group[0] for group in groups), (), sharded)
    keys = tuple(-1 - place for place in range(len(groups)))
    table = tuple(ir.IndexToDeviceGroupMapEntry(key, group) for key, group in zip(keys, groups, strict=True))
    return ir.ShardingSpec(value, keys, table, sharded)


def _is_equal(split: Split, mesh: Mesh) -> bool:
    lengths = {length for _, _, length in split.runs}
    return split.is_plain and len(lengths) == 1 and len(split.runs) == mesh.length(split.over)


def _ranks(mesh: Mesh, over: MeshAxis, place: int, number: int) -> Iterable[int]:
    """Ranks of a stage at ``place`` along an axis, in all replicas."""
    for at in mesh.coordinates():
        here = {"dp": at.dp, "pp": at.pp, "tp": at.tp}
        if here[over] == place and (over == "pp" or at.pp == number):
            yield mesh.rank(Coordinate(**here))


def _shards(spec: ir.ShardingSpec) -> int:
    return max((one.num_shards for dim in spec.sharded_dims for one in dim.simple_shardings), default=1)


def _sharding(spec: ir.ShardingSpec) -> Sharding:
    """What a spec says of axes with a fixed size in equal shares; others are taken as whole."""
    rank = None if spec.value is None or spec.value.shape is None else len(spec.value.shape)
    found = Sharding()
    for dim in spec.sharded_dims:
        axis = dim.axis if dim.axis >= 0 else dim.axis + (rank or 0)
        sizes = [one.dim for one in dim.simple_shardings]
        if len(sizes) == 1 and isinstance(sizes[0], int) and axis >= 0:
            shares = dim.simple_shardings[0].num_shards
            if shares > 1 and sizes[0] % shares == 0:
                found = replace(found, splits={**found.splits, axis: Split.even("tp", sizes[0], shares)})
    return found
