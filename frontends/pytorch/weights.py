"""Weights of an exported graph: attached by address, viewed instead of copied, as quantized blocks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import onnx_ir as ir

from ...compiler.errors import InternalError
from ...compiler.ir.provenance import set_sources, sources
from ...compiler.ir.quantized import BlockedWeight, emit_blocked
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..stored import array_of

Weight: TypeAlias = ir.TensorProtocol | BlockedWeight
"""What a parameter's values are: a tensor that is read when it is needed, or quantized blocks."""


class _Pending(ir.LazyTensor):
    """Stands for quantized blocks until ``emit_weights`` writes their nodes."""

    __slots__ = ("weight",)

    def __init__(self, weight: BlockedWeight, name: str) -> None:
        super().__init__(self._refuse, dtype=weight.scale.dtype, shape=ir.Shape(weight.shape), name=name)
        self.weight = weight

    @property
    def size(self) -> int:
        """More than any folding reads: these values are not there yet."""
        return sys.maxsize

    def _refuse(self) -> ir.TensorProtocol:
        raise InternalError(f"quantized weight {self.name!r} was read as a float tensor")


def attach(model: ir.Model, weights: Mapping[int, Weight]) -> None:
    """Give initializers their values by the address of the torch parameter they were exported from."""
    for value in model.graph.initializers.values():
        raw: Any = getattr(value.const_value, "raw", None)
        weight = weights.get(raw.data_ptr()) if hasattr(raw, "data_ptr") else None
        if weight is None:
            continue
        shape = value.shape.numpy() if value.shape is not None else ()
        held = weight.shape if isinstance(weight, BlockedWeight) else tuple(weight.shape.numpy())
        if tuple(shape) != held:
            raise InternalError(
                f"weight {value.name!r} was exported as {list(shape)}, stored as {list(held)}"
            )
        if isinstance(weight, BlockedWeight):
            value.const_value = _Pending(weight, str(value.name))
        else:
            value.const_value = weight


def may_fold(node: ir.Node) -> bool | None:
    """For constant folding: False where a quantized weight is read, else None for the usual rules."""
    pending = any(v is not None and isinstance(v.const_value, _Pending) for v in node.inputs)
    return False if pending else None


def emit_weights(model: ir.Model) -> None:
    """Replace initializers that stand for quantized blocks by the nodes that compute them."""
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, _Pending):
            continue
        users = {user for user, _ in value.uses()}
        anchor = next((node for node in model.graph if node in users), None)
        if anchor is None or len(users) != sum(node.graph is model.graph for node in users):
            raise InternalError(f"quantized weight {name!r} is read in a subgraph or not at all")
        at = Rewriter(anchor)
        value.replace_all_uses_with(emit_blocked(tensor.weight, name, at))
        for node in at.made:
            set_sources(node, [source for user in users for source in sources(user)])
        model.graph.initializers.pop(name)


def view_weights(model: ir.Model) -> None:
    """Replace ``Transpose`` and ``Reshape`` of a weight by a view of it: no copy is made.

    A weight that is also read as it is (tied embeddings) keeps its node: it would be stored twice.
    """
    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type in ("Transpose", "Reshape") and node.inputs else None
        tensor = None if weight is None else weight.const_value
        if weight is None or not weight.is_initializer() or tensor is None:
            continue
        if len(weight.uses()) > 1 or node.outputs[0].is_graph_output():
            continue
        viewed, suffix = _view(node, tensor)
        if viewed is None:
            continue
        value = ir.Value(name=f"{weight.name}.{suffix}", type=ir.TensorType(tensor.dtype))
        viewed.name = value.name
        value.const_value, value.shape = viewed, ir.Shape(viewed.shape.numpy())
        model.graph.register_initializer(value)
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        model.graph.initializers.pop(str(weight.name))


def _view(node: ir.Node, tensor: Any) -> tuple[Any, str]:
    lazy = isinstance(tensor, ir.LazyTensor | ir.ExternalTensor)
    if isinstance(tensor, _Pending) or not (lazy or hasattr(getattr(tensor, "raw", None), "permute")):
        return None, ""
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(len(tensor.shape)))[::-1]
        if lazy:
            sizes = [tensor.shape[axis] for axis in order]
            return _lazy(tensor, sizes, lambda array: array.transpose(order)), "T"
        return type(tensor)(tensor.raw.detach().permute(order)), "T"
    shape = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    if shape is None or 0 in shape.numpy():
        return None, ""
    sizes = [int(size) for size in shape.numpy()]
    if lazy:
        known = math.prod(size for size in sizes if size >= 0)
        sizes = [size if size >= 0 else tensor.size // known for size in sizes]
        return _lazy(tensor, sizes, lambda array: array.reshape(sizes)), "view"
    if not tensor.raw.is_contiguous():
        return None, ""
    return type(tensor)(tensor.raw.detach().view(sizes)), "view"


def _lazy(tensor: ir.TensorProtocol, shape: list[Any], view: Callable[[Array], Array]) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.Tensor(view(array_of(tensor))), dtype=tensor.dtype, shape=ir.Shape(shape), cache=False
    )
