"""LayerNormalization from its decomposition: mean, centred, variance, root, division, weight, bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, rank, reduced_axes, require_rank, size
from .norms import STASHED, match_affine, match_normalized, ones, parameter, uncast


@dataclass(frozen=True)
class RaiseLayerNorm(RaisingPass):
    """Raise (x - mean) / sqrt(variance + epsilon) * weight + bias to LayerNormalization."""

    name: ClassVar[str] = "raise-layer-norm"
    opset: ClassVar[int] = 17
    anchors: ClassVar[frozenset[str]] = frozenset({"Div", "Mul", "RMSNormalization"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match from the division up to x, then down to the bias."""
        if node.op_type == "RMSNormalization":
            return _from_rms(node, at)
        found = match_normalized(node)
        if found is None:
            skip()
        region = found.region
        x = centred(found.numerator, found.axis, region)
        if x is None:
            skip()
        return emit_norm("LayerNormalization", node, x, found.axis, found.epsilon, region)


def _from_rms(node: ir.Node, at: Rewriter) -> str:
    """RMSNormalization of x - mean(x), which newer exporters make of a decomposed LayerNormalization."""
    value = node.inputs[0]
    region = Region(node)
    count = rank(value)
    axis = node.attributes.get_int("axis", -1)
    if value is None or count is None:
        skip()
    axis = axis - count if axis >= 0 else axis
    x = centred(value, axis, region)
    if x is None:
        skip()
    region.close(node.outputs[0])
    attributes = {name: a.value for name, a in node.attributes.items()}
    new = at.op("LayerNormalization", x, node.inputs[1], **attributes)
    at.replace(node.outputs[0], new)
    return f"LayerNormalization of {x.name}, from RMSNormalization"


def centred(value: ir.Value, axis: int, region: Region) -> ir.Value | None:
    """``x`` where ``value`` is ``x - mean(x)`` over the last axes from ``axis`` on."""
    sub = region.find(value, "Sub")
    mean = region.find(sub.inputs[1], "ReduceMean") if sub is not None else None
    if sub is None or mean is None or mean.inputs[0] is not sub.inputs[0] or sub.inputs[0] is None:
        return None
    axes = reduced_axes(mean)
    if mean.attributes.get_int("keepdims", 1) != 1 or not axes or len(axes) != -axis:
        return None
    if axes[-1] != len(sub.inputs[0].shape or ()) - 1 or axes[-1] - axes[0] != len(axes) - 1:
        return None
    return sub.inputs[0]


def emit_norm(op: str, node: ir.Node, x: ir.Value, axis: int, epsilon: float, region: Region) -> str:
    """Build ``op`` in place of the matched core ``node`` and the weight and bias that follow it.

    Raises: NoMatch if a value inside is read elsewhere, or sizes or types do not allow the operator.
    """
    core = node.outputs[0]
    source = uncast(x, region)
    half = source.dtype if source is not x else None
    affine = match_affine(core, axis, half, region, bias=op == "LayerNormalization")
    if half is not None and affine.tail.dtype == half:
        x = source
    else:  # without a Cast back right after the core, the float32 part is kept as it is
        affine = match_affine(core, axis, None, region, bias=op == "LayerNormalization")
    dims = [d for i in range(axis, 0) if (d := size(core, i)) is not None]
    if len(dims) != -axis:
        decline("the normalized dimensions are not static")
    if x.dtype not in STASHED:
        decline(f"computes in {x.dtype}, the operator in float32")
    region.close(affine.tail)
    require_rank(x, affine.tail)
    tail = affine.tail.producer()
    assert tail is not None
    at = Rewriter(tail)
    weight = parameter(affine.weight, dims, at) if affine.weight is not None else ones(dims, x.dtype, at)
    inputs = [x, weight] + ([parameter(affine.bias, dims, at)] if affine.bias is not None else [])
    at.replace(affine.tail, at.op(op, *inputs, axis=axis, epsilon=epsilon, stash_type=1))
    return f"{op} of {x.name}" + ("" if affine.weight is not None else " without weight")
