"""Sizes as TVM's expressions: the names that inputs bring, and what the IR computes from them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ...ir.symbol_sizes import is_open
from ...program import Dim


class UnknownSizeError(Exception):
    """A size that no input brings, or an expression with an operator that sizes have not."""


def size_of(dim: Dim, names: Mapping[str, Any]) -> Any:
    """A dimension as an int or an expression over ``names``. Raises: UnknownSizeError."""
    if isinstance(dim, int):
        return dim
    if dim is not None and dim in names:
        return names[dim]
    if dim is None or is_open(dim):
        raise UnknownSizeError
    try:
        return _size(ast.parse(dim, mode="eval").body, names)
    except SyntaxError:
        raise UnknownSizeError from None


def known(dim: Dim, names: Mapping[str, Any]) -> bool:
    """Whether ``size_of`` takes the dimension; of ``names`` only the keys count."""
    try:
        size_of(dim, dict.fromkeys(names, 1))
    except UnknownSizeError:
        return False
    return True


def _size(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _size(left, names) * _size(right, names)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _size(left, names) + _size(right, names)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _size(left, names) - _size(right, names)
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            return _size(left, names) % _size(right, names)
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return _size(left, names) // _size(right, names)
        case ast.Call(func=ast.Name(id="Min" | "Max" as which), args=arguments):
            return _chain(which, [_size(a, names) for a in arguments])
        case ast.Call(func=ast.Name(id="floor"), args=[argument]):
            above, below = _fraction(argument, names)
            return above // below
    raise UnknownSizeError


def _fraction(node: ast.expr, names: Mapping[str, Any]) -> tuple[Any, int]:
    match node:
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int(number))):
            above, below = _fraction(left, names)
            return above, below * number
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            (a, b), (c, d) = _fraction(left, names), _fraction(right, names)
            return (a * d + c * b if isinstance(op, ast.Add) else a * d - c * b), b * d
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            (a, b), (c, d) = _fraction(left, names), _fraction(right, names)
            return a * c, b * d
    return _size(node, names), 1


def _chain(which: str, parts: list[Any]) -> Any:
    result = parts[0]
    for part in parts[1:]:
        if isinstance(result, int) and isinstance(part, int):
            result = min(result, part) if which == "Min" else max(result, part)
            continue
        from tvm import tirx

        result = tirx.min(result, part) if which == "Min" else tirx.max(result, part)
    return result
