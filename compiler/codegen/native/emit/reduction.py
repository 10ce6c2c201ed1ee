"""Axes reduced to one number: sums, means, extremes, products, norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ....ir.constants import constant
from .base import Entry, Operator, Size, View, times
from .expressions import BOOL, FLOAT, INT32, INT64, SUFFIXES
from .gathers import index_of
from .loops import head_of, joined, names_of, offset, over_rows, per_row


@dataclass(frozen=True, slots=True)
class Reduction:
    """How elements are put together, in C with ``{y}``, ``{x}``, ``{n}`` (their count) and a dtype's ``{t}``.

    ``row``: a function of kernels that does it for contiguous floats, with its last arguments.
    """

    start: Mapping[ir.DataType, str]
    combined: str
    integers: str = ""
    finished: str = "{y}"
    row: str = ""


_ZERO = {FLOAT: "0", INT64: "0", INT32: "0"}
_LEAST = {FLOAT: "-HUGE_VALF", INT64: "INT64_MIN", INT32: "INT32_MIN", BOOL: "0"}
_MOST = {FLOAT: "HUGE_VALF", INT64: "INT64_MAX", INT32: "INT32_MAX", BOOL: "1"}
_SUM_ROW, _SQUARES_ROW = "sum_row({x}, {n}, 0, 0)", "sum_row({x}, {n}, 0, 1)"

REDUCTIONS: Mapping[str, Reduction] = {
    "ReduceSum": Reduction(_ZERO, "{y} + {x}", "add_{t}({y}, {x})", row=_SUM_ROW),
    "ReduceMean": Reduction({FLOAT: "0"}, "{y} + {x}", finished="{y} / (float){n}", row=_SUM_ROW),
    "ReduceMax": Reduction(_LEAST, "max_f32({y}, {x})", "max_{t}({y}, {x})", row="largest_of_row({x}, {n})"),
    "ReduceMin": Reduction(_MOST, "min_f32({y}, {x})", "min_{t}({y}, {x})", row="smallest_of_row({x}, {n})"),
    "ReduceProd": Reduction({FLOAT: "1", INT64: "1", INT32: "1"}, "{y} * {x}", "mul_{t}({y}, {x})"),
    "ReduceL1": Reduction({FLOAT: "0"}, "{y} + fabsf({x})"),
    "ReduceL2": Reduction({FLOAT: "0"}, "{y} + square({x})", finished="sqrtf({y})", row=_SQUARES_ROW),
    "ReduceSumSquare": Reduction(
        _ZERO, "{y} + square({x})", "add_{t}({y}, mul_{t}({x}, {x}))", row=_SQUARES_ROW
    ),
    "ReduceLogSum": Reduction({FLOAT: "0"}, "{y} + {x}", finished="logf({y})", row=_SUM_ROW),
}
"""By operator name."""


_UNCHANGED = frozenset(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"))
"""Operators that give one element back as it is."""


def axes_of(node: ir.Node) -> list[int] | None:
    """The axes that are reduced, none if the node changes nothing; None if they vary."""
    source = node.inputs[0]
    assert source is not None and source.shape is not None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    rank = len(source.shape)
    if given is not None:
        array = constant(given)
        if array is None:
            return None
        axes = [int(axis) % rank for axis in array]
    else:
        axes = [axis % rank for axis in node.attributes.get_ints("axes", ())]
    if not axes and not node.attributes.get_int("noop_with_empty_axes", 0):
        axes = list(range(rank))
    return sorted(set(axes))


def _reduce(node: ir.Node, entry: Entry) -> None:
    axes, value = axes_of(node), node.inputs[0]
    assert axes is not None and value is not None and value.dtype is not None
    source = entry.view(value)
    if not axes:
        entry.alias(node.outputs[0], source)
        return
    target = entry.new(node.outputs[0])
    kept = [axis for axis in range(len(source.shape)) if axis not in axes]
    steps = target.strides
    if node.attributes.get_int("keepdims", 1):
        steps = tuple(target.strides[axis] for axis in kept)
    sizes, (x_steps, y_steps) = joined(
        [source.shape[axis] for axis in kept], ([source.strides[axis] for axis in kept], steps)
    )
    over, (inner,) = joined([source.shape[a] for a in axes], ([source.strides[a] for a in axes],))
    plan = _Plan(REDUCTIONS[node.op_type], value.dtype, source, target, tuple(sizes), x_steps, y_steps)
    if value.dtype == FLOAT and sizes and x_steps[-1] == 1 and (not inner or inner[-1] != 1):
        entry.step(node, plan.by_columns(over, inner))
    else:
        entry.step(node, plan.by_elements(over, inner))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A reduction of ``source`` into ``target``, whose kept axes are ``sizes``."""

    kind: Reduction
    dtype: ir.DataType
    source: View
    target: View
    sizes: tuple[Size, ...]
    x_steps: tuple[Size, ...]
    y_steps: tuple[Size, ...]

    def by_elements(self, over: Sequence[Size], inner: Sequence[Size]) -> str:
        """One result after the other."""
        names = names_of(len(self.sizes))
        count = times(*over)
        start = f"{self.source.pointer}{offset(names, self.x_steps)}"
        place = f"{self.target.pointer}[{index_of(offset(names, self.y_steps))}]"
        if self.dtype == FLOAT and self.kind.row and (list(inner) == [1] or not over):
            row = self.kind.row.format(x=start, n=count)
            lines = [f"{place} = {self._finished(row, count)};"]
        else:
            inside = "abcdefgh"[: len(over)]
            element = f"x[{index_of(offset(inside, inner))}]"
            lines = [
                f"const {self.source.ctype} *x = {start};",
                f"{self.source.ctype} all = {self.kind.start[self.dtype]};",
                *_nested(inside, over, [f"all = {self._combined('all', element)};"]),
                f"{place} = {self._finished('all', count)};",
            ]
        return over_rows(self.sizes, lines, per_row(count))

    def by_columns(self, over: Sequence[Size], inner: Sequence[Size]) -> str:
        """A row of results at once, where they lie side by side."""
        outer = names_of(len(self.sizes) - 1)
        inside = "abcdefgh"[: len(over)]
        count, width, column = times(*over), self.sizes[-1], names_of(len(self.sizes))[-1]
        head = head_of(column, width)
        y = f"y[{index_of(offset([column], self.y_steps[-1:]))}]"
        lines = [
            f"float *restrict y = {self.target.pointer}{offset(outer, self.y_steps[:-1])};",
            head,
            f"    {y} = {self.kind.start[self.dtype]};",
            *_nested(
                inside,
                over,
                [
                    f"const float *restrict x = {self.source.pointer}"
                    f"{offset(outer, self.x_steps[:-1])}{offset(inside, inner)};",
                    head,
                    f"    {y} = {self._combined(y, f'x[{column}]')};",
                ],
            ),
        ]
        if self._finished(y, count) != y:
            lines += [head, f"    {y} = {self._finished(y, count)};"]
        return over_rows(self.sizes[:-1], lines, 1)

    def _combined(self, y: str, x: str) -> str:
        if self.dtype == FLOAT:
            return self.kind.combined.format(y=y, x=x)
        if self.dtype == BOOL:
            return f"{y} {'|' if self.kind.start[BOOL] == '0' else '&'} {x}"
        return self.kind.integers.format(y=y, x=x, t=SUFFIXES[self.dtype])

    def _finished(self, y: str, count: Size) -> str:
        return self.kind.finished.format(y=y, n=count)


def _nested(names: str, sizes: Sequence[Size], lines: list[str]) -> list[str]:
    for name, size in reversed(list(zip(names, sizes, strict=True))):
        head = head_of(name, size)
        inside = [f"    {line}" for line in lines]
        lines = [head, *inside] if len(lines) == 1 else [f"{head} {{", *inside, "}"]
    return lines if names else ["{", *(f"    {line}" for line in lines), "}"] if len(lines) > 1 else lines


def _reason(node: ir.Node) -> str | None:
    value, kind = node.inputs[0], REDUCTIONS[node.op_type]
    if value is None or value.shape is None:
        return "the rank of its input is not known"
    if value.dtype not in kind.start or (value.dtype not in (FLOAT, BOOL) and not kind.integers):
        return f"it reduces {None if value.dtype is None else value.dtype.name.lower()}"
    axes = axes_of(node)
    if axes is None:
        return "its axes are only known when run"
    if not axes and node.op_type not in _UNCHANGED:
        return "it reduces no axis"
    return None


OPERATORS = {name: Operator(_reduce, _reason) for name in REDUCTIONS}

__all__ = ["OPERATORS", "REDUCTIONS", "axes_of"]
