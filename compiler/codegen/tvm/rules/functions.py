"""What elementwise operators compute of single elements, as TVM expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from ..lowering import Lowering

Number = Any
_FLOATS = ("float32", "float64", "float16", "bfloat16")


def exp(b: Lowering, x: Number) -> Number:
    """The exponential; in float32 a polynomial that vectorizes, right to 2 units in the last place."""
    if x.ty.dtype != "float32":
        return b.tirx.exp(x)
    c = b.tirx.const
    # below -87.3 the result is less than the least normal number, above 88.3 it would not be finite
    low, high = c(-87.33654, "float32"), c(88.37626, "float32")
    clipped = b.tirx.min(b.tirx.max(x, low), high)
    n = b.tirx.floor(clipped * c(1.44269504088896341, "float32") + c(0.5, "float32"))
    r = clipped - n * c(0.693359375, "float32") - n * c(-2.12194440e-4, "float32")
    p = c(1.9875691500e-4, "float32")
    for k in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + c(k, "float32")
    value = p * (r * r) + r + c(1.0, "float32")
    # in two halves: 2^128 alone is no number
    power = b.tirx.shift_left(n.astype("int32") + c(126, "int32"), c(23, "int32"))
    result = value * b.tirx.reinterpret("float32", power) * c(2.0, "float32")
    result = b.tirx.Select(x < low, c(0.0, "float32"), result)
    result = b.tirx.Select(x > c(88.72283, "float32"), c(math.inf, "float32"), result)
    return b.tirx.Select(x != x, x, result)


def tanh(b: Lowering, x: Number) -> Number:
    """The hyperbolic tangent; in float32 by the exponential."""
    if x.ty.dtype != "float32":
        return b.tirx.tanh(x)
    c = b.tirx.const
    small = b.tirx.abs(x) < c(0.125, "float32")
    square = x * x
    series = x * (
        c(1.0, "float32")
        + square * (c(-1 / 3, "float32") + square * (c(2 / 15, "float32") + square * c(-17 / 315, "float32")))
    )
    whole = c(1.0, "float32") - c(2.0, "float32") / (exp(b, x * c(2.0, "float32")) + c(1.0, "float32"))
    return b.tirx.Select(small, series, whole)


def sigmoid(b: Lowering, x: Number) -> Number:
    """1 / (1 + exp(-x))."""
    one = b.const(1, x.ty.dtype)
    return one / (one + exp(b, -x))


def erf(b: Lowering, x: Number) -> Number:
    """The error function; in float32 by polynomials, to 2e-7.

    Source: Numerical Recipes, erfcc (Chebyshev), beyond 1/2; the Taylor series below.
    """
    if x.ty.dtype != "float32":
        wide = b.tirx.erf(x.astype("float64") if x.ty.dtype != "float64" else x)
        return wide.astype(x.ty.dtype)

    def c(number: float) -> Number:
        return b.tirx.const(number, "float32")

    size, square = b.tirx.abs(x), x * x
    near = x * (c(2 / math.sqrt(math.pi)) - square * _near(c, square))
    t = c(1.0) / (c(1.0) + size * c(0.5))
    p = c(0.17087277)
    for k in (
        -0.82215223,
        1.48851587,
        -1.13520398,
        0.27886807,
        -0.18628806,
        0.09678418,
        0.37409196,
        1.00002368,
    ):
        p = p * t + c(k)
    tail = t * exp(b, c(-1.26551223) - square + t * p)
    far = b.tirx.Select(x < c(0.0), tail - c(1.0), c(1.0) - tail)
    return b.tirx.Select(size < c(0.5), near, far)


def _near(c: Callable[[float], Number], square: Number) -> Number:
    """(2/√π - erf(x)/x) / x² for |x| < 1/2, by its Taylor series."""
    total = c(0.0)
    for n in range(7, 0, -1):
        term = 2 / math.sqrt(math.pi) * (-1) ** (n + 1) / (math.factorial(n) * (2 * n + 1))
        total = total * square + c(term)
    return total


def softplus(b: Lowering, x: Number) -> Number:
    """log(1 + exp(x)), which does not overflow."""
    zero = b.const(0, x.ty.dtype)
    return b.tirx.max(x, zero) + b.tirx.log1p(exp(b, -b.tirx.abs(x)))


def cast(b: Lowering, x: Number, dtype: str) -> Number:
    """``x`` as ``dtype``, as ONNX casts: truth is 0 or 1, a number is true unless it is 0."""
    if dtype == "bool":
        return x if x.ty.dtype == "bool" else x != b.const(0, x.ty.dtype)
    return x.astype(dtype)


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
        return b.tirx.fmod(x, y)
    return b.tirx.truncmod(x, y) if node.attributes.get_int("fmod", 0) else b.tirx.floormod(x, y)


def _shift(b: Lowering, node: ir.Node, x: Number, y: Number) -> Number:
    left = node.attributes.get_string("direction", "LEFT") == "LEFT"
    return x << y if left else x >> y


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
    below = zero if x.ty.dtype.startswith("u") else -one
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
    "IsNaN": lambda b, x: x != x,
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
