"""What changed in an operator's form or meaning up to opset 9: the models of 2017 and 2018."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from .adapters import Adapter, Blocked, default_attribute, int_input, rank_of, take


def broadcast_at_axis(node: ir.Node, at: Rewriter) -> None:
    """Binary operators before 7: ``broadcast=1, axis=k`` aligned the second operand at axis k."""
    broadcast, axis = take(node, "broadcast", 0), take(node, "axis")
    if not broadcast or axis is None:
        return
    left, right = rank_of(node.inputs[0]), rank_of(node.inputs[1])
    if left is None or right is None:
        raise Blocked("its operands' ranks are unknown, and broadcast at an axis needs them")
    _append_axes(node, at, left - (axis % max(left, 1)) - right)


def slope_per_channel(node: ir.Node, at: Rewriter) -> None:
    """PRelu before 7: a 1-D slope belonged to the channels (axis 1)."""
    data, slope = rank_of(node.inputs[0]), rank_of(node.inputs[1])
    if data is None or slope is None:
        raise Blocked("its operands' ranks are unknown, and a slope per channel needs them")
    if slope == 1 and node.inputs[1].shape != (1,):  # type: ignore[union-attr]
        _append_axes(node, at, data - 2)


def _append_axes(node: ir.Node, at: Rewriter, count: int) -> None:
    if count <= 0:
        return
    rank = rank_of(node.inputs[1]) or 0
    axes = at.const(np.arange(rank, rank + count, dtype=np.int64), f"{node.name}_axes")
    node.replace_input_with(1, at.op("Unsqueeze", node.inputs[1], axes))


def drop(*names: str) -> Adapter:
    """The attributes ``names`` lost their meaning."""

    def adapt(node: ir.Node, at: Rewriter) -> None:
        for name in names:
            take(node, name)

    return adapt


def cast_target(node: ir.Node, at: Rewriter) -> None:
    """Cast before 6: ``to`` was a dtype's name."""
    target = take(node, "to")
    try:
        code = ir.DataType[str(target).upper()] if isinstance(target, str) else ir.DataType(target)
    except (KeyError, ValueError, TypeError):
        raise Blocked(f"to={target!r} is no dtype") from None
    node.attributes.add(ir.AttrInt64("to", int(code)))


def pad_names(node: ir.Node, at: Rewriter) -> None:
    """Pad before 2: ``pads`` was called ``paddings``."""
    pads = take(node, "paddings")
    if pads is not None:
        node.attributes.add(ir.AttrInt64s("pads", list(pads)))


def integer_norm(node: ir.Node, at: Rewriter) -> None:
    """LpPool and GlobalLpPool before 2: ``p`` was a float."""
    node.attributes.add(ir.AttrInt64("p", int(take(node, "p", 2.0))))


def upsample_scales(node: ir.Node, at: Rewriter) -> None:
    """Upsample before 7: the factors of the two image axes were two attributes."""
    height, width = take(node, "height_scale"), take(node, "width_scale")
    if height is None or width is None:
        raise Blocked("it has no height_scale and width_scale")
    node.attributes.add(ir.AttrFloat32s("scales", [1.0, 1.0, height, width]))


def normalised_axes(node: ir.Node, at: Rewriter) -> None:
    """MeanVarianceNormalization before 9: ``across_channels`` instead of axes."""
    if not take(node, "normalize_variance", 1):
        raise Blocked("normalize_variance=0 was dropped")
    axes = [0, 1, 2, 3] if take(node, "across_channels", 0) else [0, 2, 3]
    node.attributes.add(ir.AttrInt64s("axes", axes))


def blocked(reason: str) -> Adapter:
    """No newer form computes the same."""

    def adapt(node: ir.Node, at: Rewriter) -> None:
        raise Blocked(reason)

    return adapt


_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")

LEGACY: dict[str, Sequence[tuple[int, Adapter]]] = {
    **{op: [(7, broadcast_at_axis)] for op in _BINARY},
    "BatchNormalization": [(7, drop("is_test"))],
    "Cast": [(6, cast_target)],
    "Concat": [(4, default_attribute("axis", 1))],
    "Dropout": [(7, drop("is_test"))],
    "GRU": [(7, drop("output_sequence"))],
    "Gemm": [(7, drop("broadcast"))],
    "GlobalLpPool": [(2, integer_norm)],
    "LSTM": [(7, drop("output_sequence"))],
    "LpPool": [(2, integer_norm)],
    "MeanVarianceNormalization": [(9, normalised_axes)],
    "PRelu": [(7, slope_per_channel)],
    "Pad": [(2, pad_names)],
    "RNN": [(7, drop("output_sequence"))],
    "Reshape": [(5, int_input("shape", 1))],
    "Scan": [(9, blocked("Scan-8 scans over a batch axis"))],
    "Selu": [(6, default_attribute("alpha", 1.6732)), (6, default_attribute("gamma", 1.0507))],
    "Tile": [(6, blocked("Tile-1 takes an axis"))],
    "Upsample": [(7, upsample_scales)],
}
