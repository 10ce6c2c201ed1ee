"""Where the tokens are: the batch and token axis of every value that depends on the ids, rule by rule.

A decoder can be cached if each position of a value depends on the same position of what it is computed from,
in all operators but Attention. This walk proves it, or names the operator that mixes positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.symbol_sizes import quotient
from ...compiler.program import Dim, dim_of
from ..base import decline
from .values import Values, is_static


@dataclass(frozen=True, slots=True)
class Axes:
    """Axes of batch and tokens, counted from the end (-1 is the last); the same if they are merged."""

    batch: int
    token: int


class TokenAxes:
    """``axes`` of every data value. ``rows``: (node, input) → where the tokens are in a sized operand.

    Operands of data nodes that are in neither ``axes`` nor ``rows`` are sizes or the same for all inputs.
    ``attention``: nodes that look back along the tokens; ``cross``: those that look at an encoded source.
    """

    __slots__ = ("attention", "axes", "cross", "rows", "values")

    def __init__(self, values: Values, nodes: Iterable[ir.Node]) -> None:
        """Walk ``nodes``, in order. Raises: NoMatch naming a node that mixes positions."""
        self.values = values
        self.axes: dict[ir.Value, Axes] = {values.tokens: Axes(-2, -1)}
        self.rows: dict[tuple[ir.Node, int], Axes] = {}
        self.attention: list[ir.Node] = []
        self.cross: list[ir.Node] = []
        for node in nodes:
            if not any(o in values.data for o in node.outputs):
                continue
            rule = RULES.get(f"{node.domain}::{node.op_type}".removeprefix("::"))
            if rule is None:
                self.fail(node, "is not known to keep positions apart")
            for value, axes in zip(node.outputs, rule(self, node), strict=False):
                self.axes[value] = axes

    def fail(self, node: ir.Node, why: str) -> NoReturn:
        """Raise NoMatch about ``node``."""
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        decline(f"{kind} {node.name} {why}")

    def of(self, node: ir.Node, index: int = 0) -> tuple[Axes, int]:
        """Axes and rank of a data input of ``node``. Raises: NoMatch if it is none."""
        value = node.inputs[index]
        if value is None or value not in self.axes:
            self.fail(node, f"reads the tokens in another operand than {index}")
        return self.axes[value], rank(value)

    def only_first(self, node: ir.Node) -> tuple[Axes, int]:
        """``of(node)``, where the other inputs must not depend on the ids."""
        if any(v in self.values.data for v in node.inputs[1:] if v is not None):
            self.fail(node, "has operands that depend on the tokens")
        return self.of(node)

    def static(self, node: ir.Node, index: int) -> None:
        """Require that an operand is the same for all inputs. Raises: NoMatch."""
        value = node.inputs[index]
        if value is not None and not is_static(value, self.values):
            self.fail(node, f"has an operand {value.name} that varies")

    def apart(self, node: ir.Node, axes: Axes, along: Iterable[int]) -> None:
        """Require that the axes ``along`` (from the end) are neither batch nor tokens. Raises: NoMatch."""
        if {axes.batch, axes.token} & set(along):
            self.fail(node, "mixes positions")


def rank(value: ir.Value) -> int:
    """Number of dimensions. Raises: NoMatch if it is not known."""
    if value.shape is None:
        decline(f"the shape of {value.name} is not known")
    return len(value.shape)


def dims(value: ir.Value) -> list[Dim]:
    """The dimensions. Raises: NoMatch if their number is not known."""
    rank(value)
    return [dim_of(d) for d in value.shape or ()]


def from_end(axis: int, count: int) -> int:
    """``axis`` of ``count`` axes, counted from the end."""
    return axis % count - count


Found = list[Axes]


def _elementwise(walk: TokenAxes, node: ir.Node) -> Found:
    found = {walk.axes[v] for v in node.inputs if v in walk.axes}
    if len(found) != 1:
        walk.fail(node, "joins values whose tokens lie on different axes")
    (axes,) = found
    for index, value in enumerate(node.inputs):
        if value is None or value in walk.axes:
            continue
        if value in walk.values.sized:
            walk.rows[node, index] = axes
            continue
        walk.static(node, index)
        shape = dims(value)
        for axis in {axes.batch, axes.token}:
            if -axis <= len(shape) and shape[axis] != 1:
                walk.fail(node, f"has an operand of fixed length, {value.name}")
    return [axes]


def _same(walk: TokenAxes, node: ir.Node) -> Found:
    axes, _ = walk.only_first(node)
    for index in range(1, len(node.inputs)):
        walk.static(node, index)
    return [axes] * len(node.outputs)


def _along_axis(default: int) -> Callable[[TokenAxes, ir.Node], Found]:
    """One axis is combined, and stays."""

    def rule(walk: TokenAxes, node: ir.Node) -> Found:
        axes, count = walk.only_first(node)
        for index in range(1, len(node.inputs)):
            walk.static(node, index)
        walk.apart(node, axes, [from_end(node.attributes.get_int("axis", default), count)])
        return [axes] * len(node.outputs)

    return rule


def _normalize(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    for index in range(1, len(node.inputs)):
        walk.static(node, index)
    first = from_end(node.attributes.get_int("axis", -1), count)
    walk.apart(node, axes, range(first, 0))
    return [axes]


def _reduce(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if given is None:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return [axes]
        walk.fail(node, "mixes positions")
    along = {from_end(int(a), count) for a in given.ravel()}
    walk.apart(node, axes, along)
    if node.attributes.get_int("keepdims", 1):
        return [axes]
    return [_without(axes, along)]


def _arg(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    along = from_end(node.attributes.get_int("axis", 0), count)
    walk.apart(node, axes, [along])
    return [axes if node.attributes.get_int("keepdims", 1) else _without(axes, {along})]


def _without(axes: Axes, gone: set[int]) -> Axes:
    return Axes(*(a + sum(g > a for g in gone) for a in (axes.batch, axes.token)))


def _with(axes: Axes, added: set[int]) -> Axes:
    """``axes`` after new axes were put at ``added``, counted from the end of the result."""

    def place(axis: int) -> int:
        for new in sorted(added, reverse=True):
            if new >= axis:
                axis -= 1
        return axis

    return Axes(place(axes.batch), place(axes.token))


def _unsqueeze(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    given = constant(node.inputs[1])
    if given is None:
        walk.fail(node, "has axes that vary")
    return [_with(axes, {from_end(int(a), count + given.size) for a in given.ravel()})]


def _squeeze(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        walk.fail(node, "has axes that vary")
    along = {from_end(int(a), count) for a in given.ravel()}
    walk.apart(node, axes, along)
    return [_without(axes, along)]


def _transpose(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.of(node)
    perm = list(node.attributes.get_ints("perm", ())) or list(reversed(range(count)))
    return [Axes(*(perm.index(a + count) - count for a in (axes.batch, axes.token)))]


def _gather(walk: TokenAxes, node: ir.Node) -> Found:
    data, indices = node.inputs[:2]
    assert data is not None and indices is not None
    axis = node.attributes.get_int("axis", 0)
    if data in walk.axes:
        axes, count = walk.only_first(node)
        walk.static(node, 1)
        along = from_end(axis, count)
        walk.apart(node, axes, [along])
        added = rank(indices) - 1
        return [Axes(*(a - added if a < along else a for a in (axes.batch, axes.token)))]
    walk.static(node, 0)
    axes = walk.axes[indices]
    after = -from_end(axis, rank(data)) - 1
    return [Axes(axes.batch - after, axes.token - after)]


def _gather_nd(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    walk.static(node, 1)
    indices = node.inputs[1]
    assert indices is not None
    depth = dims(indices)[-1]
    if node.attributes.get_int("batch_dims", 0) or not isinstance(depth, int):
        walk.fail(node, "gathers along the batch")
    walk.apart(node, axes, range(-count, -count + depth))
    return [axes]


def _matmul(walk: TokenAxes, node: ir.Node) -> Found:
    left, right = node.inputs
    assert left is not None and right is not None
    if left in walk.axes and right in walk.axes:
        axes = walk.axes[left]
        if axes != walk.axes[right] or max(axes.batch, axes.token) > -3:
            walk.fail(node, "mixes positions")
        return [axes]
    side, other = (0, 1) if left in walk.axes else (1, 0)
    axes, count = walk.of(node, side)
    walk.static(node, other)
    weight = node.inputs[other]
    assert weight is not None
    if rank(weight) < 2 or count < 2:
        walk.fail(node, "multiplies by a vector")
    walk.apart(node, axes, [-1 if side == 0 else -2])
    shape = dims(weight)
    if any(-a <= len(shape) and a < -2 and shape[a] != 1 for a in (axes.batch, axes.token)):
        walk.fail(node, "has a weight of fixed length")
    return [axes]


def _gemm(walk: TokenAxes, node: ir.Node) -> Found:
    axes, _ = walk.only_first(node)
    for index in range(1, len(node.inputs)):
        walk.static(node, index)
    if node.attributes.get_int("transA", 0):
        walk.fail(node, "mixes positions")
    walk.apart(node, axes, [-1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and rank(bias) == 2 and dims(bias)[0] != 1:
        walk.fail(node, "has a bias of fixed length")
    return [axes]


def _concat(walk: TokenAxes, node: ir.Node) -> Found:
    found = {walk.axes.get(v) for v in node.inputs if v is not None}
    axes = next(a for a in found if a is not None)
    if len(found) != 1:
        walk.fail(node, "joins tokens with something else")
    first = node.inputs[0]
    assert first is not None
    walk.apart(node, axes, [from_end(node.attributes.get_int("axis", 0), rank(first))])
    return [axes]


def _slice(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    along = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if along is None:
        walk.fail(node, "cuts unknown axes")
    walk.apart(node, axes, [from_end(int(a), count) for a in along.ravel()])
    return [axes]


def _expand(walk: TokenAxes, node: ir.Node) -> Found:
    axes, _ = walk.only_first(node)
    return [axes]


def _pad(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    pads = constant(node.inputs[1])
    along = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    listed = range(count) if along is None else [int(a) for a in along.ravel()]
    if pads is None:
        walk.fail(node, "pads unknown axes")
    half = pads.size // 2
    padded = [a for i, a in enumerate(listed) if pads[i] or pads[half + i]]
    walk.apart(node, axes, [from_end(a, count) for a in padded])
    return [axes]


def _rotary(walk: TokenAxes, node: ir.Node) -> Found:
    axes, count = walk.only_first(node)
    if (axes.batch + count, axes.token + count) != (0, 2 if count == 4 else 1):
        walk.fail(node, "has tokens on another axis than it rotates along")
    placed = len(node.inputs) > 3 and node.inputs[3] is not None
    for index in (3,) if placed else (1, 2):
        value = node.inputs[index]
        assert value is not None
        if value not in walk.values.sized:
            walk.fail(node, f"has an operand of fixed length, {value.name}")
        walk.rows[node, index] = Axes(-2, -1) if placed else Axes(-3, -2)
    if placed:
        walk.static(node, 1)
        walk.static(node, 2)
    return [axes]


def _attention(walk: TokenAxes, node: ir.Node) -> Found:
    if any(v is not None for v in node.inputs[4:]):
        walk.fail(node, "has past inputs of its own")
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        walk.fail(node, "has more outputs that are read")
    count = rank(node.outputs[0])
    expected = Axes(-count, -2)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if all(v in walk.values.encoded for v in node.inputs[1:3]):
        if walk.of(node)[0] != expected or count != 4 or node.attributes.get_int("is_causal", 0) != 0:
            walk.fail(node, "looks at the source in an unknown way")
        if mask is not None and mask in walk.values.data:
            walk.fail(node, f"has a mask that depends on the tokens, {mask.name}")
        walk.cross.append(node)
        return [expected]
    if any(walk.of(node, index)[0] != expected for index in range(3)):
        walk.fail(node, "has tokens on another axis than the sequence")
    if mask is not None and mask not in walk.values.sized and not is_static(mask, walk.values):
        walk.fail(node, f"has a mask that depends on the tokens, {mask.name}")
    walk.attention.append(node)
    return [expected]


def _reshape(walk: TokenAxes, node: ir.Node) -> Found:
    """An axis is kept where its size is, and the product of the sizes before it."""
    axes, _ = walk.only_first(node)
    x = node.inputs[0]
    assert x is not None
    before, after = dims(x), dims(node.outputs[0])
    batch, token = axes.batch + len(before), axes.token + len(before)
    merged = walk.values.batch, walk.values.sequence
    if batch == token:
        for axis in range(len(after) - 1):
            if tuple(after[axis : axis + 2]) == merged and _equal(before[:batch], after[:axis]):
                return [Axes(axis - len(after), axis + 1 - len(after))]
        kept = _same_axis(before, after, batch)
        if kept is not None:
            return [Axes(kept - len(after), kept - len(after))]
    else:
        kept, other = _same_axis(before, after, batch), _same_axis(before, after, token)
        if kept is not None and other is not None:
            return [Axes(kept - len(after), other - len(after))]
        for axis in range(len(after)):
            joined = token == batch + 1 and _equal(before[batch : token + 1], [after[axis]])
            if joined and _equal(before[:batch], after[:axis]):
                return [Axes(axis - len(after), axis - len(after))]
    return walk.fail(node, f"from {before} to {after} is not known to keep positions apart")


def _same_axis(before: list[Dim], after: list[Dim], axis: int) -> int | None:
    for place, size in enumerate(after):
        if size == before[axis] and _equal(before[:axis], after[:place]):
            return place
    return None


def _equal(a: list[Dim], b: list[Dim]) -> bool:
    """Whether two lists of sizes have the same product."""
    return quotient(a, b) == 1 or a == b


UNARY = (
    "Abs", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tan",
    "Tanh", "ThresholdedRelu",
)  # fmt: skip
BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub",
    "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: dict[str, Callable[[TokenAxes, ir.Node], Found]] = {
    **dict.fromkeys(UNARY, _same),
    **dict.fromkeys(BROADCASTING, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "TopK", "LpNormalization"), _along_axis(-1)),
    "Split": _along_axis(0),
    "LayerNormalization": _normalize, "RMSNormalization": _normalize,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Transpose": _transpose, "Reshape": _reshape,
    "Expand": _expand, "Gather": _gather, "GatherND": _gather_nd, "MatMul": _matmul, "Gemm": _gemm,
    "Concat": _concat, "Slice": _slice, "Pad": _pad, "RotaryEmbedding": _rotary, "Attention": _attention,
    "miaotui::AllReduce": _same, "miaotui::AllGather": _along_axis(0),
}  # fmt: skip
