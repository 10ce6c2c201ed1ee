"""The products that make queries, keys and values: their weights and biases head by head, and their power."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.reference import Array
from ..moments import Moments
from .flow import NONE, Blocked, Flow, rank, size
from .flow_layers import RULES
from .site import axes_of, require_weights, stored

MOVING = frozenset(
    {"Attention", "Identity", "Dropout", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}
    | {"Slice", "Split", "Concat", "Expand", "Gather", "GatherND"}
)
"""What channels of a head may pass in any basis."""


@dataclass(frozen=True, slots=True)
class Heads:
    """How the heads of a query, key or value lie: ``count`` of ``size`` channels."""

    value: ir.Value
    count: int
    size: int

    @classmethod
    def of(cls, value: ir.Value | None, count: int) -> Heads:
        """Raises: Blocked if their size is not known."""
        assert value is not None
        width = size(value, rank(value) - 1)
        if not isinstance(width, int):
            raise Blocked(f"the width of {value.name} is not known")
        return cls(value, count, width if rank(value) == 4 else width // count)

    def units(self) -> tuple[int, Array]:
        """The axis of the channels, and each one's number within its head."""
        own = np.arange(self.size)
        return (3, own) if rank(self.value) == 4 else (2, np.tile(own, self.count))


@dataclass(frozen=True, slots=True)
class Projection:
    """The one product behind the heads of a query, key or value, and everything on the way from it."""

    heads: Heads
    flow: Flow
    node: ir.Node

    def power(self, moments: Moments | None, *, biased: bool = True) -> Array:
        """float64[heads, size, size]: mean of y·yᵀ for each head's y.

        Inputs that were not measured are taken for white. ``biased``: with the bias, inputs having no mean.
        """
        weight, turned = stored(self.node)
        tensor = constant_tensor(weight)
        assert tensor is not None
        array = tensor.numpy().astype(np.float32)
        rows = array.T if turned else array
        ((_, units),) = axes_of(self.flow, self.node).items()
        x = self.node.inputs[0]
        known = None if x is None or moments is None else moments.get(str(x.name))
        measured = known is not None and len(known.matrix) == rows.shape[1]
        bias = self._bias() if biased else np.zeros((self.heads.count, self.heads.size))
        found = []
        for start, added in zip(np.flatnonzero(units == 0), bias, strict=True):
            own = rows[start : start + self.heads.size]
            power = (own @ known.matrix if measured and known is not None else own) @ own.T
            found.append(power.astype(np.float64) + np.outer(added, added))
        return np.stack(found)

    def _bias(self) -> Array:
        """float64[heads, size]; zeros if there is none."""
        for key, axes in self.flow.axes.items():
            if not isinstance(key, tuple):
                continue
            node, slot = key
            (units,) = axes.values()
            starts = np.flatnonzero(units == 0)
            tensor = constant_tensor(node.inputs[slot])
            if tensor is None or tensor.size != len(units) or len(starts) != self.heads.count:
                continue
            if node.op_type == "Add" or (node is self.node and slot == 2):
                array = tensor.numpy().astype(np.float64).reshape(-1)
                return np.stack([array[start : start + self.heads.size] for start in starts])
        return np.zeros((self.heads.count, self.heads.size))


def projection(heads: Heads) -> Projection:
    """What makes ``heads``. Raises: Blocked if they can't be in another basis."""
    if len(heads.value.uses()) > 1:
        raise Blocked(f"more than the attention reads {heads.value.name}")
    flow = Flow(RULES, heads.value.graph, ends=frozenset({heads.value}))
    flow.follow(heads.value, *heads.units())
    if flow.consumers:
        raise Blocked(f"{next(iter(flow.consumers)).name} reads them too")
    require_turnable(flow, heads.size, {heads.count})
    (node,) = flow.producers
    return Projection(heads, flow, node)


def require_turnable(flow: Flow, width: int, counts: set[int]) -> None:
    """Raises: Blocked unless every head's channels lie side by side, of one product, never on their own.

    ``counts``: numbers of heads that weights and biases may have.
    """
    require_weights(flow)
    if [node.op_type in ("MatMul", "Gemm") for node in flow.producers] != [True]:
        raise Blocked(f"{' and '.join(node.op_type for node in flow.producers)} make them")
    for key, axes in flow.axes.items():
        units = next(iter(axes.values()))
        if len(axes) != 1 or not _whole(units, width):
            raise Blocked("the channels of a head don't stay together")
        if isinstance(key, tuple) and np.count_nonzero(units == 0) not in counts:
            raise Blocked("query, key and value of a head, or heads that share them, lie along one axis")
    for node in flow.nodes:
        slots = [slot for slot, value in enumerate(node.inputs) if value is not None]
        held = [slot for slot in slots if flow.at(node, slot)]
        if node in flow.producers or node in flow.consumers or node.op_type in MOVING:
            continue
        if node.op_type in ("Add", "Sub") and held == slots:
            continue
        if (node.op_type in ("Mul", "Div") and held == [0]) or (node.op_type == "Mul" and held == [1]):
            continue
        raise Blocked(f"{node.op_type} {node.name} treats the channels of a head one by one")


def _whole(units: Array, width: int) -> bool:
    """Whether units are channels 0 … width-1 of one head after the other."""
    starts = np.flatnonzero(units == 0)
    own = (starts[:, None] + np.arange(width)).reshape(-1)
    if not len(starts) or own[-1] >= len(units) or np.count_nonzero(units != NONE) != len(own):
        return False
    return bool((units[own] == np.tile(np.arange(width), len(starts))).all())
