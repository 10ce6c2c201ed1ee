"""Random valid models over the operators that passes rewrite, and hypothesis' strategy of them.

A model grows step by step from a pool of values. The steps are the idioms of real exports (projections that
share an input, attention, norms in pieces and whole, gated units, convolution blocks, reshapes by computed
shapes) and what optimizers trip over: shared weights, dead branches, duplicates, no-ops, intermediates that
are graph outputs. The first axis of every value is the symbol ``batch``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st
from miaotui.compiler.ir.builder import FLOAT, INT64, Builder
from miaotui.compiler.program import DimRange, Program

T = TypeVar("T")
Shape = tuple[int, ...]
"""Sizes behind the batch axis."""

UNARY = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Neg",
    "Abs",
    "Erf",
    "Softplus",
    "Elu",
    "LeakyRelu",
    "HardSwish",
    "Identity",
)


class Grower:
    """A builder with a pool of float values ``[batch, *shape]`` and random choice."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.b = Builder()
        self.pool: list[tuple[ir.Value, Shape]] = []
        self.weights: dict[tuple[Shape, str], ir.Value] = {}
        self.keep: ir.Value | None = None

    # --- choice ---

    def pick(self, options: Sequence[T]) -> T:
        return self.choice.choice(options)

    def coin(self) -> bool:
        return self.choice.random() < 0.5

    def upto(self, low: int, high: int) -> int:
        return self.choice.randint(low, high)

    def any(self, *ranks: int) -> tuple[ir.Value, Shape] | None:
        """A value whose shape behind the batch axis has one of ``ranks``; recent ones more often."""
        found = [entry for entry in self.pool if not ranks or len(entry[1]) in ranks]
        if not found:
            return None
        return found[-1 - min(self.upto(0, 5), len(found) - 1)]

    def like(self, shape: Shape) -> ir.Value:
        """Another value of that shape, or a weight that broadcasts to it."""
        found = [value for value, other in self.pool if other == shape]
        if found and self.coin():
            return self.pick(found)
        return self.weight(self.pick([shape[-1:], (), shape, (*[1] * (len(shape) - 1), *shape[-1:])]))

    # --- building ---

    def weight(self, shape: Shape, kind: str = "normal") -> ir.Value:
        """A weight of that shape, shared with an earlier one of the same kind now and then."""
        if (shape, kind) in self.weights and self.coin():
            return self.weights[shape, kind]
        array = self.rng.standard_normal(shape).astype(np.float32)
        if kind == "matrix":
            array /= np.float32(math.sqrt(math.prod(shape[1:]) if len(shape) > 2 else shape[0]))
        elif kind == "positive":
            array = np.abs(array) + np.float32(0.5)
        self.weights[shape, kind] = value = self.constant(array)
        return value

    def constant(self, array: Any, dtype: Any = np.float32) -> ir.Value:
        array = np.asarray(array, dtype)
        return self.b.weight(f"c{len(self.b.graph.initializers)}", array)

    def ints(self, *values: int) -> ir.Value:
        return self.constant(list(values), np.int64)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.b.op(op_type, *inputs, **attributes)

    def add(self, value: ir.Value, shape: Shape) -> ir.Value:
        self.pool.append((value, shape))
        return value

    def linear(self, x: ir.Value, width: int, to: int, bias: bool) -> ir.Value:
        y = self.op("MatMul", x, self.weight((width, to), "matrix"))
        if not bias:
            return y
        b = self.weight((to,))
        return self.op("Add", y, b) if self.coin() else self.op("Add", b, y)

    def reshape(self, x: ir.Value, shape: Shape) -> ir.Value:
        """[batch, ...] as [batch, *shape], by one of the ways exporters write it."""
        way = self.upto(0, 2)
        if way == 0:
            return self.op("Reshape", x, self.ints(-1, *shape))
        if way == 1:
            return self.op("Reshape", x, self.ints(0, *shape[:-1], -1))
        batch = self.op("Gather", self.op("Shape", x), self.ints(0), axis=0)
        return self.op("Reshape", x, self.op("Concat", batch, self.ints(*shape), axis=0))


# --- steps: each grows the pool or does nothing ---


def unary(g: Grower) -> None:
    if entry := g.any():
        g.add(g.op(g.pick(UNARY), entry[0]), entry[1])


def binary(g: Grower) -> None:
    if entry := g.any():
        x, shape = entry
        other, kind = g.like(shape), g.pick(("Add", "Sub", "Mul", "Max", "Min", "Div"))
        if kind == "Div":
            other = g.weight(shape[-1:], "positive")
        swap = kind != "Div" and g.coin()
        g.add(g.op(kind, other, x) if swap else g.op(kind, x, other), shape)


def no_op(g: Grower) -> None:
    if entry := g.any():
        x, shape = entry
        rank = len(shape) + 1
        ways: list[Callable[[], ir.Value]] = [
            lambda: g.op("Mul", x, g.constant(1.0)),
            lambda: g.op("Add", g.constant([0.0]), x),
            lambda: g.op("Div", x, g.constant(1.0)),
            lambda: g.op("Sub", x, g.constant(0.0)),
            lambda: g.op("Cast", x, to=1),
            lambda: g.op("Cast", g.op("Cast", x, to=11), to=1),
            lambda: g.op("Transpose", x, perm=list(range(rank))),
            lambda: g.op("Dropout", x),
            lambda: g.op("Squeeze", g.op("Unsqueeze", x, g.ints(1)), g.ints(1)),
            lambda: g.op("Concat", x, axis=-1),
            lambda: g.op("Pad", x, g.ints(*[0] * (2 * rank))),
            lambda: g.op("Slice", x, g.ints(0), g.ints(2**31), g.ints(rank - 1)),
            lambda: g.op("Expand", x, g.ints(*[1] * rank)),
            lambda: g.op("Clip", x, None, None),
        ]
        g.add(g.pick(ways)(), shape)


def duplicate(g: Grower) -> None:
    found = [entry for entry in g.pool if entry[0].producer() is not None]
    if found:
        value, shape = g.pick(found)
        node = value.producer()
        assert node is not None
        if len(node.outputs) == 1:
            attributes = {name: attr.value for name, attr in node.attributes.items()}
            g.add(g.op(node.op_type, *node.inputs, **attributes), shape)


def dense(g: Grower) -> None:
    if entry := g.any(1, 2):
        x, shape = entry
        to = g.pick((4, 6, 8))
        if len(shape) == 1 and g.coin():
            transposed = g.coin()
            w = g.weight((to, shape[0]) if transposed else (shape[0], to), "matrix")
            bias = g.weight((to,)) if g.coin() else None
            y = g.op(
                "Gemm", x, w, bias, transB=int(transposed), alpha=g.pick((1.0, 0.5)), beta=g.pick((1.0, 2.0))
            )
        else:
            y = g.linear(x, shape[-1], to, g.coin())
        if g.coin():
            y = g.op(g.pick(("Relu", "Tanh", "Sigmoid", "LeakyRelu")), y)
        g.add(y, (*shape[:-1], to))


def projections(g: Grower) -> None:
    """Three products with one input, as query, key and value."""
    if entry := g.any(1, 2):
        x, shape = entry
        bias, to = g.coin(), g.pick((4, 8))
        for _ in range(3):
            g.add(g.linear(x, shape[-1], to, bias), (*shape[:-1], to))


def residual(g: Grower) -> None:
    if entry := g.any(1, 2):
        x, shape = entry
        branch = g.linear(x, shape[-1], shape[-1], g.coin())
        total = g.op("Add", x, branch) if g.coin() else g.op("Add", branch, x)
        g.add(total, shape)
        if g.coin():
            g.add(norm_of(g, total, shape), shape)


def norm(g: Grower) -> None:
    if entry := g.any(1, 2):
        g.add(norm_of(g, *entry), entry[1])


def norm_of(g: Grower, x: ir.Value, shape: Shape) -> ir.Value:
    gamma, beta, axes = g.weight(shape[-1:], "positive"), g.weight(shape[-1:]), g.ints(-1)
    eps = g.pick((1e-5, 1e-6, 1e-12))
    way = g.upto(0, 3)
    if way == 0:
        return g.op("LayerNormalization", x, gamma, beta if g.coin() else None, axis=-1, epsilon=eps)
    if way == 1:
        return g.op("RMSNormalization", x, gamma, axis=-1, epsilon=eps)
    if way == 2:
        centred = g.op("Sub", x, g.op("ReduceMean", x, axes, keepdims=1))
        square = g.op("Mul", centred, centred) if g.coin() else g.op("Pow", centred, g.constant(2.0))
        variance = g.op("Add", g.op("ReduceMean", square, axes, keepdims=1), g.constant(1e-5))
        y = g.op("Mul", g.op("Div", centred, g.op("Sqrt", variance)), gamma)
        return g.op("Add", y, beta) if g.coin() else y
    square = g.op("Mul", x, x) if g.coin() else g.op("Pow", x, g.constant(2.0))
    root = g.op("Sqrt", g.op("Add", g.op("ReduceMean", square, axes, keepdims=1), g.constant(1e-5)))
    y = g.op("Div", x, root) if g.coin() else g.op("Mul", x, g.op("Reciprocal", root))
    return g.op("Mul", y, gamma) if g.coin() else g.op("Mul", gamma, y)


def gelu(g: Grower) -> None:
    if entry := g.any():
        x, shape = entry
        way = g.upto(0, 3)
        if way == 0:
            y = g.op("Gelu", x, approximate=g.pick(("none", "tanh")))
        elif way == 1:
            inner = g.op("Add", g.op("Erf", g.op("Div", x, g.constant(math.sqrt(2)))), g.constant(1.0))
            y = g.op("Mul", g.op("Mul", x, inner), g.constant(0.5))
        elif way == 2:
            inner = g.op("Add", g.op("Erf", g.op("Mul", x, g.constant(math.sqrt(0.5)))), g.constant(1.0))
            y = g.op("Mul", g.op("Mul", x, g.constant(0.5)), inner)
        else:
            cube = g.op("Mul", g.op("Pow", x, g.constant(3.0)), g.constant(0.044715))
            inner = g.op("Tanh", g.op("Mul", g.op("Add", x, cube), g.constant(math.sqrt(2 / math.pi))))
            y = g.op("Mul", g.op("Mul", x, g.constant(0.5)), g.op("Add", inner, g.constant(1.0)))
        g.add(y, shape)


def gated(g: Grower) -> None:
    """SiLU, alone or as the gate of a unit."""
    if entry := g.any(1, 2):
        x, shape = entry
        to = g.pick((4, 8))
        gate = g.linear(x, shape[-1], to, False)
        silu = g.op("Mul", gate, g.op("Sigmoid", gate))
        if g.coin():
            silu = g.op("Mul", silu, g.linear(x, shape[-1], to, False))
        g.add(silu, (*shape[:-1], to))


def attention(g: Grower) -> None:
    if (entry := g.any(2)) is None:
        return
    x, (length, width) = entry
    heads, head = g.pick((1, 2)), g.pick((2, 4))
    hidden, bias = heads * head, g.coin()
    q, k, v = (g.reshape(g.linear(x, width, hidden, bias), (length, heads, head)) for _ in range(3))
    q, v = (g.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scale = 1 / math.sqrt(head)
    mask = None
    if g.coin():
        mask = g.constant(np.triu(np.full((1, 1, length, length), -1e4), 1))
    if g.coin():
        k = g.op("Transpose", k, perm=[0, 2, 1, 3])
        y = g.op("Attention", q, k, v, mask, scale=scale)
    else:
        k = g.op("Transpose", k, perm=[0, 2, 3, 1])
        way = g.upto(0, 2)
        if way == 2:
            root = g.constant(math.sqrt(scale))
            q, k = g.op("Mul", q, root), g.op("Mul", k, root)
        scores = g.op("MatMul", q, k)
        if way == 0:
            scores = g.op("Div", scores, g.constant(1 / scale))
        elif way == 1:
            scores = g.op("Mul", scores, g.constant(scale))
        if mask is not None:
            scores = g.op("Add", scores, mask)
        y = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), (length, hidden))
    g.add(g.linear(y, hidden, width, g.coin()), (length, width))


def softmax(g: Grower) -> None:
    if entry := g.any():
        axis = g.upto(1, len(entry[1]))
        g.add(
            g.op(g.pick(("Softmax", "LogSoftmax")), entry[0], axis=g.pick((axis, axis - len(entry[1]) - 1))),
            entry[1],
        )


def reduce(g: Grower) -> None:
    if entry := g.any(2, 3):
        x, shape = entry
        axis = g.upto(1, len(shape))
        keep = g.coin()
        y = g.op(
            g.pick(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")), x, g.ints(axis), keepdims=int(keep)
        )
        rest = [1] if keep else []
        g.add(y, (*shape[: axis - 1], *rest, *shape[axis:]))


def reshaped(g: Grower) -> None:
    if entry := g.any():
        x, shape = entry
        total = math.prod(shape)
        to = g.pick(
            [
                (total,),
                (1, *shape),
                shape,
                (*shape[:-1], 1, shape[-1]),
                (2, total // 2) if total % 2 == 0 else (total,),
            ]
        )
        y = g.op("Flatten", x, axis=1) if to == (total,) and g.coin() else g.reshape(x, to)
        if len(to) <= 3:
            g.add(y, to)


def transposed(g: Grower) -> None:
    if entry := g.any(2, 3):
        x, shape = entry
        order = g.choice.sample(range(1, len(shape) + 1), len(shape))
        y = g.op("Transpose", x, perm=[0, *order])
        to = tuple(shape[i - 1] for i in order)
        if g.coin():  # and back, perhaps with something elementwise between
            y = g.op("Relu", y) if g.coin() else y
            y = g.op("Transpose", y, perm=[0, *(order.index(i) + 1 for i in range(1, len(shape) + 1))])
            to = shape
        g.add(y, to)


def sliced(g: Grower) -> None:
    if entry := g.any():
        x, shape = entry
        axis = g.upto(1, len(shape))
        size = shape[axis - 1]
        if size < 2:
            return
        way, at = g.upto(0, 3), g.upto(1, size - 1)
        before, after = shape[: axis - 1], shape[axis:]
        if way == 0:
            g.add(g.op("Slice", x, g.ints(0), g.ints(at), g.ints(axis)), (*before, at, *after))
        elif way == 1:
            g.add(g.op("Slice", x, g.ints(-1), g.ints(-size - 1), g.ints(axis), g.ints(-1)), shape)
        elif way == 2:
            g.add(g.op("Gather", x, g.ints(at, 0), axis=axis), (*before, 2, *after))
        else:
            first, second = g.b.ops("Split", x, g.ints(at, size - at), outputs=2, axis=axis)
            g.add(first, (*before, at, *after))
            g.add(second, (*before, size - at, *after))


def joined(g: Grower) -> None:
    if entry := g.any():
        x, shape = entry
        others = [e for e in g.pool if e[1][:-1] == shape[:-1] and len(e[1]) == len(shape)]
        y, other = g.pick(others)
        g.add(g.op("Concat", x, y, axis=g.pick((-1, len(shape)))), (*shape[:-1], shape[-1] + other[-1]))


def chosen(g: Grower) -> None:
    """Where, by a condition on the integer input, so that rounding can't turn it over."""
    if (entry := g.any()) and g.keep is not None:
        x, shape = entry
        g.add(g.op("Where", g.reshape(g.keep, (1,) * len(shape)), x, g.like(shape)), shape)


def conv(g: Grower) -> None:
    if (entry := g.any(3)) is None:
        return
    x, (channels, height, width) = entry
    group = channels if g.coin() else 1
    to = channels if group > 1 else g.pick((2, 4))
    kernel = g.pick((1, 3)) if min(height, width) >= 3 else 1
    pad = kernel // 2 if g.coin() else 0
    stride = g.pick((1, 1, 2))
    bias = g.weight((to,)) if g.coin() else None
    w = g.weight((to, channels // group, kernel, kernel), "matrix")
    y = g.op("Conv", x, w, bias, group=group, pads=[pad] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2)
    shape = (to, *((n + 2 * pad - kernel) // stride + 1 for n in (height, width)))
    if g.coin():
        statistics = [g.weight((to,), kind) for kind in ("positive", "normal", "normal", "positive")]
        y = g.op("BatchNormalization", y, *statistics, epsilon=1e-5)
    if shape == entry[1] and g.coin():
        y = g.op("Add", y, x)
    if g.coin():
        y = g.op("Relu", y) if g.coin() else g.op("Clip", y, g.constant(0.0), g.constant(6.0))
    g.add(y, shape)


def pool(g: Grower) -> None:
    if entry := g.any(3):
        x, (channels, height, width) = entry
        if min(height, width) < 2 or g.coin():
            g.add(g.op("GlobalAveragePool", x), (channels, 1, 1))
        else:
            kind = g.pick(("MaxPool", "AveragePool"))
            g.add(g.op(kind, x, kernel_shape=[2, 2], strides=[2, 2]), (channels, height // 2, width // 2))


def folded(g: Grower) -> None:
    """An operand that is computed from constants alone."""
    if entry := g.any():
        x, shape = entry
        w = g.op(g.pick(("Add", "Mul")), g.weight(shape[-1:]), g.weight(shape[-1:]))
        g.add(g.op("Add", x, g.op("Tanh", w) if g.coin() else w), shape)


STEPS: tuple[Callable[[Grower], None], ...] = (
    unary, binary, binary, no_op, duplicate, dense, dense, projections, residual, residual, norm, norm, gelu,
    gated, attention, attention, softmax, reduce, reshaped, transposed, sliced, joined, chosen, conv, conv,
    pool, folded,
)  # fmt: skip


def grow(seed: int, steps: int) -> Program:
    """The model of ``seed`` after ``steps`` steps: fewer steps give a prefix of the same graph.

    Its batch is 1 to 4; up to three values that nothing reads are outputs, and at times one that is read.
    """
    g = Grower(seed)
    for index in range(g.upto(1, 2)):
        shape = g.pick([(6,), (8,), (4, 8), (4, 8), (5, 4), (2, 6, 6), (4, 5, 7)])
        g.add(g.b.input(f"x{index}", ("batch", *shape), FLOAT), shape)
    if g.upto(0, 3) == 0:
        ids = g.b.input("ids", ("batch",), INT64)
        g.keep = g.op("Greater", ids, g.constant(3, np.int64))
        g.add(g.op("Gather", g.weight((7, 8)), ids, axis=0), (8,))
        g.add(g.op("Unsqueeze", g.op("Cast", ids, to=int(FLOAT)), g.ints(1)), (1,))
    for _ in range(steps):
        g.pick(STEPS)(g)
    computed = [value for value, _ in g.pool if value.producer() is not None]
    outputs = [v for v in computed if not v.uses()][-3:] or [g.op("Identity", g.pool[-1][0])]
    if computed and g.coin():
        outputs.append(g.pick(computed))
    for value in dict.fromkeys(outputs):
        g.b.output(value)
    return g.b.program(batch=DimRange(1, 4))


@dataclass(frozen=True)
class Recipe:
    """What hypothesis draws, shrinks and prints: ``grow(seed, steps)`` makes the model again."""

    seed: int
    steps: int

    def program(self) -> Program:
        """The model."""
        return grow(self.seed, self.steps)


def recipes(max_steps: int = 14) -> st.SearchStrategy[Recipe]:
    """Random models; hypothesis would draw every choice close to its least, so it draws a seed instead."""
    return st.builds(Recipe, st.integers(0, 2**32 - 1), st.integers(1, max_steps))
