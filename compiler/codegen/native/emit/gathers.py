"""Elements, rows and blocks picked by indices that are only known when run: every one is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence

import onnx_ir as ir

from ....ir.check_structure import place
from ....ir.constants import scalar
from ..views import cut
from .base import CTYPES, Entry, Operator, Size, View, times
from .loops import SMALL, head_of, joined, names_of, offset, over_rows, per_row

_INDICES = (ir.DataType.INT64, ir.DataType.INT32)


def gather(node: ir.Node, entry: Entry) -> None:
    """Gather: slices of an axis, one for every index."""
    data, indices = inputs_of(node)
    source = entry.view(data)
    axis = node.attributes.get_int("axis", 0) % max(1, len(source.shape))
    size, known = source.shape[axis], scalar(indices)
    if isinstance(size, int) and isinstance(known, int) and not indices.shape and -size <= known < size:
        entry.alias(node.outputs[0], _without(cut(source, axis, known % size, 1), axis))
        return
    index = entry.view(indices)
    target = entry.new(node.outputs[0])
    rank = len(index.shape)
    before = joined(target.shape[:axis], (source.strides[:axis], target.strides[:axis]))
    picked = joined(index.shape, (index.strides, target.strides[axis : axis + rank]))
    names = names_of(len(before[0]) + len(picked[0]))
    outer, inner = names[: len(before[0])], names[len(before[0]) :]
    at = f"{index.pointer}[{index_of(offset(inner, picked[1][0]))}]"
    lines = [
        f"int64_t at = {checked(node, at, size)};",
        *_copy(
            ["at >= 0"],
            _View(source, offset(outer, before[1][0]) + offset(["at"], [source.strides[axis]])),
            _View(target, offset(outer, before[1][1]) + offset(inner, picked[1][1])),
            target.shape[axis + rank :],
            source.strides[axis + 1 :],
            target.strides[axis + rank :],
        ),
    ]
    entry.step(node, over_rows([*before[0], *picked[0]], lines, _grain(target.shape[axis + rank :])))


def _gather_nd(node: ir.Node, entry: Entry) -> None:
    data, indices = inputs_of(node)
    source, index = entry.view(data), entry.view(indices)
    target = entry.new(node.outputs[0])
    batch, rank = node.attributes.get_int("batch_dims", 0), len(index.shape) - 1
    depth = index.shape[-1]
    assert isinstance(depth, int)
    given = (*source.strides[:batch], *[0] * (rank - batch))
    sizes, (i_steps, x_steps, y_steps) = joined(
        index.shape[:-1], (index.strides[:-1], given, target.strides[:rank])
    )
    names = names_of(len(sizes))
    indexed = source.strides[batch : batch + depth]
    ats = [f"at{d or ''}" for d in range(depth)]
    lines = []
    for d, at in enumerate(ats):
        where = offset(names, i_steps) + offset([str(d)], [index.strides[-1] if d else 0])
        found = f"{index.pointer}[{index_of(where)}]"
        lines.append(f"int64_t {at} = {checked(node, found, source.shape[batch + d])};")
    lines += _copy(
        [f"{at} >= 0" for at in ats],
        _View(source, offset(names, x_steps) + offset(ats, indexed)),
        _View(target, offset(names, y_steps)),
        target.shape[rank:],
        source.strides[batch + depth :],
        target.strides[rank:],
    )
    entry.step(node, over_rows(sizes, lines, _grain(target.shape[rank:])))


def _gather_elements(node: ir.Node, entry: Entry) -> None:
    data, indices = inputs_of(node)
    source, index = entry.view(data), entry.view(indices)
    target = entry.new(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(source.shape)
    strides = [0 if a == axis else s for a, s in enumerate(source.strides)]
    sizes, (i_steps, x_steps, y_steps) = joined(target.shape, (index.strides, strides, target.strides))
    names = names_of(len(sizes))
    found = f"{index.pointer}[{index_of(offset(names, i_steps))}]"
    lines = [
        f"int64_t at = {checked(node, found, source.shape[axis])};",
        "if (at >= 0)",
        f"    {target.pointer}[{index_of(offset(names, y_steps))}]"
        f" = {source.pointer}[{index_of(offset([*names, 'at'], [*x_steps, source.strides[axis]]))}];",
    ]
    entry.step(node, over_rows(sizes, lines, SMALL // 4))


class _View:
    """A pointer in a loop: a view's, and what is added to it."""

    def __init__(self, view: View, added: str) -> None:
        self.ctype, self.text = view.ctype, f"{view.pointer}{added}"
        self.element = f"{view.pointer}[{index_of(added)}]"


def _copy(
    conditions: Sequence[str],
    source: _View,
    target: _View,
    shape: Sequence[Size],
    source_strides: Sequence[Size],
    target_strides: Sequence[Size],
) -> list[str]:
    """Statements that copy one block if ``conditions`` hold."""
    sizes, (old, new) = joined(shape, (source_strides, target_strides))
    head = f"if ({' && '.join(conditions)})"
    if not sizes:
        return [head, f"    {target.element} = {source.element};"]
    if len(sizes) == 1 and old == new == (1,):
        return [
            head,
            f"    memcpy({target.text}, {source.text}, {_bytes(sizes[0], source.ctype)});",
        ]
    names = "abcdefgh"[: len(sizes)]
    lines = [
        f"    const {source.ctype} *restrict x = {source.text};",
        f"    {target.ctype} *restrict y = {target.text};",
    ]
    for depth, (name, size) in enumerate(zip(names, sizes, strict=True)):
        lines.append(f"{'    ' * (depth + 1)}{head_of(name, size)}")
    indent = "    " * (len(sizes) + 1)
    lines.append(f"{indent}y[{index_of(offset(names, new))}] = x[{index_of(offset(names, old))}];")
    return [f"{head} {{", *lines, "}"]


def _bytes(count: Size, ctype: str) -> str:
    return f"{count if isinstance(count, int) else f'(size_t){count}'} * sizeof({ctype})"


def inputs_of(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """What is picked from, and the indices."""
    data, indices = node.inputs[0], node.inputs[1]
    assert data is not None and indices is not None
    return data, indices


def checked(node: ir.Node, index: str, size: Size) -> str:
    """The place of an index in an axis, -1 if it is outside."""
    return f"checked(run, {index}, {size}, {refusal(node)})"


def refusal(node: ir.Node) -> str:
    """The sentence for an index outside of its axis, as a C string."""
    return json.dumps(f"{place(node)}: an index is outside of its axis")


def index_of(added: str) -> str:
    """What ``offset`` made, as an index of its own."""
    return added.removeprefix(" + ") or "0"


def _without(view: View, axis: int) -> View:
    shape, strides = list(view.shape), list(view.strides)
    del shape[axis], strides[axis]
    return View(view.pointer, view.ctype, tuple(shape), tuple(strides))


def _grain(block: Sequence[Size]) -> Size:
    return per_row(times(*block))


def reason(node: ir.Node) -> str | None:
    """Why a node that picks elements can't be emitted."""
    data, indices = inputs_of(node)
    if data.dtype not in CTYPES:
        return f"it picks from {None if data.dtype is None else data.dtype.name.lower()}"
    if indices.dtype not in _INDICES or indices.shape is None or data.shape is None:
        return "the rank of its inputs or the dtype of its indices is not known"
    if node.op_type.endswith("ND") and not isinstance(indices.shape[-1], int):
        return "how many axes its indices address is not known"
    return None


OPERATORS = {
    "Gather": Operator(gather, reason),
    "GatherND": Operator(_gather_nd, reason),
    "GatherElements": Operator(_gather_elements, reason),
}
