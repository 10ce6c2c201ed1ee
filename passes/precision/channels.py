"""Where a factor per channel can move from an activation into the weights behind it, and nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.reference import Array
from ..base import decline, skip
from ..weight_uses import Reader

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True, slots=True)
class Site:
    """``value``: an activation that only products read. ``readers``: their weights; True: rows are channels.

    Its channels are divided by dividing ``vectors``, a norm's scale and bias or a product's bias, named by
    who reads them, and the outputs of ``weights``; True there: columns are outputs. ``group``, ``copies``:
    channels lie in groups that ``copies`` neighbours have in common, as heads of queries share one of values.
    """

    value: ir.Value
    node: ir.Node
    readers: dict[ir.Value, bool]
    vectors: tuple[Reader, ...]
    weights: dict[ir.Value, bool]
    group: int = 1
    copies: int = 1

    def shared(self, size: Array) -> Array:
        """Root mean squares of the channels [..., channels] brought together over the copies."""
        power = np.square(size).reshape(-1, self.copies, self.group).mean(1)
        root: Array = np.sqrt(power)
        return root.ravel()

    def spread(self, factors: Array) -> Array:
        """The factors of what is divided, for each channel of ``value``."""
        parts: Array = factors.reshape(-1, 1, self.group).repeat(self.copies, 1)
        return parts.ravel()


def norm_site(node: ir.Node, channels: int) -> Site:
    """A norm before products. Raises: NoMatch."""
    output, vectors = node.outputs[0], [(i, v) for i, v in enumerate(node.inputs) if i and v is not None]
    if not vectors or not all(_is_vector(v, channels) for _, v in vectors) or output.is_graph_output():
        skip()
    readers = reading_weights(output, channels)
    return Site(output, node, readers, tuple((node, index) for index, _ in vectors), {})


def gate_site(node: ir.Node, channels: int) -> Site:
    """A Mul of a gate and a product, before products: the factor goes through it. Raises: NoMatch."""
    output = node.outputs[0]
    for value in node.inputs:
        made = _product(value, channels)
        if made is not None:
            weight, turned, biases = made
            return Site(output, node, reading_weights(output, channels), biases, {weight: turned})
    return skip()


def attention_site(node: ir.Node, channels: int) -> Site:
    """Heads of an Attention joined by Transpose and this Reshape, before products. Raises: NoMatch.

    What attention gives is linear in its values, so the factor goes to where they are made.
    """
    output, turn = node.outputs[0], _producer(node.inputs[0], "Transpose")
    attention = None if turn is None else _producer(turn.inputs[0], "Attention")
    if turn is None or attention is None or not _swaps_heads(turn) or len(attention.outputs) > 1:
        skip()
    if any(not _is_only_read_once(n.outputs[0]) for n in (turn, attention)):
        skip()
    heads_last = _producer(attention.inputs[2], "Transpose")
    cut = None if heads_last is None else _producer(heads_last.inputs[0], "Reshape")
    query, values = attention.inputs[0], attention.inputs[2]
    if heads_last is None or cut is None or query is None or values is None or not _swaps_heads(heads_last):
        skip()
    heads, shared, size = _dim(query, 1), _dim(values, 1), _dim(values, 3)
    if heads is None or shared is None or size is None or heads % shared or heads * size != channels:
        skip()
    if any(not _is_only_read_once(n.outputs[0]) for n in (heads_last, cut)):
        skip()
    made = _product(cut.inputs[0], shared * size)
    if made is None:
        skip()
    weight, turned, biases = made
    readers = reading_weights(output, channels)
    return Site(output, node, readers, biases, {weight: turned}, size, heads // shared)


def reading_weights(value: ir.Value, channels: int) -> dict[ir.Value, bool]:
    """The weights that are multiplied with ``value``, and whether their rows are the channels.

    Raises: NoMatch unless nothing else reads the value or the weights.
    """
    found: dict[ir.Value, bool] = {}
    for usage in value.uses():
        node = usage.node
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and node.domain == "" else None
        if weight is None or usage.idx != 0 or node.attributes.get_int("transA", 0) != 0:
            decline(f"{node.op_type} reads it too")
        weight, turned = _stored(node, weight)
        tensor = constant_tensor(weight)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            decline("a weight is no constant matrix of float32")
        if tensor.shape.numpy()[0 if turned else 1] != channels:
            decline("a weight has other channels")
        if len(weight.uses()) > 1 or weight.is_graph_output():
            decline(f"{weight.name} is read elsewhere too")
        found[weight] = turned
    return found or skip()


def _stored(node: ir.Node, weight: ir.Value) -> tuple[ir.Value, bool]:
    """The weight that a product reads, and whether its rows are the inputs. Raises: NoMatch."""
    turned = node.op_type == "MatMul" or node.attributes.get_int("transB", 0) == 0
    turn = weight.producer()
    if node.op_type == "MatMul" and turn is not None and turn.op_type == "Transpose":
        inner = turn.inputs[0]
        if inner is None or tuple(turn.attributes.get_ints("perm", (1, 0))) != (1, 0):
            decline("a weight is computed")
        if len(weight.uses()) > 1:
            decline(f"{inner.name} is read elsewhere too")
        return inner, False
    return weight, turned


def _product(value: ir.Value | None, outputs: int) -> tuple[ir.Value, bool, tuple[Reader, ...]] | None:
    """The weight, True if its columns are outputs, and the biases of the product that ``value`` is."""
    if value is None or not _is_only_read_once(value):
        return None
    node = value.producer()
    biases: tuple[Reader, ...] = ()
    if node is not None and node.op_type == "Add" and node.domain == "":
        bias = next((v for v in node.inputs if v is not None and constant_tensor(v) is not None), None)
        inner = next((v for v in node.inputs if v is not bias), None)
        if bias is None or inner is None or not _is_only_read_once(inner) or not _is_vector(bias, outputs):
            return None
        biases = ((node, node.inputs.index(bias)),)
        node = inner.producer()
    if node is None or node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if factors != [1, 1] or node.inputs[1] is None:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if not _is_vector(node.inputs[2], outputs):
            return None
        biases = (*biases, (node, 2))
    weight, turned = _stored(node, node.inputs[1])
    tensor = constant_tensor(weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return None
    if tensor.shape.numpy()[1 if turned else 0] != outputs or not _is_only_read_once(weight):
        return None
    return weight, turned, biases


def _is_vector(value: ir.Value, size: int) -> bool:
    array = constant(value)
    return array is not None and array.shape == (size,) and value.dtype == ir.DataType.FLOAT


def _is_only_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and (node.op_type, node.domain) == (operator, "") else None


def _swaps_heads(node: ir.Node) -> bool:
    return tuple(node.attributes.get_ints("perm", ())) == (0, 2, 1, 3)


def _dim(value: ir.Value, axis: int) -> int | None:
    if value.shape is None or len(value.shape) != 4:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None
