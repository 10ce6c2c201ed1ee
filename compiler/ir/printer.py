"""Canonical text of a program: the same graph prints the same text, for golden tests and diffs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..program import Program, dim_of, dtype_name
from .provenance import sources

_INLINE = 8
"""Elements up to which a tensor's values are printed."""


def print_program(program: Program, sources: bool = False) -> str:
    """Every entry of ``program`` as text; ``sources=True`` adds each node's sources as a trailing comment."""
    lines = []
    if program.dims:
        lines.append("dims " + ", ".join(f"{name}={r}" for name, r in sorted(program.dims.items())))
    for name, model in program.entries.items():
        lines.append(f"entry {name} {{ opset {_opsets(model.opset_imports)} }}")
        lines.extend(_graph_lines(model.graph, "  ", sources))
        for function in sorted(model.functions.values(), key=lambda f: f.identifier()):
            lines.append(f"function {_qualified(function.domain, function.name, function.overload)}")
            lines.extend(_graph_lines(function, "  ", sources))
    return "\n".join(lines) + "\n"


def print_graph(graph: ir.Graph | ir.Function, sources: bool = False) -> str:
    """One graph or function as text.

    >>> x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", 4]))
    >>> node = ir.node("Softmax", [x], {"axis": -1})
    >>> y = node.outputs[0]; y.name, y.type, y.shape = "y", x.type, x.shape
    >>> print(print_graph(ir.Graph([x], [y], nodes=[node], opset_imports={"": 23})), end="")
    inputs %x: float32[batch, 4]
    outputs %y
    %y: float32[batch, 4] = Softmax(%x) {axis=-1}
    """
    return "\n".join(_graph_lines(graph, "", sources)) + "\n"


def print_value(value: ir.Value | None) -> str:
    """``%name: dtype[shape]``; ``-`` for an omitted input."""
    return "-" if value is None else f"{_name(value)}: {print_type(value)}"


def print_type(value: ir.Value) -> str:
    """``float32[batch, 3]``; ``?`` for what is unknown; ``seq(...)`` and ``optional(...)`` for containers."""
    dims = "..." if value.shape is None else ", ".join(_dim(d) for d in value.shape)
    return _type(value.type, f"[{dims}]")


def _type(kind: ir.TypeProtocol | None, dims: str) -> str:
    if isinstance(kind, ir.SequenceType):
        return f"seq({_type(kind.elem_type, dims)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({_type(kind.elem_type, dims)})"
    if isinstance(kind, ir.SparseTensorType):
        return f"sparse({dtype_name(kind.dtype)}{dims})"
    return f"{'?' if kind is None else dtype_name(kind.dtype)}{dims}"


def _dim(dim: int | ir.SymbolicDim) -> str:
    known = dim_of(dim)
    return "?" if known is None else str(known)


def _name(value: ir.Value) -> str:
    return f"%{value.name}" if value.name else "-"


def _opsets(imports: dict[str, int]) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(imports.items()))


def _qualified(domain: str, name: str, overload: str = "") -> str:
    return (f"{domain}::" if domain else "") + name + (f":{overload}" if overload else "")


def _graph_lines(graph: ir.Graph | ir.Function, pad: str, with_sources: bool) -> Iterator[str]:
    yield f"{pad}inputs " + (", ".join(print_value(v) for v in graph.inputs) or "-")
    yield f"{pad}outputs " + (", ".join(_name(v) for v in graph.outputs) or "-")
    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            yield f"{pad}{print_value(value)}{_tensor_suffix(value.const_value)}"
    for node in graph:
        yield from _node_lines(node, pad, with_sources)


def _node_lines(node: ir.Node, pad: str, with_sources: bool) -> Iterator[str]:
    outputs = ", ".join(print_value(v) if v.name else "-" for v in node.outputs)
    inputs = ", ".join("-" if v is None else _name(v) for v in node.inputs)
    attributes = sorted(node.attributes.values(), key=lambda a: a.name)
    inline = ", ".join(f"{a.name}={_attribute(a)}" for a in attributes)
    line = f"{pad}{outputs} = {_qualified(node.domain, node.op_type, node.overload)}({inputs})"
    line += f" {{{inline}}}" if inline else ""
    if with_sources and (places := sources(node)):
        line += "  # " + "; ".join(map(str, places))
    yield line
    for attr in attributes:
        for graph in _subgraphs(attr):
            yield f"{pad}  {attr.name}:"
            yield from _graph_lines(graph, pad + "    ", with_sources)


def _subgraphs(attr: ir.Attr) -> tuple[ir.Graph, ...]:
    if attr.is_ref():
        return ()
    if attr.type == ir.AttributeType.GRAPH:
        return (attr.as_graph(),)
    return tuple(attr.as_graphs()) if attr.type == ir.AttributeType.GRAPHS else ()


def _attribute(attr: ir.Attr) -> str:
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    kind, value = attr.type, attr.value
    if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "<graph>" if kind == ir.AttributeType.GRAPH else f"<{len(value)} graphs>"
    if kind == ir.AttributeType.TENSOR:
        return _tensor(value)
    if kind == ir.AttributeType.TENSORS:
        return "[" + ", ".join(map(_tensor, value)) + "]"
    if kind == ir.AttributeType.FLOAT:
        return _number(np.float32(value))
    if kind == ir.AttributeType.FLOATS:
        return "[" + ", ".join(_number(np.float32(v)) for v in value) + "]"
    if kind in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return "[" + ", ".join(repr(v) for v in value) + "]"
    if kind in (ir.AttributeType.INT, ir.AttributeType.STRING):
        return repr(value)
    return f"<{kind.name.lower()}>"


def _tensor(tensor: ir.TensorProtocol) -> str:
    dims = ", ".join(map(str, tensor.shape.numpy()))
    return f"{dtype_name(tensor.dtype)}[{dims}]{_tensor_suffix(tensor)}"


def _tensor_suffix(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None or tensor.size > _INLINE:
        return ""
    array = tensor.numpy().reshape(-1)
    return " = [" + ", ".join(_number(v) for v in array) + "]"


def _number(item: object) -> str:
    if isinstance(item, (bool, np.bool_)):
        return "true" if item else "false"
    if isinstance(item, (bytes, str)):
        return repr(item.decode(errors="replace") if isinstance(item, bytes) else item)
    if isinstance(item, (int, np.integer)):
        return str(int(item))
    # numpy's shortest text that reads back as the same number, so that float32 0.1 prints 0.1
    return str(item)
