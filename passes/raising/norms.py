"""The common half of LayerNorm and RMSNorm patterns: x / sqrt(mean(x²) + epsilon), then weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor, scalar
from ...compiler.ir.rewrite import Rewriter
from .match import Region, made_by, only_user, operand_and_number, operands, rank, reduced_axes, size

STASHED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Types that the normalization operators compute in float32; double would lose precision."""

WEIGHT_LIMIT = 1 << 20


@dataclass(slots=True)
class Normalized:
    """``numerator / sqrt(mean(numerator²) + epsilon)`` over the last axes, from ``axis`` on."""

    numerator: ir.Value
    axis: int
    epsilon: float
    region: Region


def match_normalized(node: ir.Node) -> Normalized | None:
    """Match a Div or Mul as the division by a root mean square; None if it is something else."""
    pairs = operands(node) if node.op_type == "Mul" else iter([(node.inputs[0], node.inputs[1])])
    for numerator, divisor in pairs:
        region = Region(node)
        radicand = radicand_of(divisor, region, inverse=node.op_type == "Mul")
        if radicand is None or numerator is None:
            continue
        found = mean_square(radicand, region)
        if found is not None and found[0] is numerator:
            return Normalized(numerator, found[1], found[2], region)
    return None


def mean_square(radicand: ir.Value, region: Region) -> tuple[ir.Value, int, float] | None:
    """``(t, first axis, epsilon)`` where ``radicand`` is ``mean(t²) + epsilon`` over the last axes."""
    add = region.find(radicand, "Add")
    split = operand_and_number(add) if add is not None else None
    mean = region.find(split[0], "ReduceMean") if split is not None else None
    if split is None or mean is None or mean.attributes.get_int("keepdims", 1) != 1:
        return None
    squared = _squared(mean.inputs[0], region)
    axes, count = reduced_axes(mean), rank(mean.inputs[0])
    if squared is None or not axes or count is None or axes != tuple(range(axes[0], count)):
        return None
    return squared, axes[0] - count, split[1]


def radicand_of(value: ir.Value | None, region: Region, inverse: bool) -> ir.Value | None:
    """What is under the root: ``value`` is its square root, or with ``inverse`` one over it."""
    node = region.find(value, "Sqrt", "Pow", "Reciprocal", "Div")
    if node is None:
        return None
    if node.op_type == "Sqrt" and not inverse:
        return node.inputs[0]
    if node.op_type == "Pow" and scalar(node.inputs[1]) == (-0.5 if inverse else 0.5):
        return node.inputs[0]
    if inverse and node.op_type == "Reciprocal":
        return radicand_of(node.inputs[0], region, inverse=False)
    if inverse and node.op_type == "Div" and scalar(node.inputs[0]) == 1:
        return radicand_of(node.inputs[1], region, inverse=False)
    return None


def _squared(value: ir.Value | None, region: Region) -> ir.Value | None:
    node = region.find(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Pow":
        return node.inputs[0] if scalar(node.inputs[1]) == 2 else None
    return node.inputs[0] if node.inputs[0] is node.inputs[1] else None


def uncast(value: ir.Value, region: Region) -> ir.Value:
    """Step over a Cast from half precision to float32: the operator does it itself."""
    cast = made_by(value, "Cast")
    source = cast.inputs[0] if cast is not None else None
    if source is None or value.dtype != ir.DataType.FLOAT or source.dtype not in STASHED[1:]:
        return value
    return source


@dataclass(slots=True)
class Affine:
    """What follows a normalization: its ``tail`` value, weight and bias, all inside ``region``."""

    tail: ir.Value
    weight: ir.Value | None = None
    bias: ir.Value | None = None


def match_affine(core: ir.Value, axis: int, dtype: ir.DataType | None, region: Region, bias: bool) -> Affine:
    """Follow ``core`` through a Cast to ``dtype``, a Mul by a constant weight, an Add of a constant bias."""
    found = Affine(core)
    for op in ("Cast", "Mul", "Add") if bias else ("Cast", "Mul"):
        user = only_user(found.tail)
        if user is None or user.op_type != op or user.domain != "":
            continue
        if op == "Cast":
            if user.outputs[0].dtype != dtype or found.tail.dtype == dtype:
                continue
        else:
            if op == "Add" and found.weight is None:
                break
            other = next((b for a, b in operands(user) if a is found.tail), None)
            if other is None or not spans(other, core, axis):
                break
            setattr(found, "weight" if op == "Mul" else "bias", other)
        region.nodes[user] = None
        found.tail = user.outputs[0]
    return found


def spans(value: ir.Value, core: ir.Value, axis: int) -> bool:
    """Whether a constant has exactly the normalized dimensions, leading ones aside."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > WEIGHT_LIMIT:
        return False
    dims = [size(core, i) for i in range(axis, 0)]
    shape = list(tensor.shape.numpy())
    leading, last = shape[: -len(dims)], shape[-len(dims) :]
    fits = len(shape) <= (rank(core) or 0)
    return fits and None not in dims and last == dims and set(leading) <= {1}


def parameter(value: ir.Value, dims: list[int], at: Rewriter) -> ir.Value:
    """A weight or bias with exactly ``dims``; leading ones are dropped in a new constant."""
    tensor = constant_tensor(value)
    assert tensor is not None
    if tensor.shape.numpy() == tuple(dims):
        return value
    return at.const(tensor.numpy().reshape(dims), f"{value.name}_flat")


def ones(dims: list[int], dtype: ir.DataType, at: Rewriter) -> ir.Value:
    """A weight of ones, for a normalization without one."""
    return at.const(np.ones(dims, dtype.numpy()), "ones")
