"""Rows of what depends only on sizes: what the whole sequence would have at the new tokens' positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, scalar
from ...compiler.program import dim_of
from ..base import NoMatch, decline
from .evaluation import SizedEvaluator, shape_dims
from .token_axes import BROADCASTING, UNARY, from_end
from .values import is_static
from .writer import Writer


class Whole:
    """Writes sized values as they are for one sequence of ``total`` tokens, the longest row of the call.

    ``total``: int64[1]. All rows of a batch have the same, so these values have batch 1.
    """

    __slots__ = ("_made", "evaluator", "total", "values", "writer")

    def __init__(self, writer: Writer, evaluator: SizedEvaluator, total: Callable[[], ir.Value]) -> None:
        self.writer, self.evaluator, self.values = writer, evaluator, evaluator.values
        self.total = total
        self._made: dict[ir.Value, ir.Value] = {}

    def __call__(self, value: ir.Value) -> ir.Value:
        """``value`` for ``total`` tokens. Raises: NoMatch."""
        if is_static(value, self.values):
            return self.writer.static(value)
        if value not in self._made:
            self._made[value] = self._write(value)
        return self._made[value]

    def _write(self, value: ir.Value) -> ir.Value:
        node, write = value.producer(), self.writer
        if node is None:
            return self._substitute(value)
        if node.op_type == "Shape" and node.inputs[0] in self.values.data:
            parts = [self._size(d) for d in shape_dims(node)]
            return parts[0] if len(parts) == 1 else write.op("Concat", *parts, axis=0)
        inputs = [None if v is None else self(v) for v in node.inputs]
        for old, new in zip(node.outputs, write.copy(node, inputs, named=False), strict=True):
            self._made[old] = new
        return self._made[value]

    def _size(self, dim: int | ir.SymbolicDim) -> ir.Value:
        number, symbol = 1, None
        name = dim_of(dim)
        for part in name.split("*") if isinstance(name, str) else [name]:
            if isinstance(part, int) or (part is not None and part.isdigit()):
                number *= int(part)
            elif part == self.values.sequence and symbol is None:
                symbol = part
            elif part is None or part != self.values.batch:
                decline(f"the size {name} is neither batch nor sequence")
        if symbol is None:
            return self.writer.ints(number)
        total = self.total()
        return total if number == 1 else self.writer.op("Mul", total, self.writer.ints(number))

    def _substitute(self, value: ir.Value) -> ir.Value:
        write = self.writer
        assert value.dtype is not None
        if value in self.values.masks:
            one = write.const(np.ones((), value.dtype.numpy()), "one")
            return write.op("Expand", one, write.op("Concat", write.ints(1), self.total(), axis=0))
        steps = write.op(
            "Range", write.const(np.int64(0)), write.op("Squeeze", self.total()), write.const(np.int64(1))
        )
        return write.op("Unsqueeze", _cast(write, steps, value.dtype), write.ints(0))


class Rows:
    """Writes the rows of sized values at ``positions``: int64[batch, n], absolute, different for each row.

    The gather of rows is pushed through the operators that compute a value, down to the Range whose rows are
    the positions themselves, so that a call costs as much as its new tokens; where that fails, the value is
    computed for all ``total`` tokens and gathered from. ``tables``: indices that rows were gathered by, and
    how many the table has.
    """

    __slots__ = ("_leaves", "_made", "positions", "tables", "whole", "write")

    def __init__(self, whole: Whole, positions: Callable[[], ir.Value]) -> None:
        self.whole, self.write, self.positions = whole, whole.writer, positions
        self._made: dict[tuple[ir.Value, int, int], ir.Value] = {}
        self._leaves: dict[tuple[int, int], ir.Value] = {}
        self.tables: dict[ir.Value, int] = {}

    def __call__(self, value: ir.Value, token: int, batch: int) -> ir.Value:
        """``value`` with its rows along axis ``token`` and the batch at axis ``batch``, from the end.

        The result broadcasts to the rows: axes along which ``value`` is the same may have size 1. ``batch``
        may lie before the first axis of ``value``. Raises: NoMatch.
        """
        count = self.rank(value)
        if -token > count or self.size(value, token) == 1:
            return self.whole(value)
        if batch >= token:
            decline(f"{value.name} has its batch behind its tokens")
        if is_static(value, self.whole.values):
            decline(f"{value.name} has a fixed length")
        if -batch <= count and self.size(value, batch) != 1:
            decline(f"{value.name} varies over the batch")
        key = value, token, batch
        if key not in self._made:
            try:
                self._made[key] = self._push(value, token, batch)
            except NoMatch:
                self._made[key] = self._take(value, token, batch)
        return self._made[key]

    def rank(self, value: ir.Value) -> int:
        """Number of dimensions."""
        return len(self.whole.evaluator.shape(value) if value.shape is None else value.shape)

    def size(self, value: ir.Value, axis: int) -> int:
        """Size of a dimension at batch 1, where only 1 matters."""
        dim = None if value.shape is None else dim_of(value.shape[axis])
        if isinstance(dim, int):
            return dim
        if dim == self.whole.values.sequence:
            return 7
        return self.whole.evaluator.shape(value)[axis]

    def leaf(self, token: int, batch: int) -> ir.Value:
        """The positions as a value with the batch at one axis and the tokens at another."""
        if (token, batch) not in self._leaves:
            between, after = token - batch - 1, -token - 1
            axes = [*range(1, 1 + between), *range(2 + between, 2 + between + after)]
            positions = self.positions()
            placed = self.write.op("Unsqueeze", positions, self.write.ints(*axes)) if axes else positions
            self._leaves[token, batch] = placed
        return self._leaves[token, batch]

    def _push(self, value: ir.Value, token: int, batch: int) -> ir.Value:
        node = value.producer()
        if node is None:
            assert value.dtype is not None
            if value in self.whole.values.masks:
                return self.write.const(np.ones((), value.dtype.numpy()), "one")
            return _cast(self.write, self.leaf(token, batch), value.dtype)
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        if rule is None:
            decline(f"no rule for the rows of {node.op_type}")
        return rule(self, node, token, batch)

    def _take(self, value: ir.Value, token: int, batch: int) -> ir.Value:
        """The rows gathered from the value of all tokens."""
        write, count = self.write, self.rank(value)
        whole, axis = self.whole(value), token + count
        taken = write.op("Gather", whole, self.positions(), axis=axis)  # ..., b, n, ...
        if -batch <= count:
            place = batch + count
            taken = write.op("Squeeze", taken, write.ints(place))
            perm = [*range(place), axis - 1, *range(place, axis - 1), *range(axis, count)]
        else:
            place, perm = 0, [axis, *range(axis), *range(axis + 1, count + 1)]
        if perm != sorted(perm):
            taken = write.op("Transpose", taken, perm=perm)
        missing = -batch - count - 1
        return write.op("Unsqueeze", taken, write.ints(*range(1, 1 + missing))) if missing > 0 else taken

    def copy(self, node: ir.Node, *inputs: ir.Value | None) -> ir.Value:
        """The only output of ``node`` over other inputs."""
        return self.write.copy(node, inputs, named=False)[0]


def _cast(write: Writer, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return value if value.dtype == dtype else write.op("Cast", value, to=int(dtype), dtype=dtype)


def _elementwise(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    return rows.copy(node, *(None if v is None else rows(v, token, batch) for v in node.inputs))


def _first(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    first, *others = node.inputs
    assert first is not None
    if any(v is not None and not is_static(v, rows.whole.values) for v in others):
        decline("an operand varies")
    rest = [None if v is None else rows.whole(v) for v in others]
    return rows.copy(node, rows(first, token, batch), *rest)


def _range(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    start, step = scalar(node.inputs[0]), scalar(node.inputs[2])
    dtype = node.outputs[0].dtype
    if start is None or step is None or dtype is None:
        decline("it starts at a size")
    made = _cast(rows.write, rows.leaf(token, batch), dtype)
    if step != 1:
        made = rows.write.op("Mul", made, rows.write.const(np.asarray(step, dtype.numpy())))
    if start != 0:
        made = rows.write.op("Add", made, rows.write.const(np.asarray(start, dtype.numpy())))
    return made


def _cumulate(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    """A running sum of what is the same everywhere is a multiple of the position."""
    x, axis = node.inputs[0], scalar(node.inputs[1])
    if x is None or axis is None or x.dtype is None:
        decline("its axis varies")
    if from_end(int(axis), rows.rank(x)) != token or node.attributes.get_int("reverse", 0) != 0:
        decline("it runs along another axis")
    one = _uniform(rows, x, token)
    count = _cast(rows.write, rows.leaf(token, batch), x.dtype)
    if not node.attributes.get_int("exclusive", 0):
        count = rows.write.op("Add", count, rows.write.const(np.ones((), x.dtype.numpy()), "one"))
    return rows.write.op("Mul", count, one)


def _uniform(rows: Rows, value: ir.Value, token: int) -> ir.Value:
    """What ``value`` is along the axis ``token``, of size 1 there. Raises: NoMatch if it varies."""
    if -token > rows.rank(value) or rows.size(value, token) == 1:
        return rows.whole(value)
    node = value.producer()
    if value in rows.whole.values.masks:
        assert value.dtype is not None
        return rows.write.const(np.ones((), value.dtype.numpy()), "one")
    if node is None or node.domain != "" or node.inputs[0] is None:
        decline("it varies")
    if node.op_type == "Expand":
        return _uniform(rows, node.inputs[0], token)
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return rows.write.const(
            np.zeros((), np.float32) if fill is None else fill.as_tensor().numpy().reshape(())
        )
    if node.op_type in UNARY:
        return rows.copy(node, _uniform(rows, node.inputs[0], token), *map(_maybe(rows), node.inputs[1:]))
    if node.op_type in BROADCASTING:
        return rows.copy(node, *(_uniform(rows, v, token) for v in node.inputs if v is not None))
    return decline("it varies")


def _maybe(rows: Rows) -> Callable[[ir.Value | None], ir.Value | None]:
    return lambda value: None if value is None else rows.whole(value)


def _unsqueeze(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    given, x = constant(node.inputs[1]), node.inputs[0]
    assert x is not None
    if given is None:
        decline("its axes vary")
    count = rows.rank(x) + given.size
    added = {from_end(int(a), count) for a in given.ravel()}
    if token in added:
        decline("the token axis is new")
    inner_token = token + sum(a > token for a in added)
    inner_batch = batch + sum(a > batch for a in added)
    taken_over = batch in added
    if taken_over and -inner_batch <= rows.rank(x):
        decline("the batch axis is put between others")
    made = rows(x, inner_token, inner_batch)
    width = max(rows.rank(x), -inner_batch)
    rest = sorted(a for a in added if a != batch)
    if not rest:
        return made
    total = width + len(rest)
    return rows.write.op("Unsqueeze", made, rows.write.ints(*(a + total for a in rest)))


def _squeeze(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    given, x = constant(node.inputs[1]) if len(node.inputs) > 1 else None, node.inputs[0]
    assert x is not None
    if given is None:
        decline("its axes vary")
    count = rows.rank(x)
    gone = sorted(from_end(int(a), count) for a in given.ravel())

    def before(axis: int) -> int:
        for a in reversed(gone):
            if a >= axis:
                axis -= 1
        return axis

    inner_token, inner_batch = before(token), before(batch)
    if -batch > rows.rank(node.outputs[0]):
        inner_batch = min(inner_batch, -count - 1)
    made = rows(x, inner_token, inner_batch)
    width = max(count, -inner_batch)
    return rows.write.op("Squeeze", made, rows.write.ints(*(a + width for a in gone)))


def _transpose(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    count = rows.rank(x)
    perm = list(node.attributes.get_ints("perm", ())) or list(reversed(range(count)))
    inner_token = perm[token + count] - count
    if -batch <= count:
        inner_batch = perm[batch + count] - count
        if inner_batch >= inner_token:
            decline("the batch comes behind the tokens")
        return rows.write.op("Transpose", rows(x, inner_token, inner_batch), perm=perm)
    extra = -batch - count
    made = rows(x, inner_token, batch)
    return rows.write.op("Transpose", made, perm=[*range(extra), *(p + extra for p in perm)])


def _expand(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    return rows(x, token, batch)


def _reshape(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    """Axes of size 1 put in or left out; others are not followed."""
    x, shapes = node.inputs[0], rows.whole.evaluator.shape
    assert x is not None
    before, after = shapes(x), shapes(node.outputs[0])
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        decline("it cuts or joins axes")
    wide = [i for i, n in enumerate(before) if n != 1]
    place = [i for i, n in enumerate(after) if n != 1].index(token + len(after))
    if any(after[: max(0, batch + len(after))][i] != 1 for i in range(max(0, batch + len(after)))):
        decline("it has axes before the batch")
    made = rows(x, wide[place] - len(before), -len(before) - 1)
    ones = [i + 1 for i, n in enumerate(before) if n == 1]
    if ones:
        made = rows.write.op("Squeeze", made, rows.write.ints(*ones))
    count = max(len(after), -batch)
    shift = count - len(after)
    kept = {count + batch, *(i + shift for i, n in enumerate(after) if n != 1)}
    new = [i for i in range(count) if i not in kept]
    return rows.write.op("Unsqueeze", made, rows.write.ints(*new)) if new else made


def _concat(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    count = rows.rank(node.outputs[0])
    axis = from_end(node.attributes.get_int("axis", 0), count)
    if axis in (token, batch):
        decline("it joins along the tokens")
    for value in node.inputs:
        if value is None or -token > rows.rank(value) or rows.size(value, token) == 1:
            decline("it joins rows with something else")
    made = [rows(v, token, batch) for v in node.inputs if v is not None]
    return rows.write.op("Concat", *made, axis=axis)


def _gather(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    data, indices = node.inputs[:2]
    assert data is not None and indices is not None
    axis = from_end(node.attributes.get_int("axis", 0), rows.rank(data))
    if not is_static(data, rows.whole.values):
        decline("it gathers from what varies")
    after = -axis - 1
    if -token - after < 1 or rows.rank(data) + axis:
        decline("it gathers along a later axis")
    picked = rows(indices, token + after, batch + after)
    table, length = rows.write.static(data), _length(data, axis)
    rows.tables[picked] = length
    last = rows.write.const(np.asarray(length - 1, np.int64), "last")  # filler may lie beyond the table
    safe = rows.write.op("Min", _cast(rows.write, picked, ir.DataType.INT64), last)
    return rows.copy(node, table, safe)


def _length(data: ir.Value, axis: int) -> int:
    size = dim_of(data.shape[axis]) if data.shape is not None else None
    if not isinstance(size, int):
        decline("its table has no known length")
    return size


def _matmul(rows: Rows, node: ir.Node, token: int, batch: int) -> ir.Value:
    a, b = node.inputs
    assert a is not None and b is not None
    if token not in (-1, -2) or min(rows.rank(a), rows.rank(b)) < 2 or batch > -3:
        decline("its tokens lie on a batch axis")
    if token == -1:
        return rows.copy(node, rows.whole(a), rows(b, token, batch))
    return rows.copy(node, rows(a, token, batch), rows.whole(b))


_RULES: dict[str, Callable[[Rows, ir.Node, int, int], ir.Value]] = {
    **dict.fromkeys(UNARY, _first),
    **dict.fromkeys(BROADCASTING, _elementwise),
    "Range": _range, "CumSum": _cumulate, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze,
    "Transpose": _transpose, "Expand": _expand, "Reshape": _reshape, "Concat": _concat, "Gather": _gather,
    "MatMul": _matmul,
}  # fmt: skip
