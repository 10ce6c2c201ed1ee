"""Which source layer a node belongs to, and which values are worth comparing layer by layer."""

from __future__ import annotations

import ast
import re

import onnx_ir as ir

from ...compiler.ir.provenance import KEY, Source, set_sources

_SCOPES, _STACK = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"
_CHECKPOINTS = frozenset({
    "Attention", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Einsum", "GRU", "Gelu",
    "Gemm", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization",
    "MatMul", "MaxPool", "QLinearConv", "QLinearMatMul", "RMSNormalization", "RNN", "Relu", "Softmax",
})  # fmt: skip
"""Operators whose results are compared when a model's node names carry no layer paths."""


def set_node_sources(model: ir.Model, framework: str) -> None:
    """Name every unnamed node ``Op_i`` and give each node without sources its own."""
    for index, node in enumerate(model.graph.all_nodes()):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
        if KEY not in node.metadata_props:
            op = node.name.replace("\\", "/").rsplit("/", 1)[-1] or node.op_type
            set_sources(node, [Source(framework, layer_of(node), op, _line(node))])


def layer_of(node: ir.Node) -> str:
    """The layer path of a node: from torch's scopes if recorded, else from its slash-separated name.

    >>> import onnx_ir as ir
    >>> layer_of(ir.node("MatMul", [], name="/encoder/layer.0/attention/MatMul"))
    'encoder.layer.0.attention'
    """
    scopes = node.metadata_props.get(_SCOPES)
    if scopes:
        try:
            paths = ast.literal_eval(scopes)
            return str(paths[-2]) if len(paths) > 1 else ""
        except (ValueError, SyntaxError, IndexError, TypeError, MemoryError, RecursionError):
            return ""
    parts = (node.name or "").strip("/").split("/")[:-1]
    return ".".join(part for part in parts if part)


def _line(node: ir.Node) -> str:
    found = re.findall(r'File "([^"]+)", line (\d+)', node.metadata_props.get(_STACK, ""))
    return f"{found[-1][0].rsplit('/', 1)[-1]}:{found[-1][1]}" if found else ""


def layers_of(model: ir.Model) -> dict[str, str]:
    """Layer path → name of the value the layer hands on, for layers of the main graph.

    A layer's value is the last tensor made inside it that is read outside it. Where no node has a path,
    the results of the heavy operators stand for layers, under their node names.
    """
    order = {node: index for index, node in enumerate(model.graph)}
    members: dict[str, list[ir.Node]] = {}
    for node in order:
        parts = [p for p in layer_of(node).split(".") if p]
        for depth in range(1, len(parts) + 1):
            members.setdefault(".".join(parts[:depth]), []).append(node)
    if not members:
        return {
            str(node.name): str(node.outputs[0].name)
            for node in order
            if node.op_type in _CHECKPOINTS and _is_float(node.outputs[0])
        }
    layers = {}
    for path, nodes in members.items():
        inside = set(nodes)
        for node in reversed(nodes):
            leaving = next((v for v in node.outputs if _is_float(v) and _leaves(v, inside)), None)
            if leaving is not None:
                layers[path] = str(leaving.name)
                break
    return layers


def _leaves(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in inside for use in value.uses())


def _is_float(value: ir.Value) -> bool:
    return bool(value.name) and isinstance(value.type, ir.TensorType) and value.type.dtype.is_floating_point()
