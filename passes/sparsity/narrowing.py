"""Heads in the basis of their leading channels, and everything that holds the others made smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.reference import Array
from ..moments import Moment, Moments
from .bases import block_diagonal, fitted, score_bases, turned, value_bases
from .flow import Blocked, Flow
from .flow_attention import attention_heads
from .projections import Heads, Projection, projection, require_turnable
from .removal import Cut, Cuts, shrink
from .site import Site, site_of, stored

Bases: TypeAlias = "Sequence[Array]"
"""float[size, width] for each KV head."""


@dataclass(frozen=True, slots=True)
class Attended:
    """An attention whose heads may be narrower. ``site``: the values' way to the output projection.

    ``queries``, ``keys``: as the attention reads them; ``read``: its output; ``made``: what makes the values.
    """

    node: ir.Node
    queries: Heads
    keys: Heads
    read: Heads
    site: Site
    made: Projection

    @classmethod
    def of(cls, node: ir.Node) -> Attended:
        """Raises: Blocked if its values can't be in another basis."""
        counts = attention_heads(node)
        if counts is None:
            raise Blocked("their number is not known")
        read = Heads.of(node.outputs[0], counts[0])
        site = site_of(read.value, *read.units())
        require_turnable(site.flow, read.size, set(counts))
        if len(site.columns) != read.count * read.size:
            raise Blocked(f"{site.name} reads others beside them")
        queries, keys = (Heads.of(node.inputs[slot], counts[slot]) for slot in (0, 1))
        (maker,) = site.flow.producers
        values = Heads.of(node.inputs[2], counts[1])
        return cls(node, queries, keys, read, site, Projection(values, site.flow, maker))

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.queries.count // self.keys.count

    def projections(self) -> tuple[Projection, Projection]:
        """Of queries and keys. Raises: Blocked if they can't be in another basis."""
        return projection(self.queries), projection(self.keys)


@dataclass(slots=True)
class Narrowing:
    """One run of the pass ``step``: what it chose, which entries share. ``left``: moments that changed."""

    step: str
    moments: Moments
    left: dict[str, Callable[[], Moment]] = field(default_factory=dict)
    _cuts: Cuts = field(default_factory=dict)
    _scores: dict[tuple[int, int], tuple[Bases, Bases, float]] = field(default_factory=dict)
    _values: dict[int, tuple[Bases, Moment]] = field(default_factory=dict)

    def scores(self, found: Attended, pair: tuple[Projection, Projection], width: int) -> float:
        """Narrow queries and keys; the share of the scores' power that is lost."""
        query, key = pair
        case = id(constant_tensor(stored(query.node)[0])), id(constant_tensor(stored(key.node)[0]))
        if case not in self._scores:
            size = found.queries.size
            own = query.power(self.moments).reshape(found.keys.count, found.group, size, size).sum(1)
            # what all keys have alike changes no softmax: no bias
            each = zip(own, key.power(self.moments, biased=False), strict=True)
            maps = [score_bases(q, k, width) for q, k in each]
            lost = float(np.mean([lost for _, _, lost in maps]))
            self._scores[case] = [a for a, _, _ in maps], [b for _, b, _ in maps], lost
        queries, keys, lost = self._scores[case]
        if not found.node.attributes.get_float("scale", 0.0):  # else it would follow the size
            found.node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(found.queries.size))
        self._shrink(query.flow, queries, partial(_in_basis, queries))
        key = projection(found.keys)  # one weight may make both
        self._shrink(key.flow, keys, partial(_in_basis, keys))
        return lost

    def values(self, found: Attended, width: int) -> float:
        """Narrow the values, fit the output projection; the share of the output's power that is lost."""
        site, x = found.site, found.site.node.inputs[0]
        tensor = constant_tensor(site.weight)
        assert tensor is not None and x is not None
        weight = site.rows(tensor)
        if id(tensor) not in self._values:
            known = self.moments.get(str(x.name))
            if known is None or len(known.matrix) != len(site.columns):
                known = Moment(block_diagonal(list(found.made.power(self.moments).repeat(found.group, 0))), 0)
            groups = np.arange(found.read.count).reshape(found.keys.count, found.group).tolist()
            self._values[id(tensor)] = value_bases(known.matrix, weight, groups, width), known
        bases, known = self._values[id(tensor)]
        whole = block_diagonal([basis for basis in bases for _ in range(found.group)])
        change = fitted(weight, known.matrix, whole) @ whole.T - weight
        name = ("fitted", id(tensor), id(bases))

        def own(value: ir.Value, tensor: ir.TensorProtocol, axes: Mapping[int, Array]) -> Cut:
            if value is site.weight:
                return name, partial(_fitted, tensor, site, known.matrix, whole)
            return _in_basis(bases, value, tensor, axes)

        self._shrink(site.flow, bases, own)
        if known.rows:
            self.left[str(x.name)] = partial(_moment, known, whole)
        return known.error(change) / max(known.error(weight), 1e-30)

    def _shrink(
        self, flow: Flow, bases: Bases, own: Callable[[ir.Value, ir.TensorProtocol, Mapping[int, Array]], Cut]
    ) -> None:
        size, width = bases[0].shape
        flow.kept = np.arange(size) < width
        shrink(flow, self.step, self._cuts, own)


def _in_basis(bases: Bases, value: ir.Value, tensor: ir.TensorProtocol, axes: Mapping[int, Array]) -> Cut:
    """How a weight or bias that makes the channels is written in ``bases``."""
    ((axis, units),) = axes.items()
    size, width = bases[0].shape
    shape = list(tensor.shape.numpy())
    shape[axis] -= int(np.count_nonzero(units == 0)) * (size - width)

    def made() -> ir.TensorProtocol:
        return ir.Tensor(turned(tensor.numpy(), axis, units, bases))

    name = ("turned", id(tensor), id(bases), units.tobytes())
    return name, lambda: ir.LazyTensor(made, dtype=tensor.dtype, shape=ir.Shape(shape), name=value.name)


def _fitted(tensor: ir.TensorProtocol, site: Site, matrix: Array, basis: Array) -> ir.TensorProtocol:
    shape = list(tensor.shape.numpy())
    shape[0 if site.turned else 1] = basis.shape[1]

    def made() -> ir.TensorProtocol:
        cut = fitted(site.rows(tensor), matrix, basis)
        return ir.Tensor(np.ascontiguousarray(cut.T if site.turned else cut))

    return ir.LazyTensor(made, dtype=tensor.dtype, shape=ir.Shape(shape), name=tensor.name)


def _moment(whole: Moment, basis: Array) -> Moment:
    return Moment((basis.T @ whole.matrix @ basis).astype(np.float32), whole.rows)
