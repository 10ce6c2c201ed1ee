"""Where a step comes from, for its comment: the source layers of a node in one line."""

from __future__ import annotations

import onnx_ir as ir

from ...ir.provenance import sources

_WIDTH = 100
_NAMED = 5


def source_of(node: ir.Node) -> str:
    """``model.layers.0.self_attn: q_proj, k_proj, v_proj`` of the layers that a node computes.

    A node without a source is named by its operator and name.
    """
    layers = list(dict.fromkeys(s.layer for s in sources(node) if s.layer))
    if not layers:
        return _safe(f"{node.op_type} {node.name or ''}".strip())
    inner = [layer for layer in layers if not any(other.startswith(f"{layer}.") for other in layers)]
    parent = _common(inner)
    names = [layer[len(parent) :].lstrip(".") for layer in inner]
    if len(inner) == 1:
        text = inner[0]
    else:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = f"{parent}: {', '.join(names[:_NAMED])}{more}".removeprefix(": ")
    kind = f" ({node.op_type})"
    return _safe(text + kind if len(text + kind) <= _WIDTH else text)


def _common(layers: list[str]) -> str:
    parts = [layer.split(".") for layer in layers]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def _safe(text: str) -> str:
    text = text.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ").replace("\\", "/")
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
