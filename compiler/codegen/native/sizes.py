"""Sizes of an entry in C: the names its inputs' shapes bring, and expressions of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...ir.symbol_sizes import is_open
from ...program import Dim, dim_of
from .emit.base import Size, times
from .extents import Extent, extents

_KEYWORDS = """auto break case char const continue default do double else enum extern float for goto if inline
    int long register restrict return short signed sizeof static struct switch typedef union unsigned void
    volatile while asm typeof"""

_OURS = """w run weights arena tensors sizes memory call worker range share barrier begin end count total
    index size rows columns row column value values data input output stride strides axis start
    stop step length part block head heads scale bias linear attention fail take need task main
    kernel argmax floats longs ints most bytes"""
"""Names that emitted code and the kernels use themselves."""

_TAKEN = frozenset(f"{_KEYWORDS} {_OURS}".split())

_ROOMY = re.compile(r"[a-z][a-z0-9_]{2,}")


def c_name(text: str, taken: Iterable[str] = (), kind: str = "_size") -> str:
    """``text`` as a C identifier that hides nothing of ours and is none of ``taken``.

    ``kind``: what is put behind it where it would.

    >>> c_name("batch"), c_name("int"), c_name("past seq.0"), c_name("N")
    ('batch', 'int_size', 'past_seq_0', 'n_size')
    """
    taken = frozenset(taken)
    name = re.sub(r"\W", "_", text.lower()).strip("_")
    if not _ROOMY.fullmatch(name) or name in _TAKEN:
        name = f"{name}{kind}" if name[:1].isalpha() else f"at_{name}"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique


@dataclass(frozen=True, slots=True)
class Sizes:
    """The named sizes of an entry: ``names`` as the graph spells them, in order of first appearance in its
    inputs; ``spelled`` in C, in that order. ``extents``: those that follow from what an input holds."""

    names: tuple[str, ...]
    spelled: tuple[str, ...]
    extents: tuple[Extent, ...] = ()

    @classmethod
    def of(cls, graph: ir.Graph) -> Sizes:
        """The sizes of a graph's inputs. Dimensions that are expressions follow from those that are names."""
        dims = [dim_of(d) for v in graph.inputs if not v.is_initializer() for d in v.shape or ()]
        names = tuple(dict.fromkeys(d for d in dims if isinstance(d, str) and d.isidentifier()))
        spelled: list[str] = []
        for name in names:
            spelled.append(c_name(name, spelled))
        return cls(names, tuple(spelled), tuple(e for e in extents(graph) if e.name not in names))

    def size(self, dim: Dim) -> Size | None:
        """A dimension in C; None if it is unknown when compiled.

        >>> Sizes(("batch", "s"), ("batch", "s_size")).size("Min(16, 2*s)")
        'min64(16, (2 * s_size))'
        """
        if isinstance(dim, int):
            return dim
        if dim in self.names:
            return self.spelled[self.names.index(dim)]
        if any(extent.name == dim for extent in self.extents):
            return c_name(dim or "", self.spelled)
        if dim is None or is_open(dim):
            return None
        try:
            return self._c(ast.parse(dim, mode="eval").body)
        except (SyntaxError, _UnknownSizeError):
            return None

    def shape(self, value: ir.Value) -> tuple[Size | None, ...] | None:
        """The shape of ``value``, None where a size is unknown; None if its rank is."""
        return None if value.shape is None else tuple(self.size(dim_of(d)) for d in value.shape)

    def _c(self, node: ast.expr) -> Size:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in self.names:
                return self.spelled[self.names.index(name)]
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return times(self._c(left), self._c(right))
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
                return _sum(self._c(left), "+" if isinstance(op, ast.Add) else "-", self._c(right))
            case ast.BinOp(left=left, op=ast.Mod(), right=right):
                return f"({self._c(left)} % {self._c(right)})"
            case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
                return f"({self._c(left)} / {self._c(right)})"
            case ast.Call(func=ast.Name(id="Min" | "Max" as which), args=arguments):
                return _chain("min64" if which == "Min" else "max64", [self._c(a) for a in arguments])
            case ast.Call(func=ast.Name(id="floor"), args=[argument]):
                above, below = self._fraction(argument)
                return f"({above} / {below})"
        raise _UnknownSizeError

    def _fraction(self, node: ast.expr) -> tuple[Size, int]:
        """A rational expression over one denominator: sizes are not negative, so C's division is floor's."""
        match node:
            case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int(number))):
                above, below = self._fraction(left)
                return above, below * number
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
                (a, b), (c, d) = self._fraction(left), self._fraction(right)
                return _sum(times(a, d), "+" if isinstance(op, ast.Add) else "-", times(c, b)), b * d
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                (a, b), (c, d) = self._fraction(left), self._fraction(right)
                return times(a, c), b * d
        return self._c(node), 1


class _UnknownSizeError(Exception):
    """An expression with a name that no input brings, or an operator that sizes have not."""


def _sum(a: Size, sign: str, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b if sign == "+" else a - b
    return f"({a} {sign} {b})"


def _chain(function: str, parts: Sequence[Size]) -> Size:
    result = parts[0]
    for part in parts[1:]:
        result = f"{function}({result}, {part})"
    return result
