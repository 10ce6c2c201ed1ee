"""What elementwise operators compute of single elements, as TVM expressions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from ..kernels import math as vectorized
from ..lowering import Lowering

Number = Any
_FLOATS = ("float32", "float64", "float16", "bfloat16")


def exp(b: Lowering, x: Number) -> Number:
    """The exponential."""
    return _single(x, vectorized.exp, b.tirx.exp)


def tanh(b: Lowering, x: Number) -> Number:
    """The hyperbolic tangent."""
    return _single(x, vectorized.tanh, b.tirx.tanh)


def sigmoid(b: Lowering, x: Number) -> Number:
    """1 / (1 + exp(-x))."""
    one = b.const(1, x.ty.dtype)
    return _single(x, vectorized.sigmoid, lambda v: one / (one + b.tirx.exp(-v)))


def erf(b: Lowering, x: Number) -> Number:
    """The error function."""
    return _single(x, vectorized.erf, b.tirx.erf)


def _single(x: Number, fast: Callable[[Number], Number], plain: Callable[[Number], Number]) -> Number:
    """``fast`` in float32, in which halves are computed too; ``plain`` for doubles."""
    if x.ty.dtype == "float64":
        return plain(x)
    return fast(x) if x.ty.dtype == "float32" else fast(x.astype("float32")).astype(x.ty.dtype)


def softplus(b: Lowering, x: Number) -> Number:
    """log(1 + exp(x)), which does not overflow."""
    zero = b.const(0, x.ty.dtype)
    return b.tirx.max(x, zero) + b.tirx.log1p(exp(b, -b.tirx.abs(x)))


def cast(b: Lowering, x: Number, dtype: str) -> Number:
    """``x`` as ``dtype``, as ONNX casts: truth is 0 or 1, a number is true unless it is 0."""
    if dtype == "bool":
        return x if x.ty.dtype == "bool" else x != b.const(0, x.ty.dtype)
    return b.cast(x, dtype)


def _gelu(b: Lowering, node: ir.Node, x: Number) -> Number:
    half, one = b.const(0.5, x.ty.dtype), b.const(1, x.ty.dtype)
    if node.attributes.get_string("approximate", "none") == "tanh":
        inner = b.const(math.sqrt(2 / math.pi), x.ty.dtype) * (x + b.const(0.044715, x.ty.dtype) * x * x * x)
        return half * x * (one + tanh(b, inner))
    return half * x * (one + erf(b, x * b.const(math.sqrt(0.5), x.ty.dtype)))


def _quick_gelu(b: Lowering, node: ir.Node, x: Number) -> Number:
    return x * sigmoid(b, x * b.const(node.attributes.get_float("alpha", 1.702), x.ty.dtype))


def _swish(b: Lowering, node: ir.Node, x: Number) -> Number:
    return x * sigmoid(b, x * b.const(node.attributes.get_float("alpha", 1.0), x.ty.dtype))


def _leaky(b: Lowering, node: ir.Node, x: Number) -> Number:
    slope = b.const(node.attributes.get_float("alpha", 0.01), x.ty.dtype)
    return b.tirx.Select(x < b.const(0, x.ty.dtype), x * slope, x)


def _elu(b: Lowering, node: ir.Node, x: Number) -> Number:
    alpha = b.const(node.attributes.get_float("alpha", 1.0), x.ty.dtype)
    return b.tirx.Select(x < b.const(0, x.ty.dtype), alpha * (exp(b, x) - b.const(1, x.ty.dtype)), x)


def _celu(b: Lowering, node: ir.Node, x: Number) -> Number:
    alpha, zero = b.const(node.attributes.get_float("alpha", 1.0), x.ty.dtype), b.const(0, x.ty.dtype)
    return b.tirx.max(x, zero) + b.tirx.min(zero, alpha * (exp(b, x / alpha) - b.const(1, x.ty.dtype)))


def _selu(b: Lowering, node: ir.Node, x: Number) -> Number:
    alpha = b.const(node.attributes.get_float("alpha", 1.67326319217681884765625), x.ty.dtype)
    gamma = b.const(node.attributes.get_float("gamma", 1.05070102214813232421875), x.ty.dtype)
    below = alpha * exp(b, x) - alpha
    return gamma * b.tirx.Select(x > b.const(0, x.ty.dtype), x, below)


def _thresholded(b: Lowering, node: ir.Node, x: Number) -> Number:
    alpha = b.const(node.attributes.get_float("alpha", 1.0), x.ty.dtype)
    return b.tirx.Select(x > alpha, x, b.const(0, x.ty.dtype))


def _shrink(b: Lowering, node: ir.Node, x: Number) -> Number:
    lambd, bias = (
        b.const(node.attributes.get_float(k, d), x.ty.dtype) for k, d in (("lambd", 0.5), ("bias", 0.0))
    )
    inner = b.tirx.Select(x > lambd, x - bias, b.const(0, x.ty.dtype))
    return b.tirx.Select(x < -lambd, x + bias, inner)


def _hard_sigmoid(b: Lowering, node: ir.Node, x: Number) -> Number:
    alpha = b.const(node.attributes.get_float("alpha", 0.2), x.ty.dtype)
    beta = b.const(node.attributes.get_float("beta", 0.5), x.ty.dtype)
    return b.tirx.max(b.const(0, x.ty.dtype), b.tirx.min(b.const(1, x.ty.dtype), alpha * x + beta))


def _hard_swish(b: Lowering, x: Number) -> Number:
    inner = x * b.const(1 / 6, x.ty.dtype) + b.const(0.5, x.ty.dtype)
    return x * b.tirx.max(b.const(0, x.ty.dtype), b.tirx.min(b.const(1, x.ty.dtype), inner))


def _mod(b: Lowering, node: ir.Node, x: Number, y: Number) -> Number:
    if x.ty.dtype in _FLOATS:
        rest = b.tirx.Select(b.tirx.isinf(y), x, x - y * b.tirx.trunc(x / y))
        if node.attributes.get_int("fmod", 0):
            return rest
        zero = b.const(0, x.ty.dtype)
        apart = b.tirx.And(rest != zero, (rest < zero).astype("int8") != (y < zero).astype("int8"))
        return b.tirx.Select(apart, rest + y, rest)
    return b.tirx.truncmod(x, y) if node.attributes.get_int("fmod", 0) else b.tirx.floormod(x, y)


def _shift(b: Lowering, node: ir.Node, x: Number, y: Number) -> Number:
    left = node.attributes.get_string("direction", "LEFT") == "LEFT"
    bits, zero = b.const(int(re.sub(r"\D", "", str(x.ty.dtype))), y.ty.dtype), b.const(0, x.ty.dtype)
    beyond = y >= bits
    if not str(y.ty.dtype).startswith("u"):
        beyond = b.tirx.Or(beyond, y < b.const(0, y.ty.dtype))
    if not left and not str(x.ty.dtype).startswith("u"):
        zero = b.tirx.Select(x < zero, b.const(-1, x.ty.dtype), zero)  # the sign is shifted in
    return b.tirx.Select(beyond, zero, (x << y if left else x >> y).astype(x.ty.dtype))


def _is_inf(b: Lowering, node: ir.Node, x: Number) -> Number:
    infinity = b.const(math.inf, x.ty.dtype)
    above = x == infinity if node.attributes.get_int("detect_positive", 1) else b.const(0, "bool")
    below = x == -infinity if node.attributes.get_int("detect_negative", 1) else b.const(0, "bool")
    return b.tirx.Or(above, below)


def _divided(b: Lowering, x: Number, y: Number) -> Number:
    return x / y if x.ty.dtype in _FLOATS else b.tirx.truncdiv(x, y)


def _power(b: Lowering, x: Number, y: Number) -> Number:
    exponent = getattr(y, "value", None)
    if exponent in (2, 2.0):
        return x * x
    if x.ty.dtype in _FLOATS:
        return b.tirx.power(x, y.astype(x.ty.dtype) if y.ty.dtype != x.ty.dtype else y)
    return b.tirx.power(x.astype("float64"), y.astype("float64")).astype(x.ty.dtype)


def _sign(b: Lowering, x: Number) -> Number:
    zero, one = b.const(0, x.ty.dtype), b.const(1, x.ty.dtype)
    below = zero if str(x.ty.dtype).startswith("u") else -one
    return b.tirx.Select(x > zero, one, b.tirx.Select(x < zero, below, zero))


def _mish(b: Lowering, x: Number) -> Number:
    return x * tanh(b, softplus(b, x))


def _larger(b: Lowering, x: Number, y: Number) -> Number:
    return b.tirx.max(x, y)


def _xor(b: Lowering, x: Number, y: Number) -> Number:
    return x.astype("int8") != y.astype("int8")


def _same(b: Lowering, x: Number, y: Number) -> Number:
    return x.astype("int8") == y.astype("int8") if x.ty.dtype == "bool" else x == y


def _unary(name: str) -> Callable[..., Number]:
    return lambda b, x: getattr(b.tirx, name)(x)


PLAIN: dict[str, Callable[..., Number]] = {
    **{name.capitalize(): _unary(name) for name in (
        "abs", "log", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh",
        "atanh", "floor", "ceil",
    )},
    "Neg": lambda b, x: -x,
    "Exp": exp, "Tanh": tanh, "Sigmoid": sigmoid, "Erf": erf, "Softplus": softplus, "HardSwish": _hard_swish,
    "Mish": _mish, "Sign": _sign,
    "Relu": lambda b, x: b.tirx.max(x, b.const(0, x.ty.dtype)),
    "Reciprocal": lambda b, x: b.const(1, x.ty.dtype) / x,
    "Softsign": lambda b, x: x / (b.const(1, x.ty.dtype) + b.tirx.abs(x)),
    "Round": lambda b, x: b.tirx.nearbyint(x),
    "Not": lambda b, x: b.tirx.Not(x),
    "IsNaN": lambda b, x: b.tirx.isnan(x),
    "Sub": lambda b, x, y: x - y,
    "Div": _divided, "Pow": _power, "Xor": _xor, "Equal": _same,
    "And": lambda b, x, y: b.tirx.And(x, y),
    "Or": lambda b, x, y: b.tirx.Or(x, y),
    "Less": lambda b, x, y: x < y,
    "LessOrEqual": lambda b, x, y: x <= y,
    "Greater": lambda b, x, y: x > y,
    "GreaterOrEqual": lambda b, x, y: x >= y,
    "BitwiseAnd": lambda b, x, y: x & y,
    "BitwiseOr": lambda b, x, y: x | y,
    "BitwiseXor": lambda b, x, y: x ^ y,
    "BitwiseNot": lambda b, x: ~x,
    "Where": lambda b, c, x, y: b.tirx.Select(c, x, y),
    "Add": lambda b, x, y: x + y,
    "Mul": lambda b, x, y: x * y,
}  # fmt: skip
"""Functions of elements alone."""

WITH_ATTRIBUTES: dict[str, Callable[..., Number]] = {
    "Gelu": _gelu, "com.microsoft.QuickGelu": _quick_gelu, "Swish": _swish, "LeakyRelu": _leaky, "Elu": _elu,
    "Celu": _celu, "Selu": _selu, "ThresholdedRelu": _thresholded, "Shrink": _shrink,
    "HardSigmoid": _hard_sigmoid, "Mod": _mod, "BitShift": _shift, "IsInf": _is_inf,
}  # fmt: skip
"""Functions of the node and its elements."""

FOLDED: dict[str, Callable[[Lowering, Number, Number], Number]] = {
    "Max": _larger,
    "Min": lambda b, x, y: b.tirx.min(x, y),
    "Sum": lambda b, x, y: x + y,
}
"""Functions of two elements that take any number of inputs."""
