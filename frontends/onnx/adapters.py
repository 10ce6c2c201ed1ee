"""What changed in an operator's form or meaning from opset 7 on, and how an older node is brought over it.

Every adapter edits one node in place, or replaces it by nodes in the form of the program's opset.
Source: the operator changelog of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.rewrite import Rewriter

Adapter: TypeAlias = Callable[[ir.Node, Rewriter], None]


class Blocked(Exception):  # noqa: N818 - told to the user as a note, never as an error
    """The node can't be raised; the text says why."""


def take(node: ir.Node, name: str, default: Any = None) -> Any:
    """Remove the attribute and return its value. Raises: Blocked if it is a function's parameter."""
    attribute = node.attributes.pop(name, None)
    if attribute is None:
        return default
    if attribute.is_ref():
        raise Blocked(f"attribute {name!r} is a function parameter")
    return attribute.value


def set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    """Let input ``index`` be ``value``; inputs in between become absent."""
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def rank_of(value: ir.Value | None) -> int | None:
    """Number of dimensions, if known."""
    return None if value is None or value.shape is None else len(value.shape)


def int_input(name: str, index: int) -> Adapter:
    """The integer list attribute ``name`` became input ``index``."""

    def adapt(node: ir.Node, at: Rewriter) -> None:
        values = take(node, name)
        if values is not None:
            set_input(node, index, at.const(np.array(values, np.int64).reshape(-1), f"{node.name}_{name}"))

    return adapt


def default_attribute(name: str, value: Any) -> Adapter:
    """The default of attribute ``name`` changed from ``value``: write the old one down."""

    def adapt(node: ir.Node, at: Rewriter) -> None:
        if name not in node.attributes:
            node.attributes.add(ir.convenience.convert_attribute(name, value))

    return adapt


def each(*adapters: Adapter) -> Adapter:
    """Apply several adapters in order."""

    def adapt(node: ir.Node, at: Rewriter) -> None:
        for adapter in adapters:
            adapter(node, at)

    return adapt


def flatten_around(node: ir.Node, at: Rewriter) -> None:
    """Softmax family before 13: the input is flattened to 2-D at ``axis`` (default 1) first."""
    axis = take(node, "axis", 1)
    data = node.inputs[0]
    rank = rank_of(data)
    if rank is not None and axis in (rank - 1, -1):
        node.attributes.add(ir.AttrInt64("axis", -1))
        return
    flat = at.op("Flatten", data, axis=axis)
    result = at.op(node.op_type, flat, axis=-1)
    at.replace(node.outputs[0], at.op("Reshape", result, at.op("Shape", data), allowzero=1))


def clip_bounds(node: ir.Node, at: Rewriter) -> None:
    """Clip before 11: ``min`` and ``max`` were float attributes."""
    data = node.inputs[0]
    for index, name in ((1, "min"), (2, "max")):
        bound = take(node, name)
        if bound is not None:
            set_input(node, index, _scalar_like(data, bound, at, f"{node.name}_{name}"))


def pad_inputs(node: ir.Node, at: Rewriter) -> None:
    """Pad before 11: ``pads`` and ``value`` were attributes."""
    int_input("pads", 1)(node, at)
    value = take(node, "value", 0.0)
    if value:
        set_input(node, 2, _scalar_like(node.inputs[0], value, at, f"{node.name}_value"))


def _scalar_like(data: ir.Value | None, number: float, at: Rewriter, name: str) -> ir.Value:
    dtype = None if data is None else data.dtype
    if dtype is not None:
        return at.const(ir.tensor(np.array(number, dtype.numpy()), dtype, name=name), name)
    return at.op("CastLike", at.const(np.array(number, np.float32), name), data)


def dropout_inputs(node: ir.Node, at: Rewriter) -> None:
    """Dropout before 12: ``ratio`` was an attribute, and the model's mode was inference."""
    ratio = take(node, "ratio", 0.5)
    set_input(node, 1, at.const(np.array(ratio, np.float32), f"{node.name}_ratio"))


def dropout_mask(node: ir.Node, at: Rewriter) -> None:
    """Dropout before 10: the mask had the data's dtype."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Blocked("its mask output is used and had another dtype")
    node.resize_outputs(1)


def batch_norm_training(node: ir.Node, at: Rewriter) -> None:
    """BatchNormalization before 14: five outputs meant training."""
    if take(node, "spatial", 1) == 0:
        return _batch_norm_per_activation(node, at)
    used = [i for i, out in enumerate(node.outputs) if i == 0 or out.uses() or out.is_graph_output()]
    if max(used) > 2:
        raise Blocked("its saved mean or variance is used, which newer opsets do not compute")
    training = len(node.outputs) > 1 and max(used) > 0
    node.resize_outputs(3 if training else 1)
    if training:
        node.attributes.add(ir.AttrInt64("training_mode", 1))
    return None


def _batch_norm_per_activation(node: ir.Node, at: Rewriter) -> None:
    """``spatial=0``: statistics of shape [C, ...] for every activation, plain broadcasting."""
    data, scale, bias, mean, variance = node.inputs[:5]
    dtype = data.dtype if data is not None and data.dtype is not None else ir.DataType.FLOAT
    epsilon = at.const(np.array(take(node, "epsilon", 1e-5), dtype.numpy()), f"{node.name}_epsilon")
    deviation = at.op("Sqrt", at.op("Add", variance, epsilon))
    normal = at.op("Div", at.op("Sub", data, mean), deviation)
    at.replace(node.outputs[0], at.op("Add", at.op("Mul", normal, scale), bias))


def split_outputs(node: ir.Node, at: Rewriter) -> None:
    """Split before 18: equal parts were implied by the number of outputs."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def upsample(node: ir.Node, at: Rewriter) -> None:
    """Upsample (7 and 9) is Resize with asymmetric coordinates rounded down."""
    scales = take(node, "scales")
    factor = (
        node.inputs[1] if scales is None else at.const(np.array(scales, np.float32), f"{node.name}_scales")
    )
    _resize(node, at, factor, "floor")


def resize_10(node: ir.Node, at: Rewriter) -> None:
    """Resize-10: asymmetric coordinates; nearest rounds down when enlarging and up when shrinking."""
    factor = node.inputs[1]
    nearest = "floor"
    if node.attributes.get_string("mode", "nearest") == "nearest":
        known = None if factor is None else constant(factor)
        if known is None:
            raise Blocked("its scales are not constant, and nearest rounds by their size")
        shrinks, grows = bool((known < 1).any()), bool((known > 1).any())
        if shrinks and grows:
            raise Blocked("it enlarges one axis and shrinks another, which nearest rounds differently")
        nearest = "ceil" if shrinks else "floor"
    _resize(node, at, factor, nearest)


def _resize(node: ir.Node, at: Rewriter, scales: ir.Value | None, nearest: str) -> None:
    mode = node.attributes.get_string("mode", "nearest")
    at.replace(
        node.outputs[0],
        at.op(
            "Resize",
            node.inputs[0],
            None,
            scales,
            mode="linear" if mode in ("linear", "bilinear", "trilinear") else mode,
            coordinate_transformation_mode="asymmetric",
            nearest_mode=nearest,
        ),
    )


def resize_11(node: ir.Node, at: Rewriter) -> None:
    """Resize-11: an empty ``scales`` stood for none, and one coordinate mode was dropped."""
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_half_pixel_for_nn":
        raise Blocked("coordinate_transformation_mode='tf_half_pixel_for_nn' was dropped")
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.shape is not None and tuple(value.shape) == (0,):
            node.replace_input_with(index, None)


def rename(op_type: str) -> Adapter:
    """The operator got a new name."""

    def adapt(node: ir.Node, at: Rewriter) -> None:
        node.op_type = op_type

    return adapt


def grid_sample_modes(node: ir.Node, at: Rewriter) -> None:
    """GridSample before 20: the modes were named for two dimensions."""
    mode = take(node, "mode", "bilinear")
    node.attributes.add(ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)))


def dft_axis(node: ir.Node, at: Rewriter) -> None:
    """DFT before 20: ``axis`` was an attribute with default 1."""
    set_input(node, 2, at.const(np.array(take(node, "axis", 1), np.int64), f"{node.name}_axis"))


def group_norm_channels(node: ir.Node, at: Rewriter) -> None:
    """GroupNormalization before 21: scale and bias were given per group, now per channel."""
    data, scale, bias = node.inputs[:3]
    groups = node.attributes.get_int("num_groups")
    channels = at.op("Shape", data, start=1, end=2)
    spread = at.op(
        "Concat",
        at.const(np.array([groups], np.int64), f"{node.name}_groups"),
        at.op("Div", channels, at.const(np.array([groups], np.int64), f"{node.name}_group_count")),
        axis=0,
    )
    column = at.const(np.array([1], np.int64), f"{node.name}_column")
    for index, value in ((1, scale), (2, bias)):
        wide = at.op("Expand", at.op("Unsqueeze", value, column), spread)
        node.replace_input_with(index, at.op("Reshape", wide, channels))


_REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSumSquare",
)  # fmt: skip


def slice_inputs(node: ir.Node, at: Rewriter) -> None:
    """Slice before 10: ``starts``, ``ends`` and ``axes`` were attributes."""
    each(int_input("starts", 1), int_input("ends", 2), int_input("axes", 3))(node, at)


ADAPTERS: dict[str, Sequence[tuple[int, Adapter]]] = {
    "BatchNormalization": [(14, batch_norm_training)],
    "Clip": [(11, clip_bounds)],
    "DFT": [(20, dft_axis)],
    "Dropout": [(10, dropout_mask), (12, dropout_inputs)],
    "GridSample": [(20, grid_sample_modes)],
    "GroupNormalization": [(21, group_norm_channels)],
    "Hardmax": [(13, flatten_around)],
    "LogSoftmax": [(13, flatten_around)],
    "Pad": [(11, pad_inputs)],
    "ReduceSum": [(13, int_input("axes", 1))],
    "Resize": [(11, resize_10), (13, resize_11)],
    "RoiAlign": [(16, default_attribute("coordinate_transformation_mode", "output_half_pixel"))],
    "Scatter": [(11, rename("ScatterElements"))],
    "Slice": [(10, slice_inputs)],
    "Softmax": [(13, flatten_around)],
    "Split": [(13, int_input("split", 1)), (18, split_outputs)],
    "Squeeze": [(13, int_input("axes", 1))],
    "TopK": [(10, int_input("k", 1))],
    "Unsqueeze": [(13, int_input("axes", 1))],
    "Upsample": [(10, upsample)],
    **{op: [(18, int_input("axes", 1))] for op in _REDUCE},
}
