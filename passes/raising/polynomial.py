"""Arithmetic as polynomials: how activations are recognised in any order of their products and sums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from ...compiler.ir.constants import scalar
from .match import Region, close_to, made_by, only_user

Polynomial = dict[tuple[int, int], float]
"""Coefficients by (power of x, power of e): ``{(1, 1): 0.5}`` is x·e/2."""

_DEPTH = 12
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Neg", "Pow")


def polynomial(
    value: ir.Value | None, x: ir.Value, e: ir.Value | None, region: Region, depth: int = _DEPTH
) -> Polynomial | None:
    """``value`` as a polynomial in ``x`` and ``e``, or None; the nodes it is made of join ``region``."""
    if value is None or depth == 0:
        return None
    if value is x:
        return {(1, 0): 1.0}
    if value is e:
        return {(0, 1): 1.0}
    number = scalar(value)
    if number is not None:
        return {(0, 0): float(number)}
    node = region.find(value, *_ARITHMETIC)
    if node is None:
        return None
    a = polynomial(node.inputs[0], x, e, region, depth - 1)
    if a is None:
        return None
    if node.op_type == "Neg":
        return {power: -c for power, c in a.items()}
    b = polynomial(node.inputs[1], x, e, region, depth - 1)
    return None if b is None else _combine(node.op_type, a, b)


def _combine(op: str, a: Polynomial, b: Polynomial) -> Polynomial | None:
    number = b.get((0, 0)) if b.keys() <= {(0, 0)} else None
    if op in ("Add", "Sub"):
        sign = 1.0 if op == "Add" else -1.0
        return {p: a.get(p, 0.0) + sign * b.get(p, 0.0) for p in {**a, **b}}
    if op == "Mul":
        return _times(a, b)
    if op == "Div":
        return {p: c / number for p, c in a.items()} if number else None
    if number not in (1, 2, 3, 4):
        return None
    power = a
    for _ in range(int(number) - 1):
        power = _times(power, a)
    return power


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    product: Polynomial = {}
    for (i, j), c in a.items():
        for (k, m), d in b.items():
            product[i + k, j + m] = product.get((i + k, j + m), 0.0) + c * d
    return product


def is_polynomial(found: Polynomial | None, expected: Mapping[tuple[int, int], float]) -> bool:
    """Whether the coefficients are the expected ones, to the precision exporters write."""
    if found is None:
        return False
    significant = {p for p, c in found.items() if c != 0.0}
    return significant == set(expected) and all(close_to(found[p], c) for p, c in expected.items())


def leaves(value: ir.Value | None, depth: int = 6) -> Iterator[ir.Value]:
    """Candidates for x: every varying value that ``value`` is computed from by arithmetic, nearest first."""
    if value is None or depth == 0 or scalar(value) is not None:
        return
    yield value
    node = made_by(value, *_ARITHMETIC)
    for operand in node.inputs if node is not None else ():
        yield from leaves(operand, depth - 1)


def results(value: ir.Value, depth: int = 5) -> Iterator[ir.Value]:
    """Candidates for the pattern's output: what follows ``value`` by arithmetic alone, nearest first."""
    for _ in range(depth):
        user = only_user(value)
        if user is None or user.op_type not in _ARITHMETIC or user.domain != "":
            return
        value = user.outputs[0]
        yield value
