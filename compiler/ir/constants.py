"""Constants as arrays: what passes read of initializers and Constant nodes; large weights stay unloaded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..reference import Array

STORED = "miaotui.stored"
"""Key of a node's metadata: it widens a constant that is stored in fewer bits, which folding would undo."""

LIMIT = 1 << 16
"""Elements up to which ``constant`` reads a tensor unless told otherwise."""

_VALUE_DTYPES = {
    "value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
    "value_string": np.object_, "value_strings": np.object_,
}  # fmt: skip


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind an initializer or a Constant node's output, not loaded; None if ``value`` varies.

    An initializer that is also a graph input is a default the caller may override, so it is no constant.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain != "" or len(node.attributes) != 1:
        return None
    (attr,) = node.attributes.values()
    if attr.is_ref():
        return None
    if attr.name == "value":
        return attr.as_tensor()
    dtype = _VALUE_DTYPES.get(attr.name)
    if dtype is None:
        return None
    if dtype is np.object_:
        texts = attr.value if attr.name == "value_strings" else [attr.value]
        return ir.StringTensor(
            [t.encode() for t in texts], shape=ir.Shape([len(texts)] if attr.name == "value_strings" else [])
        )
    return ir.tensor(np.asarray(attr.value, dtype))


def is_widening(node: ir.Node) -> bool:
    """Whether it is the Cast of a weight that a pass stored in fewer bits than are computed with."""
    return STORED in node.metadata_props


def read_once(tensor: ir.TensorProtocol) -> Array:
    """A tensor's array, read for once: an external tensor's file is mapped no longer than the array lives.

    ``tensor.numpy()`` would keep the mapping, and what was read of it counts as memory of this process.
    """
    if not isinstance(tensor, ir.ExternalTensor) or tensor.raw is not None:
        return tensor.numpy()
    again = ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype,
        shape=tensor.shape, name=tensor.name, base_dir=tensor.base_dir,
    )  # fmt: skip
    return again.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is an initializer that is no graph input, or the output of a Constant node."""
    return constant_tensor(value) is not None


def constant(value: ir.Value | None, limit: int | None = LIMIT) -> Array | None:
    """The array of a constant value, or None if it varies or has more than ``limit`` elements.

    Pass ``limit=None`` only where the whole weight is needed, and drop the array soon: it may be
    read from a memory-mapped file.
    """
    tensor = constant_tensor(value)
    if tensor is None or (limit is not None and tensor.size > limit):
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | int | None:
    """The Python number of a constant with exactly one element (of any rank), or None.

    >>> import onnx_ir as ir
    >>> scalar(ir.Value(name="not_constant")) is None
    True
    """
    array = constant(value, limit=1)
    if array is None or array.size != 1 or array.dtype == np.object_:
        return None
    item = array.reshape(()).item()
    return int(item) if isinstance(item, (bool, int)) else float(item)
