"""exp, tanh, erf and what is made of them as TIR expressions that LLVM turns into vector instructions.

LLVM lowers TVM's own to calls of libm, a number at a time. Polynomials as in Cephes; errors are those of
float32: below 2 units in the last place for ``exp``, 3e-7 absolute for ``tanh`` and ``erf``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_LOG2E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LEAST, _MOST = -87.33654, 88.72283
"""Arguments between which ``exp`` is a normal float32."""

_ERF_BELOW_ONE = (
    7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2,
    1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710e0,
)  # fmt: skip
_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196,
    1.00002368, -1.26551223,
)  # fmt: skip
"""Numerical Recipes' erfcc: of 1 / (1 + |x| / 2); 1.2e-7 relative."""

_TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    value = _f(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f(coefficient)
    return value


def _f(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")


def let(value: Any, use: Callable[[Any], Any]) -> Any:
    """``use`` of a variable that stands for ``value``: TVM's passes see what is used twice once."""
    from tvm import tirx

    variable = tirx.Var("t", str(value.ty.dtype) if hasattr(value.ty, "dtype") else "float32")
    return tirx.Let(variable, value, use(variable))


def exp(x: Any) -> Any:
    """e**x; 0 below the normal numbers, infinity above the greatest, NaN for NaN."""
    from tvm import tirx

    def scaled(series: Any, whole: Any) -> Any:
        # In two steps, since 2**128 is no float32.
        def steps(number: Any) -> Any:
            half = number >> 1
            first = tirx.reinterpret("float32", (half + 127) << 23)
            return series * first * tirx.reinterpret("float32", (number - half + 127) << 23)

        return let(tirx.Cast("int32", whole), steps)

    def series(bounded: Any, whole: Any) -> Any:
        rest = bounded - whole * _f(_LN2_HIGH) - whole * _f(_LN2_LOW)
        return let(rest, lambda r: _polynomial(r, _EXP) * (r * r) + r + _f(1.0))

    def inside(bounded: Any) -> Any:
        whole = tirx.floor(bounded * _f(_LOG2E) + _f(0.5))
        return let(whole, lambda w: let(series(bounded, w), lambda s: scaled(s, w)))

    def of(x: Any) -> Any:
        # Not min and max, which would lose NaN.
        bounded = tirx.Select(x < _f(_LEAST), _f(_LEAST), tirx.Select(x > _f(_MOST), _f(_MOST), x))
        value = tirx.Select(x < _f(_LEAST), _f(0.0), let(bounded, inside))
        return tirx.Select(x > _f(_MOST), _f(float("inf")), value)

    return let(x, of)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _f(1.0) / (_f(1.0) + exp(_f(0.0) - x))


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return let(x, lambda x: x / (_f(1.0) + exp(_f(0.0) - x)))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent; a polynomial below 0.625, where the quotient loses digits."""
    from tvm import tirx

    def of(x: Any) -> Any:
        near = let(x * x, lambda s: _polynomial(s, _TANH) * s * x + x)
        far = let(tirx.abs(x), lambda s: _f(1.0) - _f(2.0) / (exp(s + s) + _f(1.0)))
        signed = let(far, lambda f: tirx.Select(x < _f(0.0), _f(0.0) - f, f))
        return tirx.Select(tirx.abs(x) < _f(0.625), near, signed)

    return let(x, of)


def erf(x: Any) -> Any:
    """The error function."""
    from tvm import tirx

    def tail(size: Any) -> Any:
        t = _f(1.0) / (_f(1.0) + _f(0.5) * size)
        return let(t, lambda t: _f(1.0) - t * exp(_polynomial(t, _ERFC) - size * size))

    def of(x: Any) -> Any:
        near = let(x * x, lambda s: _polynomial(s, _ERF_BELOW_ONE)) * x
        far = let(let(tirx.abs(x), tail), lambda f: tirx.Select(x < _f(0.0), _f(0.0) - f, f))
        return tirx.Select(tirx.abs(x) < _f(1.0), near, far)

    return let(x, of)


def gelu(x: Any) -> Any:
    """x / 2 * (1 + erf(x / sqrt 2))."""
    return let(x, lambda x: x * _f(0.5) * (_f(1.0) + erf(x * _f(0.7071067811865476))))


def gelu_tanh(x: Any) -> Any:
    """The tanh approximation of ``gelu``."""
    two = 2 * 0.7978845608028654
    return let(x, lambda x: x * sigmoid(_f(two) * x * (_f(1.0) + _f(0.044715) * (x * x))))


def relu(x: Any) -> Any:
    """max(x, 0); NaN for NaN."""
    from tvm import tirx

    return let(x, lambda x: tirx.Select(x < _f(0.0), _f(0.0), x))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "": lambda x: x,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "sigmoid": sigmoid,
    "tanh": tanh,
}
"""What can follow a product."""
