"""exp, tanh, erf and what is made of them as TIR expressions that LLVM turns into vector instructions.

LLVM lowers TVM's own to calls of libm, a number at a time. ``exp`` is a polynomial, below 2 units in the last
place; ``tanh`` and ``erf`` are Eigen's quotients of polynomials, 4e-7 absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_LOG2E = 1.44269504088896341
_LN2, _LN2_HIGH, _LN2_LOW = 0.6931471805599453, 0.693359375, -2.12194440e-4
_EXP = (1.3814320588e-3, 8.3688510945e-3, 4.1668401086e-2, 1.6666519524e-1, 4.9999993373e-1)
"""Of e**r behind 1 + r, for |r| up to ln(2) / 2: 3e-9 relative, the least that five can be off."""

_EXP_SHORT = (8.3124303385e-3, 4.1890987379e-2, 1.6667118169e-1, 4.9999225850e-1)
"""The same with four: 1.1e-7."""

_LEAST, _MOST = -86.6, 88.72283
"""Arguments between which ``exp`` is computed; below it is under 3e-38, above greater than any float32."""

_NOTHING = -88.03
"""e**x is 2**-127 at it, which as the bits of a float32 is 0."""

_WHOLE = 12582912.0
"""1.5 * 2**23: what is added to it is rounded to a whole number, which then lies in its lowest bits."""

_ERF = (
    (
        -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
    ),
    (
        -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02,
    ),
    4.0,
)  # fmt: skip
_TANH = (
    (
        -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
        1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
    7.90531110763549805,
)  # fmt: skip
"""Numerator and denominator in x², the first times x; where the function is 1."""


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
    """e**x; 0 from -86.6 downwards, infinity above the greatest float32, NaN for NaN."""
    from tvm import tirx

    def of(x: Any) -> Any:
        # Half of it, since 2**128 is no float32.
        value = _power(_within(x, _LEAST, _MOST), 126, (_LN2_HIGH, _LN2_LOW)) * _f(2.0)
        value = tirx.Select(x < _f(_LEAST), _f(0.0), value)
        return tirx.Select(x > _f(_MOST), _f(float("inf")), value)

    return let(x, of)


def exp_below_one(x: Any) -> Any:
    """``exp`` of what is not positive, 1.3e-7 absolute, 0 from -88 downwards; half as long."""
    from tvm import tirx

    def of(x: Any) -> Any:
        return _power(tirx.Select(x < _f(_NOTHING), _f(_NOTHING), x), 127, (_LN2,), _EXP_SHORT)

    return let(x, of)


def _power(x: Any, bias: int, ln2: Sequence[float], series: Sequence[float] = _EXP) -> Any:
    """e**x * 2**(bias - 127), a normal number as e**x is, or 0 for 2**-127. ``ln2``: what adds up to it."""
    from tvm import tirx

    def of(x: Any, shifted: Any, whole: Any) -> Any:
        rest = x
        for part in ln2:
            rest = rest - whole * _f(part)
        grown = let(rest, lambda r: _polynomial(r, (*series, 1.0, 1.0)))
        return grown * tirx.reinterpret("float32", tirx.reinterpret("int32", shifted) << 23)

    origin = _f(_WHOLE + bias)
    return let(x, lambda x: let(x * _f(_LOG2E) + origin, lambda s: let(s - origin, lambda w: of(x, s, w))))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return _f(1.0) / (_f(1.0) + _exp_of_minus(x))


def _exp_of_minus(x: Any) -> Any:
    """For a sum with 1: what is too small or too great for that stays a normal number."""
    return let(x, lambda x: _power(_within(_f(0.0) - x, _LEAST, 88.0), 127, (_LN2_HIGH, _LN2_LOW)))


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return let(x, lambda x: x / (_f(1.0) + _exp_of_minus(x)))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _odd(x, _TANH)


def erf(x: Any) -> Any:
    """The error function."""
    return _odd(x, _ERF)


def _odd(x: Any, quotient: tuple[Sequence[float], Sequence[float], float]) -> Any:
    """A function that goes from -1 to 1."""
    numerator, denominator, end = quotient

    def inside(x: Any) -> Any:
        return let(x * x, lambda s: x * _polynomial(s, numerator) / _polynomial(s, denominator))

    return let(x, lambda x: _within(let(_within(x, -end, end), inside), -1.0, 1.0))


def _within(x: Any, least: float, most: float) -> Any:
    """``x``, bounded; NaN stays, which min and max would lose."""
    from tvm import tirx

    return let(x, lambda x: tirx.Select(x > _f(most), _f(most), tirx.Select(x < _f(least), _f(least), x)))


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
