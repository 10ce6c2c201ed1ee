"""Transposes sink below elementwise operators to meet those that undo them: channels-last convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ...compiler.reference import Array
from ..base import Note, Pass, PassContext, PassResult
from .forward import forward, may_forward
from .merge_views import permutation

IMAGES = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
"""Only beside these are transposes a layout; in attention they split heads, and patterns rely on them."""

ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
    }
    | {"Max", "Min", "Mul", "Neg", "Pow", "PRelu", "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub"}
    | {"Tanh"}
)
_REACH = 64


@dataclass(frozen=True)
class SinkTransposes(Pass):
    """Move Transposes below elementwise operators, Concat and ReduceMean where that lets them cancel."""

    name: ClassVar[str] = "sink-transposes"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Sweep each image graph, producers first, until nothing moves."""
        hits: list[Note] = []
        for graph in program.graphs():
            if not isinstance(graph, ir.Graph) or not any(n.op_type in IMAGES for n in graph):
                continue
            count = -1
            while count < len(hits):
                count = len(hits)
                for node in tuple(graph):
                    if node.graph is not None:
                        _visit(node, hits)
        return PassResult(len(hits), tuple(hits))


def _visit(node: ir.Node, hits: list[Note]) -> None:
    name = node.name or node.op_type
    if _cancel(node):
        hits.append(Note(name, "undoes the transpose before it"))
    elif node.domain == "" and _sink(node):
        hits.append(Note(name, "computed before the transpose"))


def _cancel(node: ir.Node) -> bool:
    inner = _transpose(node.inputs[0]) if node.op_type == "Transpose" and node.inputs else None
    source = inner.inputs[0] if inner is not None else None
    if inner is None or source is None:
        return False
    outer_perm, inner_perm = permutation(node), permutation(inner)
    if outer_perm is None or inner_perm is None or may_forward(node.outputs[0], source):
        return False
    if [inner_perm[axis] for axis in outer_perm] != list(range(len(outer_perm))):
        return False
    forward(node.outputs[0], source)
    return True


def _transpose(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "Transpose" and node.domain == "" else None


def _sink(node: ir.Node) -> bool:
    if len(node.outputs) != 1 or node.op_type not in ELEMENTWISE | {"Concat", "ReduceMean"}:
        return False
    transposes = {t for v in node.inputs if (t := _transpose(v)) is not None}
    perms = {permutation(t) for t in transposes}
    perm = perms.pop() if len(perms) == 1 else None
    if perm is None or not any(len(set(t.outputs[0].consumers())) == 1 for t in transposes):
        return False
    if any(t.outputs[0].is_graph_output() for t in transposes) or not _pays(node):
        return False
    moved = _moved_axes(node, perm)
    inputs = None if moved is None else _moved_inputs(node, perm)
    if moved is None or inputs is None:
        return False
    attributes, axes = moved
    at = Rewriter(node)
    built = [at.const(v, f"{node.name}_moved") if isinstance(v, np.ndarray) else v for v in inputs]
    if axes is not None:
        built[1] = at.const(np.asarray(axes, np.int64), f"{node.name}_axes")
    out = node.outputs[0]
    new = at.op(node.op_type, *built, **attributes)
    if node.op_type == "ReduceMean" and attributes.get("keepdims", 1) != 1:
        at.replace(out, new)
        return True
    new.type = out.type
    if out.shape is not None:
        new.shape = ir.Shape([out.shape[perm.index(axis)] for axis in range(len(perm))])
    at.replace(out, at.op("Transpose", new, perm=list(perm)))
    return True


def _pays(node: ir.Node) -> bool:
    """Whether below ``node``, through operators a Transpose can pass, another one or a mean is met."""
    pending, seen = [node], {node}
    while pending and len(seen) < _REACH:
        current = pending.pop()
        if current.op_type == "ReduceMean":
            return True
        for user in current.outputs[0].consumers():
            if user.op_type == "Transpose":
                return True
            if user not in seen and user.op_type in ELEMENTWISE | {"Concat", "ReduceMean"}:
                seen.add(user)
                pending.append(user)
    return False


def _moved_axes(node: ir.Node, perm: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...] | None] | None:
    """Attributes, and the axes input of a mean, in the order of dimensions before the Transpose."""
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    if node.op_type == "Concat":
        attributes["axis"] = perm[node.attributes.get_int("axis", 0)]
        return attributes, None
    if node.op_type != "ReduceMean":
        return attributes, None
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or given.size == 0 or _transpose(node.inputs[0]) is None:
        return None
    axes = {int(axis) % len(perm) for axis in given}
    kept = [perm[axis] for axis in range(len(perm)) if axis not in axes]
    if node.attributes.get_int("keepdims", 1) != 1 and kept != sorted(kept):
        return None
    return attributes, tuple(sorted(perm[axis] for axis in axes))


def _moved_inputs(node: ir.Node, perm: tuple[int, ...]) -> list[ir.Value | Array | None] | None:
    inverse = np.argsort(perm)
    moved: list[ir.Value | Array | None] = []
    for index, value in enumerate(node.inputs):
        transpose = _transpose(value)
        if transpose is not None:
            moved.append(transpose.inputs[0])
            continue
        array = None if value is None else constant(value)
        if value is None or (node.op_type == "ReduceMean" and index == 1):
            moved.append(value)
        elif array is None or node.op_type == "Concat":
            return None
        elif array.size == 1 and array.ndim == 0:
            moved.append(value)
        elif array.ndim > len(perm):
            return None
        else:
            wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
            moved.append(np.ascontiguousarray(wide.transpose(inverse)))
    return moved
