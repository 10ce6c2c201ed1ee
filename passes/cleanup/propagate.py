"""Shapes that need the contents of shape tensors: what standard inference leaves unnamed is named here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import onnx_ir as ir

from ...compiler.program import Dim, dim_of
from .contents import Contents, Known

UNARY = frozenset(
    {"Abs", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu"}
    | {"HardSigmoid", "HardSwish", "Identity", "IsNaN", "LayerNormalization", "LeakyRelu", "Log"}
    | {"LogSoftmax", "Mish", "Neg", "Not", "RMSNormalization", "Reciprocal", "Relu", "RotaryEmbedding"}
    | {"Round", "Sigmoid", "Sign", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh", "Trilu"}
)
"""The first output has the first input's shape."""

BROADCAST = frozenset(
    {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod"}
    | {"Mul", "Or", "PRelu", "Pow", "Sub", "Where", "Xor"}
)

Dims = list[Dim]
_PRODUCT = re.compile(r"\w+(\*\w+)+")


def propagate(node: ir.Node, contents: Contents, named: set[str]) -> bool:
    """Name more of the dimensions of ``node``'s outputs; whether any was.

    A size replaces a symbol, and a dimension made of ``named`` (the inputs' symbols) one that inference
    made up.
    """
    if node.domain != "" or not node.outputs or node.outputs[0].type is None:
        return False
    if node.op_type == "Split":
        refined = [_record(o, _split(node, contents, i), named) for i, o in enumerate(node.outputs)]
        return any(refined)
    return _record(node.outputs[0], _infer(node, contents), named)


def _record(out: ir.Value, inferred: Dims | None, named: set[str]) -> bool:
    if inferred is None:
        return False
    if out.shape is None:
        out.shape = ir.Shape(inferred)
        return True
    if len(out.shape) != len(inferred):
        return False
    recorded = [dim_of(d) for d in out.shape]
    merged = [_better(a, b, named) for a, b in zip(recorded, inferred, strict=True)]
    if merged != recorded:
        out.shape = ir.Shape(merged)
    return merged != recorded


def _better(recorded: Dim, inferred: Dim, named: set[str]) -> Dim:
    if isinstance(recorded, int) or inferred is None:
        return recorded
    if recorded is None or isinstance(inferred, int):
        return inferred
    return inferred if is_named(inferred, named) and not is_named(recorded, named) else recorded


def is_named(dim: Dim, named: set[str]) -> bool:
    """Whether ``dim`` is a symbol in ``named``, or a sum or product of those and positive numbers."""
    if not isinstance(dim, str) or not re.fullmatch(r"[\w\s+*()]+", dim) or "**" in dim:
        return False
    words = re.findall(r"\w+", dim)
    return all(w in named or (w.isdigit() and int(w) > 0) for w in words)


def _split(node: ir.Node, contents: Contents, index: int) -> Dims | None:
    dims = _dims(node.inputs[0])
    if dims is None:
        return None
    sizes = contents.of(node.inputs[1]) if len(node.inputs) > 1 else None
    axis = node.attributes.get_int("axis", 0)
    dims[axis] = sizes.items[index] if sizes is not None and index < len(sizes.items) else None
    return dims


def _dims(value: ir.Value | None) -> Dims | None:
    return None if value is None or value.shape is None else [dim_of(d) for d in value.shape]


def _infer(node: ir.Node, contents: Contents) -> Dims | None:
    op = node.op_type
    shapes = [_dims(v) for v in node.inputs]
    if op in UNARY:
        return shapes[0]
    if op in BROADCAST:
        return _broadcast([s for s in shapes if s is not None]) if None not in shapes else None
    first = shapes[0] if shapes else None
    if op == "Range":
        bounds = [contents.of(v) for v in node.inputs]
        stop = bounds[1].items[0] if bounds[1] is not None else None
        simple = [b is not None and b.items == (n,) for b, n in ((bounds[0], 0), (bounds[2], 1))]
        return [stop] if all(simple) and not (isinstance(stop, int) and stop < 0) else None
    if op == "ConstantOfShape":
        target = contents.of(node.inputs[0])
        return list(target.items) if target is not None and target.rank == 1 else None
    if first is None:
        return None
    match op:
        case "Transpose":
            perm = node.attributes.get_ints("perm", ()) or tuple(reversed(range(len(first))))
            return [first[axis] for axis in perm]
        case "Reshape":
            return _reshaped(
                first, contents.of(node.inputs[1]), bool(node.attributes.get_int("allowzero", 0))
            )
        case "Expand":
            target = contents.of(node.inputs[1])
            return (
                _broadcast([first, list(target.items)]) if target is not None and target.rank == 1 else None
            )
        case "Unsqueeze":
            return _unsqueezed(first, contents.of(node.inputs[1]))
        case "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" if len(node.inputs) > 1:
            return _reduced(first, contents.of(node.inputs[1]), node.attributes.get_int("keepdims", 1) == 1)
        case "Slice":
            return _sliced(first, [contents.of(v) for v in node.inputs[1:]], len(node.inputs))
        case "Gemm" if not node.attributes.get_int("transA", 0) and shapes[1] is not None:
            return [first[0], shapes[1][0 if node.attributes.get_int("transB", 0) else 1]]
        case "MatMul":
            return _product(first, shapes[1])
        case "Gather" if shapes[1] is not None:
            axis = node.attributes.get_int("axis", 0) % max(len(first), 1)
            return [*first[:axis], *shapes[1], *first[axis + 1 :]]
        case "Concat" if all(s is not None and len(s) == len(first) for s in shapes):
            return _concatenated([s for s in shapes if s is not None], node.attributes.get_int("axis", 0))
    return None


def _broadcast(shapes: Sequence[Dims]) -> Dims:
    rank = max(map(len, shapes), default=0)
    ones: Dims = [1] * rank
    padded = [ones[len(s) :] + s for s in shapes]
    return [_one(dims) for dims in zip(*padded, strict=True)]


def _one(dims: Sequence[Dim]) -> Dim:
    """The broadcast of dimensions; a size above 1 decides, since a symbol beside it is that size or 1."""
    wide = list(dict.fromkeys(d for d in dims if d != 1))
    sizes = [d for d in wide if isinstance(d, int)]
    if sizes:
        return sizes[0]
    return 1 if not wide else wide[0] if len(wide) == 1 else None


def _reshaped(before: Dims, target: Known | None, allow_zero: bool) -> Dims | None:
    if target is None or target.rank != 1:
        return None
    dims: Dims = []
    for index, item in enumerate(target.items):
        copies = item == 0 and not allow_zero
        dims.append(before[index] if copies and index < len(before) else item)
    if -1 in dims:
        dims[dims.index(-1)] = _left_over(before, [d for d in dims if d != -1])
    elif dims.count(None) == 1:
        dims[dims.index(None)] = _left_over(before, [d for d in dims if d is not None])
    return dims


def _left_over(before: Dims, others: Dims) -> Dim:
    """What is left of ``before`` after taking ``others`` out, if it is one size or one symbol."""
    if None in before or None in others:
        return None
    size, symbols = _factors(before)
    taken, taken_symbols = _factors(others)
    for symbol in taken_symbols:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    if not taken or size % taken:
        return None
    if not symbols:
        return size // taken
    return symbols[0] if len(symbols) == 1 and size == taken else None


def _factors(dims: Dims) -> tuple[int, list[str]]:
    """The product of ``dims`` as a number and symbols; ``4*batch`` counts as 4 and batch."""
    parts = [p for d in dims for p in (d.split("*") if isinstance(d, str) and _PRODUCT.fullmatch(d) else [d])]
    numbers = [int(p) for p in parts if isinstance(p, int) or (isinstance(p, str) and p.isdigit())]
    return math.prod(numbers), [p for p in parts if isinstance(p, str) and not p.isdigit()]


def _reduced(before: Dims, axes: Known | None, keep: bool) -> Dims | None:
    if axes is None or not axes.static:
        return None
    gone = {axis % len(before) for axis in axes.static}
    return [1 if a in gone else d for a, d in enumerate(before) if keep or a not in gone]


def _unsqueezed(before: Dims, axes: Known | None) -> Dims | None:
    if axes is None or axes.static is None:
        return None
    rank = len(before) + len(axes.static)
    new = {axis % rank for axis in axes.static}
    rest = iter(before)
    return [1 if axis in new else next(rest) for axis in range(rank)]


def _sliced(before: Dims, bounds: list[Known | None], count: int) -> Dims | None:
    if any(b is None for b in bounds):
        return None
    starts, ends, *more = [b.items for b in bounds if b is not None]
    axes = more[0] if more else tuple(range(len(starts)))
    steps = more[1] if len(more) > 1 else (1,) * len(starts)
    if count < 3 or not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    dims = list(before)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not isinstance(axis, int):
            return None
        dims[axis] = _length(before[axis], start, end, step)
    return dims


def _length(size: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int) and isinstance(step, int):
        return len(range(*slice(start, end, step).indices(size))) if step > 0 else None
    whole = end == size or (isinstance(end, int) and end >= 1 << 31)
    return size if start == 0 and step == 1 and whole else None


def _product(a: Dims, b: Dims | None) -> Dims | None:
    if b is None or len(a) < 2 or len(b) < 2:
        return None
    return [*_broadcast([a[:-2], b[:-2]]), a[-2], b[-1]]


def _concatenated(shapes: list[Dims], axis: int) -> Dims:
    parts = [s[axis] for s in shapes]
    sizes = [p for p in parts if isinstance(p, int)]
    dims: Dims = []
    for index, group in enumerate(zip(*shapes, strict=True)):
        known = next((d for d in group if isinstance(d, int)), group[0])
        along = index == axis % len(shapes[0])
        dims.append((sum(sizes) if len(sizes) == len(parts) else None) if along else known)
    return dims
