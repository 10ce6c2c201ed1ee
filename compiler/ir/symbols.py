"""Names for sizes that onnx's inference leaves open: ranges, reshapes, expansions, broadcasts of symbols.

onnx names every size it can't derive ``unk__N``, the same size the same way. This walk derives what such
a name stands for where it first appears, following the sizes that graphs compute (Shape, Gather, Concat,
Where, ...), and then replaces it everywhere.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ..dialect.standard import infer_standard
from ..program import Dim, dim_of
from .constants import constant
from .signatures import signature

Dims = list[Dim]

_SINCE = 13
"""Opset from which Slice, Squeeze, Unsqueeze and Split read sizes from inputs, as the rules below expect."""

_LIMIT = 64
"""Elements up to which the integers in a value are followed."""

_FORMS = 18
"""The opset from which on every operator read here has its axes, sizes and splits where it has them now."""


def is_open(dim: Dim) -> bool:
    """Whether the size is unknown, or has only a name that onnx's inference gave it."""
    return dim is None or (isinstance(dim, str) and dim.startswith("unk__"))


def resolve_symbols(graph: ir.Graph) -> None:
    """Replace the open sizes of ``graph`` and its subgraphs by what they can be derived to be.

    Models of opsets before 18, whose operators have other forms, are left as they are.
    """
    if graph.opset_imports.get("", _FORMS) < _FORMS:
        return
    if graph.opset_imports.get("", 0) < _SINCE:
        return
    walk = _Walk(graph)
    for node in graph:
        walk.visit(node)
    if walk.meaning:
        for scope in (graph, *graph.subgraphs()):
            for node in scope:
                for value in node.outputs:
                    walk.rename(value)


class _Walk:
    """``meaning``: what open names turned out to be; ``contents``: integers in values; ``seen``: names."""

    __slots__ = ("contents", "meaning", "opsets", "seen")

    def __init__(self, graph: ir.Graph) -> None:
        self.meaning: dict[str, Dim] = {}
        self.contents: dict[ir.Value, Dims] = {}
        self.seen = {dim_of(d) for v in graph.inputs for d in v.shape or ()}
        self.opsets = graph.opset_imports

    def dims(self, value: ir.Value | None) -> Dims | None:
        if value is None or value.shape is None:
            return None
        return [self.now(dim_of(d)) for d in value.shape]

    def now(self, dim: Dim) -> Dim:
        return self.meaning.get(dim, dim) if isinstance(dim, str) else dim

    def rename(self, value: ir.Value) -> None:
        dims = self.dims(value)
        if dims is not None and dims != list(map(dim_of, value.shape or ())):
            value.shape = ir.Shape(dims)

    def read(self, value: ir.Value | None) -> Dims | None:
        """The integers in ``value``, each known, a symbol or None; None if nothing is known of them."""
        if value is None:
            return None
        if value in self.contents:
            return [self.now(d) for d in self.contents[value]]
        array = constant(value, limit=_LIMIT)
        if array is not None and array.dtype.kind in "iub" and array.ndim <= 1:
            return [int(v) for v in array.reshape(-1)]
        size = self.dims(value)
        if size is not None and len(size) <= 1 and all(isinstance(d, int) and d <= _LIMIT for d in size):
            return [None] * math.prod(d for d in size if isinstance(d, int))
        return None

    def visit(self, node: ir.Node) -> None:
        known = signature("", node.op_type, self.opsets.get("", 0)) if node.domain == "" else None
        if known is None or not known.min_inputs <= len(node.inputs) <= known.max_inputs:
            return
        follow = _CONTENTS.get(node.op_type)
        if follow is not None and len(self.dims(node.outputs[0]) or ()) <= 1:
            found = follow(self, node)
            if found is not None and len(found) <= _LIMIT:
                self.contents[node.outputs[0]] = found
        fresh = [
            dim
            for value in node.outputs
            for dim in self.dims(value) or ()
            if isinstance(dim, str) and is_open(dim) and dim not in self.seen
        ]
        if fresh:
            self.derive(node)
        self.seen.update(fresh)

    def derive(self, node: ir.Node) -> None:
        rule = _DIMS.get(node.op_type)
        derived = [rule(self, node)] if rule is not None else self.inferred_again(node)
        for value, dims in zip(node.outputs, derived, strict=False):
            recorded = self.dims(value)
            if dims is None or recorded is None or len(dims) != len(recorded):
                continue
            for old, new in zip(recorded, dims, strict=True):
                if isinstance(old, str) and is_open(old) and old not in self.seen and new not in (None, old):
                    self.meaning[old] = new

    def inferred_again(self, node: ir.Node) -> list[Dims | None]:
        from onnx.shape_inference import InferenceError

        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return []
        for value in node.inputs:
            if value is not None:
                self.rename(value)
        try:
            found = infer_standard(
                node.op_type, node.inputs, node.attributes, len(node.outputs), opsets=self.opsets
            )
        except InferenceError:
            return []
        return [None if shape is None else [dim_of(d) for d in shape] for _, shape in found]


# --- sizes of outputs ---


def _broadcast(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1 or (isinstance(b, int) and b > 1):
        return b
    if isinstance(a, int) and a > 1:
        return a
    for part, whole in ((a, b), (b, a)):
        # min(n, s) is 1 only where s is (n > 1), so that it broadcasts with s to s
        match = re.fullmatch(r"Min\((\d+), (.+)\)", str(part))
        if match and match[2] == whole and int(match[1]) > 1:
            return whole
    return None


def _broadcast_all(shapes: Sequence[Dims | None]) -> Dims | None:
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes):
        return None
    rank = max(map(len, known))
    result: Dims = [1] * rank
    for shape in known:
        aligned = [*[1] * (rank - len(shape)), *shape]
        result = [_broadcast(a, b) for a, b in zip(result, aligned, strict=True)]
    return result


def _elementwise(walk: _Walk, node: ir.Node) -> Dims | None:
    return _broadcast_all([walk.dims(v) for v in node.inputs])


def _expand(walk: _Walk, node: ir.Node) -> Dims | None:
    return _broadcast_all([walk.dims(node.inputs[0]), walk.read(node.inputs[1])])


def _range(walk: _Walk, node: ir.Node) -> Dims | None:
    start, limit, step = (walk.read(v) for v in node.inputs)
    counts = start == [0] and step == [1] and limit is not None
    return [max(0, d) if isinstance(d, int) else d for d in limit or ()] if counts else None


def _filled(walk: _Walk, node: ir.Node) -> Dims | None:
    return walk.read(node.inputs[0])


def _slice(walk: _Walk, node: ir.Node) -> Dims | None:
    dims = walk.dims(node.inputs[0])
    starts, ends, axes, steps = (
        walk.read(node.inputs[i]) if i < len(node.inputs) and node.inputs[i] is not None else None
        for i in range(1, 5)
    )
    if dims is None or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    if not len(axes) == len(starts) == len(ends) == len(steps or starts):
        return None
    for place, axis in enumerate(axes):
        if not isinstance(axis, int) or not -len(dims) <= axis < len(dims):
            return None
        step = 1 if steps is None else steps[place]
        dims[axis] = _sliced(dims[axis], starts[place], ends[place]) if step == 1 else None
    return dims


def _sliced(size: Dim, start: Dim, end: Dim) -> Dim:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[start:end])
    if start != 0:
        return None
    if end == size or (isinstance(end, int) and end >= 2**31 - 1):
        return size
    return (
        f"Min({size}, {end})" if isinstance(size, int) and isinstance(end, str) and not is_open(end) else None
    )


def _concat(walk: _Walk, node: ir.Node) -> Dims | None:
    shapes = [s for v in node.inputs if (s := walk.dims(v)) is not None]
    axis = node.attributes.get_int("axis", 0)
    ranks = {len(s) for s in shapes}
    if len(shapes) != len(node.inputs) or len(ranks) != 1 or not -min(ranks) <= axis < min(ranks):
        return None
    merged = [next((d for d in column if not is_open(d)), None) for column in zip(*shapes, strict=True)]
    along = [s[axis] for s in shapes]
    merged[axis] = (
        sum(d for d in along if isinstance(d, int)) if all(isinstance(d, int) for d in along) else None
    )
    return merged


def _reshape(walk: _Walk, node: ir.Node) -> Dims | None:
    dims, target = walk.dims(node.inputs[0]), walk.read(node.inputs[1])
    if dims is None or target is None:
        return None
    if not node.attributes.get_int("allowzero", 0):
        target = [dims[i] if d == 0 and i < len(dims) else d for i, d in enumerate(target)]
    unknown = [i for i, d in enumerate(target) if d is None or d == -1]
    if len(unknown) == 1:
        target[unknown[0]] = _quotient(dims, [d for i, d in enumerate(target) if i != unknown[0]])
    return [None if d == -1 else d for d in target]


def _flatten(walk: _Walk, node: ir.Node) -> Dims | None:
    dims, axis = walk.dims(node.inputs[0]), node.attributes.get_int("axis", 1)
    return None if dims is None else [_quotient(dims[:axis], []), _quotient(dims[axis:], [])]


def _quotient(dividend: Dims, divisor: Dims) -> Dim:
    """``product(dividend) / product(divisor)``: a size, a symbol or a product of them."""
    above, below = _factors(dividend), _factors(divisor)
    if above is None or below is None or below[0] == 0 or above[0] % below[0] or below[1] - above[1]:
        return None
    number, symbols = above[0] // below[0], sorted((above[1] - below[1]).elements())
    if not symbols:
        return number
    return "*".join(([str(number)] if number != 1 else []) + symbols)


def _factors(dims: Dims) -> tuple[int, Counter[str]] | None:
    number, symbols = 1, Counter[str]()
    for dim in dims:
        for part in dim.split("*") if isinstance(dim, str) else [dim]:
            if isinstance(part, int) or (part is not None and part.isdigit()):
                number *= int(part)
            elif part is None or not part.isidentifier():
                return None
            else:
                symbols[part] += 1
    return number, symbols


_BROADCASTING = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Mean", "Sum", "And", "Or", "Xor", "Equal",
    "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "PRelu", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor",
)  # fmt: skip

_DIMS: dict[str, Callable[[_Walk, ir.Node], Dims | None]] = {
    **dict.fromkeys(_BROADCASTING, _elementwise),
    "Expand": _expand, "Range": _range, "ConstantOfShape": _filled, "Slice": _slice, "Concat": _concat,
    "Reshape": _reshape, "Flatten": _flatten,
}  # fmt: skip


# --- integers in outputs ---


def _shape_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    dims = walk.dims(node.inputs[0])
    end = node.attributes.get("end")
    return None if dims is None else dims[node.attributes.get_int("start", 0) : end.as_int() if end else None]


def _same_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    return walk.read(node.inputs[0])


def _gathered_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    data, indices = walk.read(node.inputs[0]), walk.read(node.inputs[1])
    if data is None or indices is None:
        return None
    return [data[i] if isinstance(i, int) and -len(data) <= i < len(data) else None for i in indices]


def _sliced_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    data = walk.read(node.inputs[0])
    bounds = [walk.read(v) for v in node.inputs[1:]]
    start, end = bounds[0], bounds[1]
    step = bounds[3] if len(bounds) > 3 else [1]
    if data is None or start is None or end is None or step is None:
        return None
    if not len(start) == len(end) == len(step) == 1:
        return None
    a, b, c = start[0], end[0], step[0]
    return data[a:b:c] if isinstance(a, int) and isinstance(b, int) and isinstance(c, int) and c else None


def _joined_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    parts = [walk.read(v) for v in node.inputs]
    joined: Dims = []
    for part in parts:
        if part is None:
            return None
        joined += part
    return joined


def _computed_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    a, b = (walk.read(v) for v in node.inputs[:2])
    if a is None or b is None or not a or not b:
        return None
    length = max(len(a), len(b))
    a, b = (x * length if len(x) == 1 else x for x in (a, b))
    return [_compute(node.op_type, x, y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else None


def _compute(op: str, a: Dim, b: Dim) -> Dim:
    if op == "Equal":
        if a is None or b is None:
            return None
        known = (isinstance(a, int) and isinstance(b, int)) or a == b
        negative = (isinstance(a, int) and a < 0) or (isinstance(b, int) and b < 0)  # no size is
        return int(a == b) if known else 0 if negative else None
    if isinstance(a, int) and isinstance(b, int):
        quotient = a // b if b > 0 and a >= 0 else None  # ONNX truncates, Python floors
        return {"Add": a + b, "Sub": a - b, "Mul": a * b, "Div": quotient}[op]
    neutral = 1 if op in ("Mul", "Div") else 0
    if b == neutral:
        return a
    return b if a == neutral and op in ("Add", "Mul") else None


def _chosen_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    condition, yes, no = (walk.read(v) for v in node.inputs)
    if condition is None or yes is None or no is None or not (condition and yes and no):
        return None
    length = max(map(len, (condition, yes, no)))
    condition, yes, no = (x * length if len(x) == 1 else x for x in (condition, yes, no))
    if not len(condition) == len(yes) == len(no):
        return None
    return [None if c is None else y if c else n for c, y, n in zip(condition, yes, no, strict=True)]


def _filled_contents(walk: _Walk, node: ir.Node) -> Dims | None:
    sizes = walk.read(node.inputs[0])
    fill = node.attributes.get("value")
    tensor = None if fill is None else fill.as_tensor()
    if tensor is None or not tensor.dtype.is_integer() or sizes is None or len(sizes) != 1:
        return None
    count = sizes[0]
    return [int(tensor.numpy().item())] * count if isinstance(count, int) and count <= _LIMIT else None


_CONTENTS: dict[str, Callable[[_Walk, ir.Node], Dims | None]] = {
    "Shape": _shape_contents, "Gather": _gathered_contents, "Slice": _sliced_contents,
    "Concat": _joined_contents, "Where": _chosen_contents, "ConstantOfShape": _filled_contents,
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _same_contents),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Equal"), _computed_contents),
}  # fmt: skip
