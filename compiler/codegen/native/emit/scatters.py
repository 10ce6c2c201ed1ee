"""Elements and blocks written over a copy of a tensor, where indices say that are known when run."""

from __future__ import annotations

import onnx_ir as ir

from .base import CTYPES, Entry, Operator
from .copies import copied
from .expressions import SUFFIXES
from .gathers import checked, index_of, inputs_of
from .gathers import reason as reason_of_indices
from .loops import head_of, names_of, offset

_REDUCTIONS = ("none", "add", "mul", "max", "min")


def _scatter_nd(node: ir.Node, entry: Entry) -> None:
    data, indices = inputs_of(node)
    source, index, updates = entry.view(data), entry.view(indices), entry.view(_updates(node))
    target = entry.new(node.outputs[0])
    entry.step(node, copied(source, target))
    depth = index.shape[-1]
    assert isinstance(depth, int)
    rank = len(index.shape) - 1
    names = names_of(len(updates.shape))
    ats = [f"at{d or ''}" for d in range(depth)]
    lines = []
    for d, at in enumerate(ats):
        where = offset(names[:rank], index.strides[:-1]) + offset([str(d)], [index.strides[-1] if d else 0])
        found = f"{index.pointer}[{index_of(where)}]"
        lines.append(f"int64_t {at} = {checked(node, found, target.shape[d])};")
    y = offset([*ats, *names[rank:]], [*target.strides[:depth], *target.strides[depth:]])
    lines.append(f"if ({' && '.join(f'{at} >= 0' for at in ats)})")
    inside = [_assigned(node, f"{target.pointer}[{index_of(y)}]",
                        f"{updates.pointer}[{index_of(offset(names, updates.strides))}]")]  # fmt: skip
    for name, size in reversed(list(zip(names[rank:], updates.shape[rank:], strict=True))):
        inside = [head_of(name, size), *(f"    {line}" for line in inside)]
    lines += [f"    {line}" for line in inside]
    entry.step(node, _alone(names[:rank], updates.shape[:rank], lines))


def _scatter_elements(node: ir.Node, entry: Entry) -> None:
    data, indices = inputs_of(node)
    source, index, updates = entry.view(data), entry.view(indices), entry.view(_updates(node))
    target = entry.new(node.outputs[0])
    entry.step(node, copied(source, target))
    axis = node.attributes.get_int("axis", 0) % len(target.shape)
    names = names_of(len(index.shape))
    strides = [0 if a == axis else s for a, s in enumerate(target.strides)]
    found = f"{index.pointer}[{index_of(offset(names, index.strides))}]"
    y = offset([*names, "at"], [*strides, target.strides[axis]])
    lines = [
        f"int64_t at = {checked(node, found, target.shape[axis])};",
        "if (at >= 0)",
        "    " + _assigned(node, f"{target.pointer}[{index_of(y)}]",
                           f"{updates.pointer}[{index_of(offset(names, updates.strides))}]"),
    ]  # fmt: skip
    entry.step(node, _alone(names, index.shape, lines))


def _assigned(node: ir.Node, y: str, x: str) -> str:
    kind, dtype = node.attributes.get_string("reduction", "none"), node.outputs[0].dtype
    if kind == "none" or dtype is None:
        return f"{y} = {x};"
    if kind in ("add", "mul") and SUFFIXES[dtype] == "f32":
        return f"{y} {'+' if kind == 'add' else '*'}= {x};"
    return f"{y} = {kind}_{SUFFIXES[dtype]}({y}, {x});"


def _alone(names: str, shape: tuple[int | str, ...], lines: list[str]) -> str:
    """Loops of one worker: indices may repeat, and then the last one counts."""
    for name, size in reversed(list(zip(names, shape, strict=True))):
        lines = [
            f"{head_of(name, size)} {{", *(f"    {line}" for line in lines), "}"
        ]  # fmt: skip
    return "\n".join(["if (w->index == 0) {", *(f"    {line}" for line in lines), "}"])


def _updates(node: ir.Node) -> ir.Value:
    updates = node.inputs[2]
    assert updates is not None
    return updates


def reason(node: ir.Node) -> str | None:
    """Why a node that scatters can't be emitted."""
    kind, dtype = node.attributes.get_string("reduction", "none"), node.outputs[0].dtype
    if kind not in _REDUCTIONS or dtype not in CTYPES:
        return f"its reduction {kind!r} or dtype is not known"
    if kind != "none" and (dtype not in SUFFIXES or dtype == ir.DataType.BOOL):
        return f"it reduces {dtype.name.lower()} by {kind}"
    return reason_of_indices(node)


OPERATORS = {
    "ScatterND": Operator(_scatter_nd, reason),
    "ScatterElements": Operator(_scatter_elements, reason),
}
