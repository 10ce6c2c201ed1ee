"""Schedules for CPUs of kernels that TVM fused: outer loops in parallel, vectors over the innermost axis."""

from __future__ import annotations

import math
from typing import Any

_CHANNELS = 4
"""Rows of a product that are computed side by side: what is loaded for one serves all."""

_LEAST = 4
"""Numbers from which on a vector pays."""


def scheduled(tvm: Any, module: Any, lanes: int) -> Any:
    """The module with every kernel scheduled that has none yet; what no rule takes stays as it is."""
    found = {}
    for name, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and not _is_done(function):
            function = _scheduled(tvm, function, lanes)
        found[name] = function
    return tvm.IRModule(found, attrs=module.attrs)


def _is_done(function: Any) -> bool:
    return bool(function.attrs is not None and function.attrs.get("tirx.is_scheduled", False))


def _scheduled(tvm: Any, function: Any, lanes: int) -> Any:
    try:
        schedule = tvm.s_tir.Schedule(function, error_render_level="none")
        _inline(schedule)
        for name in [str(schedule.get(block).name_hint) for block in _blocks(schedule)]:
            if any(schedule.get(block).name_hint == name for block in _blocks(schedule)):
                _block(schedule, schedule.get_sblock(name), lanes)
        return schedule.mod["main"].with_attr("tirx.is_scheduled", True)
    except Exception:  # a primitive that does not apply to this kernel: it runs as it is
        return function


def _blocks(schedule: Any) -> list[Any]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _inline(schedule: Any) -> None:
    """What only copies or computes elements becomes part of what reads it."""
    for block in _blocks(schedule):
        frame = str(schedule.get(block).name_hint).startswith("pad")  # its conditions would break vectors
        if frame or _reduces(schedule, block):
            continue
        try:
            schedule.compute_inline(block)
        except Exception:  # an output, or read in a way that can't be inlined
            continue


def _reduces(schedule: Any, block: Any) -> bool:
    return any(v.iter_type == 2 for v in schedule.get(block).iter_vars)


def _block(schedule: Any, block: Any, lanes: int) -> None:
    loops = schedule.get_loops(block)
    kinds = [int(v.iter_type) for v in schedule.get(block).iter_vars]
    if len(loops) != len(kinds) or any(k not in (0, 2) for k in kinds):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    inner = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 2]
    if not spatial:
        return
    if not inner:
        if len(spatial) > 1:
            schedule.parallel(schedule.fuse(*spatial[:-1]))
        return
    _reduction(schedule, block, spatial, inner, lanes)


def _reduction(schedule: Any, block: Any, spatial: list[Any], inner: list[Any], lanes: int) -> None:
    """Vectors of results, for as many rows as share what is loaded; each summed in registers."""
    extent = _extent(schedule, spatial[-1])
    width = _divisor(extent, lanes)
    if width < _LEAST:
        if len(spatial) > 1:
            schedule.parallel(schedule.fuse(*spatial[:-1]))
        return
    outer, vector = schedule.split(spatial[-1], [None, width])
    rows: list[Any] = []
    before = spatial[:-1]
    if len(before) >= 2:
        place = 1  # channels of a convolution, rows of a batched product
        count = _divisor(_extent(schedule, before[place]), _CHANNELS)
        if count > 1:
            above, side = schedule.split(before[place], [None, count])
            before[place] = above
            rows = [side]
    schedule.reorder(*before, outer, *inner, *rows, vector)
    schedule.parallel(schedule.fuse(*before) if len(before) > 1 else before[0] if before else outer)
    local = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(local, outer)
    follow(schedule, local)
    schedule.vectorize(schedule.get_loops(local)[-1])
    schedule.vectorize(vector)
    for row in rows:
        schedule.unroll(row)
    schedule.decompose_reduction(block, inner[0])


def follow(schedule: Any, block: Any) -> None:
    """What only goes on computing with the results is done before they are stored."""
    while True:
        readers = schedule.get_consumers(block)
        if len(readers) != 1 or _reduces(schedule, readers[0]):
            return
        try:
            schedule.reverse_compute_inline(readers[0])
        except Exception:  # it reads them in another order
            return


def _extent(schedule: Any, loop: Any) -> int:
    extent = schedule.get(loop).extent
    try:
        return int(extent)
    except (TypeError, ValueError):
        return 0


def _divisor(extent: int, most: int) -> int:
    """The greatest number up to ``most`` that divides the extent; 1 if it is not known."""
    return max((d for d in range(1, most + 1) if extent and math.gcd(extent, d) == d), default=1)
