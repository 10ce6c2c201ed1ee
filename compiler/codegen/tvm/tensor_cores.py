"""Products and attention of halves on a GPU as kernels of our own, on tensor cores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from ...ir.constants import constant_tensor
from .kernels import cuda_attention, cuda_matmul
from .kernels.cuda_attention import Heads
from .linear import Followed, activation_of, only_reader
from .lowering import Lowering, given

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Types that tensor cores multiply."""


@dataclass(frozen=True, slots=True)
class Product(Followed):
    """``activation(left @ right + bias)``. ``transposed``: ``right`` is [..., N, K]; ``bias``: a constant."""

    left: ir.Value
    right: ir.Value
    transposed: bool


def product_at(node: ir.Node) -> Product | None:
    """The product of halves that ``node`` is, with the bias and the activation that only follow it."""
    if node.domain != "" or node.outputs[0].dtype not in HALVES:
        return None
    found = _matmul(node) if node.op_type == "MatMul" else _gemm(node) if node.op_type == "Gemm" else None
    if found is None:
        return None
    return _activated(found if found.bias is not None else _biased(found))


def lowered(b: Lowering, product: Product) -> Any:
    """The expression of its result; None if the kernel does not fit."""
    left, right = b.value(product.left), b.value(product.right)
    rank = len(b.shape(right))
    if rank < 2 or len(b.shape(left)) < rank or (rank > 2 and len(b.shape(left)) != rank):
        return None
    *lead, rows, inputs = b.shape(left)
    *stack, first, second = b.shape(right)
    outputs, inner = (first, second) if product.transposed else (second, first)
    if not isinstance(inputs, int) or inputs != inner or not isinstance(outputs, int):
        return None
    if not all(b.equal(one, other) for one, other in zip(lead, stack, strict=False)):
        return None
    dtype, batched = str(left.ty.dtype), rank > 2
    count: Any = rows if batched else math.prod([*lead, rows])
    known = count if isinstance(count, int) else None
    if cuda_matmul.declines(known, inputs, outputs, dtype) is not None:
        return None
    size: Any = math.prod(lead)
    shapes = [(size,) if batched else (), (size, first, second) if batched else (first, second)]
    kernel = cuda_matmul.matmul(
        known, inputs, outputs, dtype, transposed=product.transposed, bias=product.bias is not None,
        activation=product.activation, batch=None if batched else 1,
    )  # fmt: skip
    given = [_shaped(b, left, [*shapes[0], count, inputs]), _shaped(b, right, list(shapes[1]))]
    if product.bias is not None:
        given.append(_shaped(b, b.value(product.bias), [outputs]))
    found = b.call(kernel.function, given, [*shapes[0], count, outputs], dtype)
    return _shaped(b, found, [*lead, rows, outputs])


def _shaped(b: Lowering, x: Any, shape: list[Any]) -> Any:
    if len(b.shape(x)) == len(shape):
        return x
    return b.emit(b.relax.op.reshape(x, b.relax.ShapeExpr(shape)))


def _matmul(node: ir.Node) -> Product | None:
    left, right = node.inputs[:2]
    if left is None or right is None or right.shape is None or left.shape is None:
        return None
    turned = right.producer()
    if turned is None or (turned.domain, turned.op_type) != ("", "Transpose"):
        return Product(left, right, False, nodes=(node,))
    order, rank = turned.attributes.get("perm"), len(right.shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    source = turned.inputs[0]
    if source is None or (tuple(order.as_ints()) if order else tuple(range(rank))[::-1]) != swapped:
        return Product(left, right, False, nodes=(node,))
    return Product(left, source, True, nodes=(node,))


def _gemm(node: ir.Node) -> Product | None:
    left, right, bias = node.inputs[0], node.inputs[1], given(node, 2)
    numbers = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if left is None or right is None or numbers != [1.0, 1.0] or node.attributes.get_int("transA", 0) == 1:
        return None
    made = Product(left, right, node.attributes.get_int("transB", 0) == 1, nodes=(node,), bias=bias)
    return made if bias is None or _is_vector(bias, made) else None


def _is_vector(value: ir.Value | None, product: Product) -> bool:
    tensor, result = constant_tensor(value), product.result
    if tensor is None or tensor.dtype != result.dtype or result.shape is None:
        return False
    shape = tuple(tensor.shape.numpy())
    return bool(shape) and len(shape) <= len(result.shape) and shape[-1] == tensor.size == result.shape[-1]


def _biased(product: Product) -> Product:
    reader = only_reader(product.nodes, product.result)
    if reader is None or (reader.domain, reader.op_type) != ("", "Add"):
        return product
    other = reader.inputs[1] if reader.inputs[0] is product.result else reader.inputs[0]
    return (
        replace(product, bias=other, nodes=(*product.nodes, reader))
        if _is_vector(other, product)
        else product
    )


def _activated(product: Product) -> Product:
    reader = only_reader(product.nodes, product.result)
    name = "" if reader is None else activation_of(reader)
    if reader is None or name not in cuda_matmul.ACTIVATIONS:
        return product
    return replace(product, activation=name, nodes=(*product.nodes, reader))


def attention(b: Lowering, query: Any, key: Any, value: Any, bias: Any, scale: float) -> Any:
    """softmax(scale * query @ keyᵀ + bias) @ value, all of four axes; None if the kernel does not fit."""
    if b.cpu is not None:
        return None
    batch, count, tokens, size = b.shape(query)
    heads = Heads(count, b.shape(key)[1], size, b.shape(value)[3])
    fixed = (heads.count, heads.kv_count, heads.size, heads.value_size)
    dtype, sequence = str(query.ty.dtype), tokens if isinstance(tokens, int) else None
    if not all(isinstance(n, int) for n in fixed):
        return None
    if cuda_attention.declines(heads, dtype, sequence) is not None:
        return None
    if not b.equal(batch, b.shape(key)[0]) or not b.equal(b.shape(key)[2], b.shape(value)[2]):
        return None
    options: dict[str, Any] = {"scale": scale}
    inputs = [query, key, value]
    if bias is not None:
        _, mask_heads, rows, columns = b.shape(bias)
        one_row = isinstance(rows, int) and rows == 1
        whole = (one_row or b.equal(rows, tokens)) and b.equal(columns, b.shape(key)[2])
        if not whole or not isinstance(mask_heads, int) or mask_heads not in (1, count):
            return None
        options |= {"mask": "add", "mask_heads": mask_heads, "one_row": one_row}
        # it is a mask of that dtype, or of 0 and -inf: nothing is lost
        inputs.append(b.compute(lambda x: _as(b, x, dtype), bias, name="mask"))
    kernel = cuda_attention.attention(heads, dtype, **options)
    return b.call(kernel.function, inputs, [batch, count, tokens, heads.value_size], dtype)


def _as(b: Lowering, x: Any, dtype: str) -> Any:
    return b.te.compute(x.shape, lambda *i: x(*i).astype(dtype), name="mask")
