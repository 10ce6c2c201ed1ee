"""What operators on single elements are in C: an expression of their arguments, by dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from .base import CTYPES, bare

FLOAT, INT64, INT32, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL

SUFFIXES: Mapping[ir.DataType, str] = {FLOAT: "f32", INT64: "i64", INT32: "i32", BOOL: "bool"}
"""dtypes that expressions compute in, and how kernels/elementwise.h calls them."""

Expression = Callable[[ir.Node, Sequence[str]], "str | None"]
"""The C of a node, given that of its inputs; None if it has none for its dtypes or attributes."""


def literal(value: float | int | bool, dtype: ir.DataType) -> str:
    """A number in C.

    >>> literal(0.1, FLOAT), literal(float("-inf"), FLOAT), literal(-5, INT64), literal(True, BOOL)
    ('0.1f', '-HUGE_VALF', '-5', '1')
    """
    if dtype != FLOAT:
        number = int(value)
        if number == -(2**63):
            return "INT64_MIN"
        return f"{number}LL" if abs(number) >= 2**31 else str(number)
    if math.isnan(value):
        return 'nanf("")'
    if math.isinf(value):
        return "HUGE_VALF" if value > 0 else "-HUGE_VALF"
    import numpy as np

    text = str(np.float32(value))
    return f"{text}f" if any(c in text for c in ".e") else f"{text}.0f"


def called(function: str, *args: str) -> str:
    """A call.

    >>> called("exp1", "(a + b)")
    'exp1(a + b)'
    """
    return f"{function}({', '.join(map(bare, args))})"


def computes(value: ir.Value | None) -> bool:
    """Whether elements of this dtype can be computed with."""
    return value is None or value.dtype in SUFFIXES


def _dtype(node: ir.Node, place: int = 0) -> ir.DataType | None:
    value = node.inputs[place] if place < len(node.inputs) else None
    return None if value is None else value.dtype


def _named(name: str) -> Expression:
    """``name_f32(a, b)``, ``name_i64(a, b)``."""

    def expression(node: ir.Node, args: Sequence[str]) -> str | None:
        dtype = _dtype(node)
        if dtype is None or dtype == BOOL:
            return None
        return called(f"{name}_{SUFFIXES[dtype]}", *args)

    return expression


def _arithmetic(sign: str, name: str) -> Expression:
    """``(a + b)`` of floats, ``add_i64(a, b)``: integers wrap around, which C's do not."""
    named = _named(name)

    def expression(node: ir.Node, args: Sequence[str]) -> str | None:
        return f"({f' {sign} '.join(args)})" if _dtype(node) == FLOAT else named(node, args)

    return expression


def _infix(sign: str, *dtypes: ir.DataType) -> Expression:
    def expression(node: ir.Node, args: Sequence[str]) -> str | None:
        return f"({f' {sign} '.join(args)})" if _dtype(node) in dtypes else None

    return expression


def _call(function: str, *attributes: tuple[str, float]) -> Expression:
    """A function of floats and of attributes with these defaults."""

    def expression(node: ir.Node, args: Sequence[str]) -> str | None:
        values = [literal(node.attributes.get_float(name, default), FLOAT) for name, default in attributes]
        return called(function, *args, *values) if _dtype(node) == FLOAT else None

    return expression


def _chained(name: str) -> Expression:
    """A function of two, of any number of inputs."""
    two = _named(name)

    def expression(node: ir.Node, args: Sequence[str]) -> str | None:
        parts = list(args)
        while len(parts) > 1:
            joined = two(node, parts[:2])
            if joined is None:
                return None
            parts[:2] = [joined]
        return parts[0]

    return expression


def _unary(floats: str, integers: str) -> Expression:
    """``floats`` with the argument for ``{}``, or the function of integers called ``integers``."""
    named = _named(integers) if integers else None

    def expression(node: ir.Node, args: Sequence[str]) -> str | None:
        if _dtype(node) == FLOAT:
            return floats.format(args[0])
        return None if named is None else named(node, args)

    return expression


def _absolute(node: ir.Node, args: Sequence[str]) -> str | None:
    return called("fabsf", *args) if _dtype(node) == FLOAT else _named("abs")(node, args)


def cast(text: str, source: ir.DataType | None, target: ir.DataType | None) -> str | None:
    """``text`` of one dtype as another."""
    if source == target:
        return text
    if source not in SUFFIXES or target not in SUFFIXES:
        return None
    if source is None or target is None:
        return None
    if target == BOOL:
        return f"({text} != 0)"
    if source == FLOAT:
        return called(f"to_{SUFFIXES[target]}", text)
    return f"({CTYPES[target]}){text}"


def _cast(node: ir.Node, args: Sequence[str]) -> str | None:
    return cast(args[0], _dtype(node), node.outputs[0].dtype)


def _power(node: ir.Node, args: Sequence[str]) -> str | None:
    base, exponent = _dtype(node), _dtype(node, 1)
    if base == FLOAT:
        known = {"2.0f": "square", "3.0f": "cube", "0.5f": "sqrtf", "2": "square"}
        if args[1] in known:
            return called(known[args[1]], args[0])
        power = cast(args[1], exponent, FLOAT)
        return None if power is None else called("powf", args[0], power)
    if base in (INT64, INT32):
        if exponent == FLOAT:
            return f"({CTYPES[base]})pow((double){args[0]}, (double){args[1]})"
        return called(f"pow_{SUFFIXES[base]}", args[0], cast(args[1], exponent, base) or "")
    return None


def _mod(node: ir.Node, args: Sequence[str]) -> str | None:
    truncates = node.attributes.get_int("fmod", 0)
    if _dtype(node) == FLOAT:
        return called("fmodf" if truncates else "mod_f32", *args)
    return _named("fmod" if truncates else "mod")(node, args)


def _clip(node: ir.Node, args: Sequence[str]) -> str | None:
    text = args[0]
    bounds = iter(args[1:])
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        bounded = _named("max")(node, [text, next(bounds)])
        if bounded is None:
            return None
        text = bounded
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return _named("min")(node, [text, next(bounds)])
    return text


def _relu(node: ir.Node, args: Sequence[str]) -> str | None:
    return _named("max")(node, [args[0], literal(0, _dtype(node) or FLOAT)])


def _where(node: ir.Node, args: Sequence[str]) -> str | None:
    dtype = _dtype(node, 1)
    return None if dtype is None else called(f"select_{SUFFIXES[dtype]}", *args)


def _gelu(node: ir.Node, args: Sequence[str]) -> str | None:
    tanh = node.attributes.get_string("approximate", "none") == "tanh"
    return _call("gelu_tanh1" if tanh else "gelu1")(node, args)


def _is_infinite(node: ir.Node, args: Sequence[str]) -> str | None:
    signs = [node.attributes.get_int(f"detect_{sign}", 1) for sign in ("positive", "negative")]
    return f"is_infinite({args[0]}, {signs[0]}, {signs[1]})" if _dtype(node) == FLOAT else None


def _mean(node: ir.Node, args: Sequence[str]) -> str | None:
    if _dtype(node) != FLOAT:
        return None
    return f"(({' + '.join(args)}) / {len(args)})" if len(args) > 1 else args[0]


def _selu(node: ir.Node, args: Sequence[str]) -> str | None:
    alpha = node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get_float("gamma", 1.05070102214813232421875)
    inner = f"elu({args[0]}, {literal(alpha, FLOAT)})"
    return f"({literal(gamma, FLOAT)} * {inner})" if _dtype(node) == FLOAT else None


def _prelu(node: ir.Node, args: Sequence[str]) -> str | None:
    return called("leaky_relu", *args) if _dtype(node) == FLOAT else None


_INTEGERS = (INT64, INT32)
_NUMBERS = (FLOAT, INT64, INT32)
_ALL = (FLOAT, INT64, INT32, BOOL)

EXPRESSIONS: Mapping[str, Expression] = {
    "Add": _arithmetic("+", "add"), "Sub": _arithmetic("-", "sub"), "Mul": _arithmetic("*", "mul"),
    "Div": _arithmetic("/", "div"), "Mod": _mod, "Pow": _power, "Sum": _infix("+", FLOAT), "Mean": _mean,
    "Max": _chained("max"), "Min": _chained("min"), "Clip": _clip, "Where": _where, "Cast": _cast,
    "Equal": _infix("==", *_ALL), "Less": _infix("<", *_NUMBERS), "LessOrEqual": _infix("<=", *_NUMBERS),
    "Greater": _infix(">", *_NUMBERS), "GreaterOrEqual": _infix(">=", *_NUMBERS),
    "And": _infix("&", BOOL), "Or": _infix("|", BOOL), "Xor": _infix("^", BOOL),
    "Not": lambda node, args: f"!{args[0]}" if _dtype(node) == BOOL else None,
    "BitwiseAnd": _infix("&", *_INTEGERS), "BitwiseOr": _infix("|", *_INTEGERS),
    "BitwiseXor": _infix("^", *_INTEGERS),
    "BitwiseNot": lambda node, args: f"~{args[0]}" if _dtype(node) in _INTEGERS else None,
    "Neg": _unary("(-{})", "neg"), "Abs": _absolute, "Sign": _named("sign"),
    "Relu": _relu, "Reciprocal": _unary("(1 / {})", ""),
    "Exp": _call("exp1"), "Log": _call("log1"), "Sqrt": _call("sqrtf"), "Tanh": _call("tanh1"),
    "Erf": _call("erf1"), "Sigmoid": _call("sigmoid1"), "Gelu": _gelu,
    "Sin": _call("sinf"), "Cos": _call("cosf"), "Tan": _call("tanf"), "Asin": _call("asinf"),
    "Acos": _call("acosf"), "Atan": _call("atanf"), "Sinh": _call("sinhf"), "Cosh": _call("coshf"),
    "Asinh": _call("asinhf"), "Acosh": _call("acoshf"), "Atanh": _call("atanhf"),
    "Floor": _call("floorf"), "Ceil": _call("ceilf"), "Round": _call("rintf"),
    "IsNaN": lambda node, args: f"(isnan({args[0]}) != 0)" if _dtype(node) == FLOAT else None,
    "IsInf": _is_infinite, "Softplus": _call("softplus"), "Softsign": _call("softsign"),
    "Mish": _call("mish"), "HardSwish": _call("hard_swish"), "Swish": _call("swish", ("alpha", 1.0)),
    "Elu": _call("elu", ("alpha", 1.0)), "Celu": _call("celu", ("alpha", 1.0)), "Selu": _selu,
    "LeakyRelu": _call("leaky_relu", ("alpha", 0.01)), "PRelu": _prelu,
    "ThresholdedRelu": _call("thresholded_relu", ("alpha", 1.0)),
    "HardSigmoid": _call("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
    "Shrink": _call("shrink", ("lambd", 0.5), ("bias", 0.0)),
}  # fmt: skip
"""By operator name."""

CHEAP = frozenset((
    "Add", "Sub", "Mul", "Cast", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or",
    "Xor", "Not", "Neg", "Abs", "Where", "Max", "Min", "Relu", "Clip", "BitwiseAnd", "BitwiseOr",
    "BitwiseXor", "BitwiseNot",
))  # fmt: skip
"""Operators that may be computed again wherever they are broadcast."""


def reason(node: ir.Node) -> str | None:
    """Why a node has no expression here; None if it has one."""
    expression = EXPRESSIONS.get(node.op_type)
    if node.domain != "" or expression is None:
        return "the operator is not known"
    for value in (*node.inputs, *node.outputs):
        if not computes(value):
            assert value is not None
            return f"it computes in {'an unknown dtype' if value.dtype is None else value.dtype.name.lower()}"
    args = ["0" for value in node.inputs if value is not None]
    if expression(node, args) is None:
        return "its dtypes or attributes have no C expression"
    return None


def expression_of(node: ir.Node, args: Sequence[str]) -> str:
    """The C of a node that ``reason`` has nothing against."""
    text = EXPRESSIONS[node.op_type](node, args)
    assert text is not None, node.op_type
    return text


__all__ = [
    "CHEAP",
    "EXPRESSIONS",
    "SUFFIXES",
    "cast",
    "computes",
    "expression_of",
    "literal",
    "reason",
]
