"""Provenance: which source layers a node computes. Kept in node metadata, merged by every rewrite."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import onnx_ir as ir

from ..parallel.sharding import merge_stages

KEY = "miaotui.sources"
PASSES = "miaotui.passes"


@dataclass(frozen=True, slots=True)
class Source:
    """One place in the source framework that a node comes from.

    ``framework``: ``torch``, ``keras``, ``onnx``, ``transformers``. ``layer``: module path or layer
    name (``encoder.layer.0.attention``). ``op``: the original node or operator. ``line``: ``file:line``
    of the source where known.

    >>> str(Source("torch", "encoder.layer.0", "aten.linear", "bert.py:120"))
    'torch encoder.layer.0 (aten.linear at bert.py:120)'
    """

    framework: str
    layer: str = ""
    op: str = ""
    line: str = ""

    def __str__(self) -> str:
        detail = " at ".join(part for part in (self.op, self.line) if part)
        return " ".join(
            part for part in (self.framework, self.layer, f"({detail})" if detail else "") if part
        )


def sources(node: ir.Node) -> tuple[Source, ...]:
    """The node's sources, in the order they were merged; empty if it was made without one."""
    text = node.metadata_props.get(KEY)
    return tuple(Source(**entry) for entry in json.loads(text)) if text else ()


def set_sources(node: ir.Node, merged: Iterable[Source]) -> None:
    """Replace the node's sources; duplicates are dropped, order is kept."""
    unique = list(dict.fromkeys(merged))
    if unique:
        node.metadata_props[KEY] = json.dumps([{k: v for k, v in asdict(s).items() if v} for s in unique])
    else:
        node.metadata_props.pop(KEY, None)


def merge_sources(node: ir.Node, others: Iterable[ir.Node]) -> None:
    """Add the sources and the passes of ``others`` to ``node``, in their order; it takes their last stage."""
    others = tuple(others)
    merge_stages(node, others)
    set_sources(node, [*sources(node), *(s for other in others for s in sources(other))])
    add_passes(node, (name for other in others for name in passes(other)))


def passes(node: ir.Node) -> tuple[str, ...]:
    """Names of the passes whose rewrites led to the node, in order; empty for an imported node."""
    text = node.metadata_props.get(PASSES)
    return tuple(text.split(",")) if text else ()


def add_passes(node: ir.Node, names: Iterable[str]) -> None:
    """Record that the passes ``names`` had a part in ``node``."""
    known = dict.fromkeys((*passes(node), *names))
    if known:
        node.metadata_props[PASSES] = ",".join(known)
