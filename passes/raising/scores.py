"""Attention scores, read backwards from Softmax: masks, soft cap, scale, product of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, scalar
from .match import Region, operands, rank, scaled

_DEPTH = 12
LOWEST = -1e4
"""Exporters fill masked scores with this or less, down to -inf: after Softmax nothing is left of them."""


@dataclass(slots=True)
class Scores:
    """``softcap(q·kᵀ·scale) + masks``. ``keys``: as multiplied, with the head size before the last axis.

    ``biases``: float tensors that are added; ``masks``: (condition, fill) pairs, scores kept where true
    unless ``inverted``.
    """

    q: ir.Value
    keys: ir.Value
    scale: float = 1.0
    softcap: float = 0.0
    biases: list[ir.Value] = field(default_factory=list)
    masks: list[tuple[ir.Value, float, bool]] = field(default_factory=list)


def match_scores(value: ir.Value | None, region: Region, depth: int = _DEPTH) -> Scores | None:
    """Read ``value`` as attention scores; None if it is something else. Nodes read join ``region``."""
    if depth == 0:
        return None
    node = region.find(value, "Add", "Where", "Mul", "Div", "Cast", "MatMul")
    if node is None:
        return None
    match node.op_type:
        case "MatMul":
            return _product(node, region)
        case "Cast":
            return match_scores(node.inputs[0], region, depth - 1)
        case "Add":
            return _biased(node, region, depth)
        case "Where":
            return _masked(node, region, depth)
    return _scaled(node, region, depth)


def _product(node: ir.Node, region: Region) -> Scores | None:
    if node.inputs[0] is None or node.inputs[1] is None:
        return None
    q, q_scale = _unscaled(node.inputs[0], region)
    keys, k_scale = _unscaled(node.inputs[1], region)
    return Scores(q, keys, q_scale * k_scale)


def _unscaled(value: ir.Value, region: Region) -> tuple[ir.Value, float]:
    """``(x, c)`` with ``value = x·c``, where nothing else reads the product."""
    found, producer = scaled(value), value.producer()
    if found is None or producer is None or len(value.consumers()) != 1 or value.is_graph_output():
        return value, 1.0
    region.nodes[producer] = None
    inner, factor = _unscaled(found[0], region)
    return inner, factor * found[1]


def _biased(node: ir.Node, region: Region, depth: int) -> Scores | None:
    for inner, bias in operands(node):
        trial = region.copy()
        found = match_scores(inner, trial, depth - 1)
        if found is not None:
            region.nodes = trial.nodes
            found.biases.append(bias)
            return found
    return None


def _masked(node: ir.Node, region: Region, depth: int) -> Scores | None:
    condition, kept, other = node.inputs
    for inner, fill, inverted in ((kept, other, False), (other, kept, True)):
        number = _uniform(fill)
        if condition is None or number is None or number > LOWEST:
            continue
        found = match_scores(inner, region, depth - 1)
        if found is not None:
            found.masks.append((condition, number, inverted))
        return found
    return None


def _uniform(value: ir.Value | None) -> float | None:
    """The number that every element of a constant is."""
    array = constant(value)
    if (
        array is None
        or array.size == 0
        or array.dtype.kind != "f"
        or not bool(np.all(array == array.flat[0]))
    ):
        return None
    return float(array.flat[0])


def _scaled(node: ir.Node, region: Region, depth: int) -> Scores | None:
    found = scaled(node.outputs[0])
    if found is None:
        return None
    inner, factor = found
    tanh = region.find(inner, "Tanh")
    if tanh is not None:
        capped = match_scores(tanh.inputs[0], region, depth - 1)
        if capped is None or capped.biases or capped.masks or capped.softcap or factor <= 0:
            return None
        capped.softcap, capped.scale = factor, capped.scale * factor
        return capped
    scores = match_scores(inner, region, depth - 1)
    if scores is None or scores.biases or scores.masks or scores.softcap:
        return None
    scores.scale *= factor
    return scores


def match_probabilities(softmax: ir.Node, region: Region) -> ir.Node | None:
    """The MatMul with the values that reads ``softmax``, past Casts and the guard against NaN rows."""
    value = softmax.outputs[0]
    count = rank(value)
    if softmax.attributes.get_int("axis", -1) not in (-1, None if count is None else count - 1):
        return None
    for _ in range(4):
        users = value.consumers()
        guards = [u for u in users if u.op_type == "IsNaN" and u.domain == ""]
        users = [u for u in users if u not in guards]
        if len(users) != 1 or users[0].domain != "":
            return None
        user = users[0]
        if user.op_type == "MatMul":
            return user if user.inputs[0] is value and not guards else None
        if user.op_type == "Where" and len(guards) == 1 and _guards(user, guards[0], value):
            region.nodes[guards[0]] = None
        elif user.op_type != "Cast":
            return None
        region.nodes[user] = None
        value = user.outputs[0]
    return None


def _guards(where: ir.Node, is_nan: ir.Node, value: ir.Value) -> bool:
    condition, replacement, otherwise = where.inputs
    return condition is is_nan.outputs[0] and scalar(replacement) == 0 and otherwise is value
